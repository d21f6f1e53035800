"""The paper's look at its own assumptions (section 5.1, appendix D.1), on trained networks.

`correlations` measures what the assumptions are about: how derivatives and activations at two
locations, and of two maps at one location, go together. `fisher_blocks` and `distances` measure
what they cost: how far KFC, KFC without one of its assumptions, and simpler structures lie from
the exact Fisher block of a small layer. NumPy throughout, in float64.
"""

from typing import NamedTuple

import numpy as np

from kfcnet.curvature.factors import update_derivative_factor
from kfcnet.curvature.structures import STRUCTURES, build_block
from kfcnet.ops.cpu import CpuOps

CHUNK = 64  # images that are taken to float64 at a time


class Correlations(NamedTuple):
    """Correlations within a layer; a map that never varies has NaN.

    The spatial ones are [map, R + dr, R + dc] for offsets of up to R rows and columns, 1 at the
    centre; those between maps are at the same location.
    """

    derivatives: np.ndarray  # rho_s (I, 2R+1, 2R+1)
    derivative_maps: np.ndarray  # kap_s (I, I)
    activations: np.ndarray  # rho_a (J, 2R+1, 2R+1)
    activation_maps: np.ndarray  # kap_a (J, J)


def correlations(network, loss, inputs, radius, step=0):
    """{name: Correlations} of every convolution layer on inputs (M, H, W, C), as in evaluation.

    Derivatives are those of the pre-activations at targets sampled from the model (`step` chooses
    the sample), activations what the layer takes in, their means removed. radius: R, at least 0;
    in a small image half of its side, so that a quarter of the locations or more count at every
    offset, but no less than 1. All of the inputs are in memory at once.
    """
    to_numpy = network.ops.to_numpy
    predictive = loss.predictive(network.forward(inputs))
    network.backward(loss.sampled_gradient(predictive, step), per_example=True)
    result = {}
    for layer in network.weighted:
        # A dense layer has no locations.
        if layer.output_shape[:-1] and layer.fisher_block == "kronecker":
            ds, a = to_numpy(layer.derivatives), to_numpy(layer.inputs)
            centred = a - a.mean(axis=(0, 1, 2), dtype=np.float64)
            spatial_ds, spatial_a = (
                spatial_correlation(maps, min(radius, max(1, min(maps.shape[1:3]) // 2)))
                for maps in (ds, centred)
            )
            result[layer.name] = Correlations(
                spatial_ds, map_correlation(ds), spatial_a, map_correlation(centred)
            )
    return result


def spatial_correlation(maps, radius):
    """rho [map, R + dr, R + dc] of maps (M, H, W, C): the mean product of two values of a map that
    are dr rows and dc columns apart, both inside, over its mean square. Nothing is centred.

    NaN where a map vanishes, and for offsets that no two locations have.
    """
    M, H, W, C = maps.shape
    means = np.full((2 * radius + 1, 2 * radius + 1, C), np.nan)
    for dr in range(min(radius, H - 1) + 1):
        for dc in range(-min(radius, W - 1), min(radius, W - 1) + 1):
            # From (dr, dc) to the other end of the image, and as far from its beginning.
            here = maps[:, dr:, max(0, dc) : W + min(0, dc)]
            there = maps[:, : H - dr, max(0, -dc) : W - max(0, dc)]
            mean = _sum_of_products(here, there) / (M * (H - dr) * (W - abs(dc)))
            means[radius + dr, radius + dc] = means[radius - dr, radius - dc] = mean
    with np.errstate(invalid="ignore"):
        return np.moveaxis(means / means[radius, radius], -1, 0)


def _sum_of_products(x, y):
    """For every map the sum of x*y, (C,), of x and y (M, H, W, C)."""
    return sum(
        np.einsum(
            "mhwc,mhwc->c",
            x[begin : begin + CHUNK].astype(np.float64),
            y[begin : begin + CHUNK].astype(np.float64),
        )
        for begin in range(0, len(x), CHUNK)
    )


def map_correlation(maps):
    """kap (C, C) of maps (M, H, W, C): mean products at the same location, over mean squares."""
    rows = maps.reshape(-1, maps.shape[-1]).astype(np.float64)
    moments = rows.T @ rows
    with np.errstate(invalid="ignore"):
        return moments / np.sqrt(np.outer(moments.diagonal(), moments.diagonal()))


def distances(blocks):
    """{label: |block - exact| / |exact|}, Frobenius norms, of what `fisher_blocks` returned."""
    exact = blocks["exact"]
    return {
        label: float(np.linalg.norm(block - exact) / np.linalg.norm(exact))
        for label, block in blocks.items()
        if label != "exact"
    }


def fisher_blocks(network, loss, inputs, name):
    """{label: (I*P, I*P)} in theta's order: the layer `name`'s exact Fisher block, and others.

    All are for inputs (M, H, W, C) and the model's own predictive distribution, exactly: nothing is
    sampled. Labels: exact; KFC with all three assumptions, `kfc`; with two of them, `without iad`,
    `without sh`, `without sud`; with one, `iad`; and the other structures of
    kfcnet/curvature/structures.py by their names. Memory grows as (I*P)^2 and (|T|*P)^2.

    Raises ValueError where there is no such layer.
    """
    layers = {layer.name: layer for layer in network.weighted if layer.fisher_block == "kronecker"}
    if name not in layers:
        raise ValueError(f"no layer with factors is named {name!r}; there are {', '.join(layers)}")
    moments = _Moments(network, loss, inputs, layers[name])
    return {
        "exact": moments.exact(),
        "without iad": moments.without_independence(),
        "without sh": moments.without_homogeneity(),
        "without sud": moments.without_uncorrelated_derivatives(),
        "iad": moments.independent(),
        **{structure: moments.structured(structure) for structure in STRUCTURES},
    }


class _Moments:
    """Patches and derivatives of a layer, and the expectations that approximations are made of.

    `patches` (M, T, P). `derivatives` (C, M, T, I) are those along the columns of a root B of each
    example's output Fisher matrix, F_R = B B^T: the sum of their outer products over C is the
    expectation over targets.
    """

    def __init__(self, network, loss, inputs, layer):
        self.layer, self.M, self.ops = layer, len(inputs), CpuOps("float64", shards=1)
        self.grid = layer.output_shape[:-1] or (1, 1)
        I, P = layer.weight_shape
        to_numpy, derivatives = network.ops.to_numpy, []
        predictive = loss.predictive(network.forward(inputs))
        for dz in loss.fisher_factors(predictive):
            network.backward(dz, per_example=True)
            derivatives.append(to_numpy(layer.derivatives).reshape(self.M, -1, I))
        self.derivatives = np.array(derivatives, np.float64)
        self.inputs = self.ops.asarray(to_numpy(layer.inputs))
        self.patches = self.ops.patches(self.inputs, *layer.window).reshape(self.M, -1, P)

    def exact(self):
        """E[vec(DW) vec(DW)^T] for DW = the sum over t of ds_t a_t^T."""
        rows = self._gradients()
        return rows.T @ rows / self.M

    def _gradients(self):
        """vec(DW) as rows (C*M, I*P)."""
        gradients = np.einsum("cmti,mtp->cmip", self.derivatives, self.patches, optimize=True)
        return gradients.reshape(len(gradients) * self.M, -1)

    def independent(self):
        """IAD alone: the sum over t and u of E[ds_t ds_u^T] (x) E[a_t a_u^T]."""
        return _sum_of_krons(self._derivative_pairs(), self._activation_pairs())

    def _derivative_pairs(self):
        """E[ds_t ds_u^T], (T, T, I, I)."""
        ds = self.derivatives
        return np.einsum("cmti,cmuk->tuik", ds, ds, optimize=True) / self.M

    def _activation_pairs(self):
        """E[a_t a_u^T] of patches, (T, T, P, P)."""
        a = self.patches
        return np.einsum("mtp,muq->tupq", a, a, optimize=True) / self.M

    def without_homogeneity(self):
        """IAD and SUD: of the sum only u = t is left."""
        return _sum_of_krons(_same(self._derivative_pairs()), _same(self._activation_pairs()))

    def without_independence(self):
        """SUD: E of the sum over t of ds_t ds_t^T (x) a_t a_t^T, where SH has nothing to say."""
        ds, a = self.derivatives, self.patches
        return (
            _sum_of_krons(np.einsum("cmti,cmtk->mtik", ds, ds), np.einsum("mtp,mtq->mtpq", a, a))
            / self.M
        )

    def without_uncorrelated_derivatives(self):
        """IAD and SH: as IAD alone, with expectations averaged over all pairs of one offset.

        Patches are a linear map of the pixels, with a constant one before them, so that what lies
        outside of the image stays zero.
        """
        M, H, W, J = self.inputs.shape
        pixels = self.inputs.reshape(M, H * W, J)
        pairs = np.einsum("msj,mrk->srjk", pixels, pixels, optimize=True) / M
        moment = np.ones((1 + H * W * J,) * 2)
        moment[1:, 1:] = _stationary(pairs, (H, W)).transpose(0, 2, 1, 3).reshape(H * W * J, -1)
        moment[1:, 0] = moment[0, 1:] = np.tile(pixels.mean(axis=(0, 1)), H * W)
        to_patches = self._patch_matrix()
        T, P = self.patches.shape[1:]
        activation_pairs = (to_patches @ moment @ to_patches.T).reshape(T, P, T, P)
        return _sum_of_krons(
            _stationary(self._derivative_pairs(), self.grid), activation_pairs.transpose(0, 2, 1, 3)
        )

    def _patch_matrix(self):
        """(T*P, 1 + H*W*J): the patches of an image as a linear map of (1, pixels)."""
        pixels = self.inputs[0].size
        images = np.concatenate([np.zeros((1, pixels)), np.eye(pixels)])
        images = images.reshape(-1, *self.inputs.shape[1:])
        columns = self.ops.patches(images, *self.layer.window).reshape(1 + pixels, -1).T.copy()
        columns[:, 1:] -= columns[:, :1]
        return columns

    def structured(self, structure):
        """A structure's block from these moments: Theorem 2, and what the structure keeps of it."""
        block = build_block(structure, self.layer, self.ops)
        block.update_input_factor(self.inputs, 0.0)
        update_derivative_factor(self.ops, self.derivatives, 0.0, block.Gamma)
        block.Gamma *= len(self.derivatives)  # a sum over the columns of B, not a mean
        if structure == "ekfac":
            _, block.input_basis = np.linalg.eigh(block.Omega)
            _, block.derivative_basis = np.linalg.eigh(block.Gamma)
            basis = np.kron(block.derivative_basis, block.input_basis)
            moments = np.square(self._gradients() @ basis).sum(axis=0) / self.M
            block.moments = moments.reshape(block.moments.shape)
        return block.matrix()


def _sum_of_krons(left, right):
    """The sum over their leading axes of left (..., I, I) (x) right (..., P, P)."""
    I, P = left.shape[-1], right.shape[-1]
    total = left.reshape(-1, I * I).T @ right.reshape(-1, P * P)
    return total.reshape(I, I, P, P).transpose(0, 2, 1, 3).reshape(I * P, I * P)


def _same(pairs):
    """Of pairs (T, T, ...) those of a location with itself, (T, ...)."""
    return pairs[np.arange(len(pairs)), np.arange(len(pairs))]


def _stationary(pairs, grid):
    """Pairs (T, T, a, b) of locations of a grid (H, W), each the mean of all of its offset."""
    H, W = grid
    rows, columns = np.divmod(np.arange(H * W), W)
    apart = (rows - rows[:, None] + H - 1) * (2 * W - 1) + columns - columns[:, None] + W - 1
    sums = np.zeros(((2 * H - 1) * (2 * W - 1), *pairs.shape[2:]))
    np.add.at(sums, apart, pairs)
    counts = np.bincount(apart.ravel(), minlength=len(sums))
    return (sums / counts[:, None, None])[apart]
