"""Chapter 5: an update, timescales, milestones, and the index arithmetic of a kernel."""

import numpy as np

from kfcnet.course.exercise import Exercise


def _update(theta, velocity, n, learning_rate, momentum, C, nu_of_n):
    v = -learning_rate * n
    v = v * min(1.0, np.sqrt(C / (learning_rate**2 * nu_of_n)))
    velocity = momentum * velocity + v
    return theta + velocity, velocity


def _clipped_last(theta, velocity, n, learning_rate, momentum, C, nu_of_n):
    scale = min(1.0, np.sqrt(C / (learning_rate**2 * nu_of_n)))
    velocity = scale * (momentum * velocity - learning_rate * n)
    return theta + velocity, velocity


def _without_rate_in_nu(theta, velocity, n, learning_rate, momentum, C, nu_of_n):
    return _update(theta, velocity, n, learning_rate, momentum, C, nu_of_n / learning_rate**2)


def _linear_rate_in_nu(theta, velocity, n, learning_rate, momentum, C, nu_of_n):
    return _update(theta, velocity, n, learning_rate, momentum, C, nu_of_n / learning_rate)


def _unclipped(theta, velocity, n, learning_rate, momentum, C, nu_of_n):
    return _update(theta, velocity, n, learning_rate, momentum, np.inf, nu_of_n)


def _without_root(theta, velocity, n, learning_rate, momentum, C, nu_of_n):
    v = -learning_rate * n * min(1.0, C / (learning_rate**2 * nu_of_n))
    velocity = momentum * velocity + v
    return theta + velocity, velocity


def _uphill(theta, velocity, n, learning_rate, momentum, C, nu_of_n):
    return _update(theta, velocity, -n, learning_rate, momentum, C, nu_of_n)


def _without_momentum(theta, velocity, n, learning_rate, momentum, C, nu_of_n):
    return _update(theta, velocity, n, learning_rate, 0.0, C, nu_of_n)


def _moved_by_the_step(theta, velocity, n, learning_rate, momentum, C, nu_of_n):
    _, after = _update(theta, velocity, n, learning_rate, momentum, C, nu_of_n)
    return theta + after - momentum * velocity, after


def _moved_first(theta, velocity, n, learning_rate, momentum, C, nu_of_n):
    _, after = _update(theta, velocity, n, learning_rate, momentum, C, nu_of_n)
    return theta + velocity, after


def _weighted_average(theta, velocity, n, learning_rate, momentum, C, nu_of_n):
    v = -learning_rate * n * min(1.0, np.sqrt(C / (learning_rate**2 * nu_of_n)))
    velocity = momentum * velocity + (1 - momentum) * v
    return theta + velocity, velocity


def _update_cases(rng):
    settings = (4, 0.5, 0.9, 0.3, 7.0), (4, 0.5, 0.9, 0.3, 1e-3), (3, 0.2, 0.6, 0.05, 4.0)
    names = "learning_rate", "momentum", "C", "nu_of_n"
    return [
        {name: rng.normal(size=size) for name in ("theta", "velocity", "n")}
        | dict(zip(names, values, strict=True))
        for size, *values in settings
    ]


def _decay_cases(rng):
    return [
        {"batch_size": M, "period": period, "timescale": timescale}
        for M, period, timescale in (
            (512, 1, 50000.0),
            (512, 5, 50000.0),
            (512, 20, 50000.0),
            (128, 2, 10000.0),
        )
    ]


def _first_cases(rng):
    updates = np.array([0, 10, 20, 30, 40, 50])
    errors = np.array([0.9, 0.4, 0.2, 0.25, 0.1, 0.15])
    whole = [{"updates": updates, "errors": errors, "level": level} for level in (0.3, 0.2, 0.05)]
    return [*whole, {"updates": 3 * updates[:4], "errors": errors[:4] ** 2, "level": 0.05}]


def _at(updates, reached):
    return updates[np.argmax(reached)] if reached.any() else np.inf


