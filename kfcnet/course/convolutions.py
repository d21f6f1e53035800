"""Chapter 3: counts of overlapping offsets, the two factors of a convolution, autocorrelations."""

import math

import numpy as np

from kfcnet.course.exercise import Exercise
from kfcnet.curvature import derivative_factor, input_factor


def _side(T, d, d2):
    return max(0, T - max(d, d2, 0) + min(d, d2, 0))


def _beta(T1, T2, d, d2):
    return _side(T1, d[0], d2[0]) * _side(T2, d[1], d2[1])


def _beta_cases(rng):
    offsets = (((1, 2), (-1, 1)), ((0, 0), (2, -1)), ((-2, -2), (-1, 1)), ((2, 1), (1, 2)))
    cases = [{"T1": 5, "T2": 7, "d": d, "d2": d2} for d, d2 in offsets]
    # Both offsets span the image: downwards alone, and downwards and across.
    spans = [(3, 7, (-2, 0), (2, 0)), (3, 3, (-2, -2), (2, 2))]
    return cases + [{"T1": T1, "T2": T2, "d": d, "d2": d2} for T1, T2, d, d2 in spans]


def _overlap_of_difference(T1, T2, d, d2):
    return (T1 - abs(d2[0] - d[0])) * (T2 - abs(d2[1] - d[1]))


def _by_brute_force_of_one(T1, T2, d, d2):
    return (T1 - abs(d[0])) * (T2 - abs(d[1]))


def _product_of_both(T1, T2, d, d2):
    return (T1 - abs(d[0]) - abs(d2[0])) * (T2 - abs(d[1]) - abs(d2[1]))


def _without_the_upper_border(T1, T2, d, d2):
    return (T1 - max(d[0], d2[0], 0)) * (T2 - max(d[1], d2[1], 0))


def _negative_where_they_span(T1, T2, d, d2):
    sides = (
        T - max(one, other, 0) + min(one, other, 0)
        for T, one, other in zip((T1, T2), d, d2, strict=True)
    )
    return math.prod(sides)


def _negative_sides(T1, T2, d, d2):
    return max(0, _negative_where_they_span(T1, T2, d, d2))


def _seen_by_either(T1, T2, d, d2):
    return _beta(T1, T2, d, d) + _beta(T1, T2, d2, d2) - _beta(T1, T2, d, d2)


def _patches(a, K, mode="constant"):
    """(M, T, K, K, J): the patch around every location; with mode None only whole ones."""
    R = K // 2
    padded = a if mode is None else np.pad(a, ((0, 0), (R, R), (R, R), (0, 0)), mode)
    windows = np.lib.stride_tricks.sliding_window_view(padded, (K, K), axis=(1, 2))
    return windows.transpose(0, 1, 2, 4, 5, 3).reshape(len(a), -1, K, K, a.shape[3])


def _rows(patches):
    """Patches as rows (M*T, P), a one before them."""
    rows = patches.reshape(patches.shape[0] * patches.shape[1], -1)
    return np.hstack([np.ones((len(rows), 1)), rows])


def _gram(rows, M):
    return rows.T @ rows / M


def _omega_cases(rng):
    shapes = ((2, 4, 5, 2), 3), ((3, 6, 7, 1), 5), ((2, 3, 2, 3), 1)
    return [{"a": 1 + rng.normal(size=shape), "K": K} for shape, K in shapes]


def _gamma_cases(rng):
    return [{"ds": 0.3 + rng.normal(size=shape)} for shape in ((3, 4, 5, 2), (2, 3, 4, 3))]


def _flat(ds):
    return ds.reshape(-1, ds.shape[-1])


def _autocorrelation_cases(rng):
    shapes = ((3, 5, 6), (0, 1)), ((3, 5, 6), (1, 2)), ((2, 4, 3), (2, 0))
    return [{"ds": np.cumsum(rng.normal(size=shape), axis=2), "d": d} for shape, d in shapes]


def _pairs(ds, d):
    """Values that are d = (rows, columns) apart, both inside, and their counterparts."""
    _, H, W = ds.shape
    return ds[:, : H - d[0], : W - d[1]], ds[:, d[0] :, d[1] :]


def _autocorrelation(ds, d):
    here, there = _pairs(ds, d)
    return (here * there).mean() / (ds**2).mean()


def _lost_border(ds, d):
    here, there = _pairs(ds, d)
    return (here * there).sum() / (ds**2).sum()