def _patch_cases(rng):
    x, other = rng.normal(size=(2, 4, 5, 2)), rng.normal(size=(3, 5, 3, 1))
    inside = (0, 0), (7, 0), (0, 1), (7, 6), (19, 18), (33, 11), (12, 4), (26, 9)
    outside = (5, 7), (4, 11), (2, 3), (16, 15)  # left, right, above and below alone
    of_five = (0, 0), (7, 15), (22, 7), (44, 13)
    return [
        {"x": images, "row": row, "column": column, "K": K}
        for images, entries, K in ((x, inside, 3), (x, outside, 3), (other, of_five, 5))
        for row, column in entries
    ]


def _place(x, row, column, K, padding=None, swapped=False, sign=1):
    """(m, h, w, j): where in x an element of the patch matrix comes from, inside or outside."""
    _, H, W, J = x.shape
    padding = K // 2 if padding is None else padding
    delta, j = divmod(column - 1, J)
    if swapped:
        j, delta = divmod(column - 1, K * K)
    m, t = divmod(row, H * W)
    h, w = divmod(t, W)
    return m, h + sign * (delta // K - padding), w + sign * (delta % K - padding), j


def _patch_element(x, row, column, K, guarded=(1, 2), **changes):
    """An element of the patch matrix; guarded: the axes along which there are zeros outside."""
    if column == 0:
        return 1.0
    place = _place(x, row, column, K, **changes)
    return x[place] if all(0 <= place[axis] < x.shape[axis] for axis in guarded) else 0.0


def _wrapped(x, row, column, K):
    if column == 0:
        return 1.0
    m, h, w, j = _place(x, row, column, K)
    return x[m, h % x.shape[1], w % x.shape[2], j]


def _without_the_one(x, row, column, K):
    """Column `column` of the patch matrix without its homogeneous column."""
    last = K * K * x.shape[3]
    return _patch_element(x, row, min(column + 1, last), K)


def _thread_cases(rng):
    return [
        {"thread": thread, "tile_row": row, "tile_column": column, "TILE": TILE, "side": side}
        for thread, row, column, TILE, side in (
            (0, 0, 1, 16, 4),
            (5, 1, 3, 16, 4),
            (14, 2, 2, 32, 8),
            (7, 1, 2, 8, 2),
        )
    ]


def _entry(thread, tile_row, tile_column, TILE, side):
    row, column = divmod(thread, TILE // side)
    return tile_row * TILE + row * side, tile_column * TILE + column * side


def _threads_down_the_columns(thread, tile_row, tile_column, TILE, side):
    column, row = divmod(thread, TILE // side)
    return tile_row * TILE + row * side, tile_column * TILE + column * side


def _threads_of_one_entry(thread, tile_row, tile_column, TILE, side):
    row, column = divmod(thread, TILE // side)
    return tile_row * TILE + row, tile_column * TILE + column


def _threads_in_rows_of_entries(thread, tile_row, tile_column, TILE, side):
    row, column = divmod(thread, TILE)
    return tile_row * TILE + row * side, tile_column * TILE + column * side


EXERCISES = {
    "5.1": Exercise(
        _update_cases,
        _update,
        {
            "The clip comes after the momentum; it belongs before it.": _clipped_last,
            "nu is that of n, not of the step: v = -alpha n, so nu has an alpha^2.": (
                _without_rate_in_nu
            ),
            "nu is quadratic in the step: it has alpha^2, not alpha.": _linear_rate_in_nu,
            "The clip is missing.": _unclipped,
            "The clip has lost its root: nu is quadratic in the step.": _without_root,
            "The sign is wrong: this step goes uphill.": _uphill,
            "The momentum is missing: the old velocity has no part in the new one.": (
                _without_momentum
            ),
            "The parameters move by v alone; they move by the velocity.": _moved_by_the_step,
            "The two results are exchanged: return the new theta first.": (
                lambda **arguments: _update(**arguments)[::-1]
            ),
            "The parameters move by the old velocity.": _moved_first,
            "The step is multiplied by 1 - mu; here the velocity is a sum, not an average.": (
                _weighted_average
            ),
        },
    ),
    "5.2": Exercise(
        _decay_cases,
        lambda batch_size, period, timescale: np.exp(-period * batch_size / timescale),
        {
            "The period is missing: several mini-batches pass between two statistics.": (
                lambda batch_size, period, timescale: np.exp(-batch_size / timescale)
            ),
            "The timescale is counted in updates; it is in examples.": (
                lambda batch_size, period, timescale: np.exp(-period / timescale)
            ),
            "The sign of the exponent is wrong: a weight is at most 1.": (
                lambda batch_size, period, timescale: np.exp(period * batch_size / timescale)
            ),
            "This is the weight of what is new; asked for is the weight of what is old.": (
                lambda batch_size, period, timescale: 1 - np.exp(-period * batch_size / timescale)
            ),
            "The exponential is replaced by its first two terms.": (
                lambda batch_size, period, timescale: 1 - period * batch_size / timescale
            ),
        },
    ),
    "5.3": Exercise(
        _first_cases,
        lambda updates, errors, level: _at(updates, errors <= level),
        {
            "A curve that never comes to the level has no update: return infinity.": (
                lambda updates, errors, level: updates[np.argmax(errors <= level)]
            ),
            "A curve that never comes to the level has no first entry: return infinity.": (
                lambda updates, errors, level: updates[errors <= level][0]
            ),
            "This is where the curve was at the level last; asked for is the first time.": (
                lambda updates, errors, level: _at(updates[::-1], (errors <= level)[::-1])
            ),
            "This is the place in the array; asked for is the number of updates.": (
                lambda updates, errors, level: _at(np.arange(len(updates)), errors <= level)
            ),
            "This is where the error is lowest, not where it first comes to the level.": (
                lambda updates, errors, level: (
                    updates[np.argmin(errors)] if errors.min() <= level else np.inf
                )
            ),
            "An error equal to the level has come to it.": lambda updates, errors, level: _at(
                updates, errors < level
            ),
        },
    ),
    "5.4": Exercise(
        _patch_cases,
        lambda x, row, column, K: _patch_element(x, row, column, K),
        {
            "Columns are in the paper's order, j|Delta| + delta; here it is delta*J + j.": (
                lambda x, row, column, K: _patch_element(x, row, column, K, swapped=True)
            ),
            "The padding is missing: the patch begins at its location instead of around it.": (
                lambda x, row, column, K: _patch_element(x, row, column, K, padding=0)
            ),
            "Outside of the image there are zeros; an index below zero counts from the end.": (
                _wrapped
            ),
            "Outside of the image there are zeros; an index below zero counts from the end, and "
            "one too large raises.": (
                lambda x, row, column, K: _patch_element(x, row, column, K, guarded=())
            ),
            "Columns to the left and to the right of the image are outside, too.": (
                lambda x, row, column, K: _patch_element(x, row, column, K, guarded=(1,))
            ),
            "Rows above and below the image are outside, too.": (
                lambda x, row, column, K: _patch_element(x, row, column, K, guarded=(2,))
            ),
            "The side of the kernel is 3 here; it is given, K.": (
                lambda x, row, column, K: _patch_element(x, row, column, 3)
            ),
            "The patch is mirrored: at offset delta the input is at t + delta, not t - delta.": (
                lambda x, row, column, K: _patch_element(x, row, column, K, sign=-1)
            ),
            "Column 0 is the homogeneous one; the patch begins at column 1.": _without_the_one,
        },
    ),
    "5.5": Exercise(
        _thread_cases,
        _entry,
        {
            "Rows and columns of the threads are exchanged: neighbouring threads have neighbouring "
            "columns.": _threads_down_the_columns,
            "A thread has side x side entries: the next one begins side further.": (
                _threads_of_one_entry
            ),
            "This is the place in the tile; the tile has a place in Omega, too.": (
                lambda thread, tile_row, tile_column, TILE, side: _entry(thread, 0, 0, TILE, side)
            ),
            "A row of the tile has TILE / side threads, not TILE.": _threads_in_rows_of_entries,
            "The side is 4 here; it is given.": (
                lambda thread, tile_row, tile_column, TILE, side: _entry(
                    thread, tile_row, tile_column, TILE, 4
                )
            ),
        },
    ),
}