EXERCISES = {
    "3.1": Exercise(
        _beta_cases,
        _beta,
        {
            "This counts the locations for one offset; t + d and t + d2 both have to be inside.": (
                _by_brute_force_of_one
            ),
            "This depends on d2 - d alone: Omega does so, beta depends on both offsets.": (
                _overlap_of_difference
            ),
            "Offsets of the same sign overlap: the larger one counts, not their sum.": (
                _product_of_both
            ),
            "A location below zero is outside, too: an offset below zero loses rows at the other "
            "end.": _without_the_upper_border,
            "This counts the locations from which one of the two is inside; both have to be.": (
                _seen_by_either
            ),
            "No location has both offsets inside where they span the image: the count is zero "
            "then, not negative.": _negative_where_they_span,
            "Two sides below zero have a product above zero: each side is at least zero.": (
                _negative_sides
            ),
            "Rows and columns are exchanged: d[0] goes with T1, d[1] with T2.": (
                lambda T1, T2, d, d2: _beta(T2, T1, d, d2)
            ),
            "This is the number of all locations, |T|: those with t + d or t + d2 outside do not "
            "count.": lambda T1, T2, d, d2: T1 * T2,
        },
    ),
    "3.2": Exercise(
        _omega_cases,
        lambda a, K: input_factor(a, kernel_size=K, padding=K // 2),
        {
            "A 1/|T| too much: Omega is a sum over the locations, the mean belongs to Gamma.": (
                lambda a, K: _gram(_rows(_patches(a, K)), a[..., 0].size)
            ),
            "A missing 1/M: the factor is a mean over the examples.": lambda a, K: _gram(
                _rows(_patches(a, K)), 1
            ),
            "The homogeneous one is missing: the bias has a row and a column, too.": lambda a, K: (
                _gram(_rows(_patches(a, K))[:, 1:], len(a))
            ),
            "The mean is over the locations, the sum over examples; it is the other way round.": (
                lambda a, K: _gram(_rows(_patches(a, K)), a[0, ..., 0].size)
            ),
            "The padding is missing: a patch that the border cuts counts, with zeros outside.": (
                lambda a, K: _gram(_rows(_patches(a, K, None)), len(a))
            ),
            "The homogeneous one is the last column; it is column 0.": lambda a, K: _gram(
                np.roll(_rows(_patches(a, K)), -1, axis=1), len(a)
            ),
            "Offsets go down the kernel's columns; here they go along its rows.": lambda a, K: (
                _gram(_rows(_patches(a, K).swapaxes(2, 3)), len(a))
            ),
            "The columns are in the paper's order, j|Delta| + delta; here it is delta*J + j.": (
                lambda a, K: _gram(_rows(_patches(a, K).transpose(0, 1, 4, 2, 3)), len(a))
            ),
            "The side of the kernel is 3 here; it is given, K.": lambda a, K: input_factor(
                a, kernel_size=3, padding=1
            ),
            "Patches go around the border; outside of the image there are zeros.": lambda a, K: (
                _gram(_rows(_patches(a, K, "wrap")), len(a))
            ),
            "Patches are summed over the locations before the product; every location has a "
            "product of its own.": lambda a, K: _gram(
                _rows(_patches(a, K)).reshape(len(a), a[0, ..., 0].size, -1).sum(axis=1), len(a)
            ),
        },
    ),
    "3.3": Exercise(
        _gamma_cases,
        lambda ds: derivative_factor(ds),
        {
            "A missing 1/|T|: Gamma is a mean over the locations, the sum belongs to Omega.": (
                lambda ds: _gram(_flat(ds), len(ds))
            ),
            "A missing 1/M: the factor is a mean over the examples.": lambda ds: _gram(
                _flat(ds), ds[0, ..., 0].size
            ),
            "A missing 1/|T| and a missing 1/M: this is a sum.": lambda ds: _gram(_flat(ds), 1),
            "Derivatives are summed over the locations before the product: SUD keeps the products "
            "of a location with itself only.": lambda ds: _gram(ds.sum(axis=(1, 2)), len(ds)),
            "Derivatives are averaged over the locations before the product: SUD keeps the "
            "products of a location with itself only.": lambda ds: _gram(
                ds.mean(axis=(1, 2)), len(ds)
            ),
            "A 1/M^2 too much: these are derivatives of each example's own loss already.": (
                lambda ds: derivative_factor(ds / len(ds))
            ),
            "The mean derivative is taken out; Gamma is a second moment about zero.": lambda ds: (
                derivative_factor(ds - ds.mean(axis=(0, 1, 2)))
            ),
            "There is a homogeneous one among the derivatives; it belongs to Omega.": lambda ds: (
                _gram(np.hstack([np.ones((ds[..., 0].size, 1)), _flat(ds)]), ds[..., 0].size)
            ),
            "The product is transposed: this pairs locations, the factor pairs maps.": (
                lambda ds: _flat(ds) @ _flat(ds).T / ds[..., 0].size
            ),
        },
    ),
    "3.4": Exercise(
        _autocorrelation_cases,
        _autocorrelation,
        {
            "The shift goes around the border: pairs are formed of pixels far apart.": (
                lambda ds, d: (ds * np.roll(ds, (-d[0], -d[1]), (1, 2))).mean() / (ds**2).mean()
            ),
            "Sums of different lengths are compared: divide each by the number of its pairs.": (
                _lost_border
            ),
            "The mean product is not divided by the mean square: at d = 0 it should be 1.": (
                lambda ds, d: np.multiply(*_pairs(ds, d)).mean()
            ),
            "The mean is taken out: E[Ds] = 0 holds by itself, nothing is centred.": lambda ds, d: (
                _autocorrelation(ds - ds.mean(), d)
            ),
        },
    ),
}
