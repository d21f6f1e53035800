"""What the curvature is like while a network trains, how far its model of a step holds, and how
many units are active.

The curvature is measured after an update, on the mini-batch it was made from and with that update's
dropout masks; activity on some training images that stay the same. Nothing that the run depends on
is touched: a run has the same bits with and without.
"""

import math

import numpy as np

from kfcnet.layers import Conv2d, Dense, ReLU
from kfcnet.runs.metrics import DIAGNOSTICS, LAYER_DIAGNOSTICS

BARELY = 0.01
"""A map that is active on a smaller share of its pixels counts as dead."""


def measure(optimizer, before, batch):
    """A row {column: number} about the update that an optimizer with Kronecker factors just made.

    before: theta (n,) as the update met it; batch: its mini-batch.
    """
    ops = optimizer.ops
    network = optimizer.network.copy()  # what captured graphs left in its layers stays there
    with network.using(before):
        predictive, objective, gradient = _derivatives(optimizer, network, before, batch)
        row = {
            "iteration": optimizer.steps,
            "examples": optimizer.examples,
            **_cosines(network, gradient, optimizer.direction),
            **_clip_norms(optimizer, network, predictive),
        }
        move = ops.copy(network.theta)
        ops.axpy(-1.0, before, move)
        row["predicted_reduction"] = _predicted_reduction(
            optimizer, network, predictive, gradient, move
        )
    z = network.forward(batch.inputs, training=True, step=optimizer.steps - 1)
    totals = optimizer.loss.evaluate(z, batch.targets).totals
    ops.ranks.sum(totals)
    M = ops.ranks.whole(batch.size)
    row["actual_reduction"] = objective - optimizer.objective(totals, network.theta, M)
    for block in optimizer.blocks:
        row |= {
            f"{block.layer.name}_{name}": value
            for name, value in _factors(block, optimizer.factor_damping).items()
        }
    of_layers = [f"{layer.name}_{name}" for layer in network.weighted for name in LAYER_DIAGNOSTICS]
    # Hessian-free optimization without a preconditioner has no factors.
    return {name: row.get(name, math.nan) for name in (*DIAGNOSTICS, *of_layers)}


def activity(network, examples, indices):
    """{column: number}: how active the layers are that a ReLU follows, on some of the Examples.

    indices (n,): which examples.
    """
    rectified, ranks = _rectified(network), network.ops.ranks
    active = {name: 0 for name in rectified}
    for batch in examples.batches(ranks.share(indices)):
        network.forward(batch.inputs)
        for name, layer in rectified.items():
            y = network.ops.to_numpy(layer.saved)
            active[name] += np.count_nonzero(y.reshape(-1, y.shape[-1]) > 0, axis=0)
    parts, row = ranks.allgather(active), {}
    for name, layer in rectified.items():
        pixels = len(indices) * math.prod(layer.output_shape[:-1])
        shares = sum(part[name] for part in parts) / pixels  # (J,)
        row |= {f"{name}_active": shares.mean(), f"{name}_dead": (shares < BARELY).sum()}
    return row


def _rectified(network):
    """{name: ReLU}: by the convolution or dense layer that it rectifies, else by its own name."""
    result, name = {}, None
    for layer in network.layers:
        if isinstance(layer, Conv2d | Dense):
            name = layer.name
        elif isinstance(layer, ReLU):
            result[name or layer.name], name = layer, None
    return result


def _derivatives(optimizer, network, theta, batch):
    """(predictive distributions, h, its gradient (n,)) of the mini-batch at theta."""
    z = network.forward(batch.inputs, training=True, step=optimizer.steps - 1)
    predictive, dz, totals = optimizer.loss.evaluate(z, batch.targets)
    gradient = network.ops.zeros(theta.shape)
    network.backward(dz)
    network.compute_gradient(gradient, totals)
    optimizer.add_decay(theta, gradient)
    M = network.ops.ranks.whole(batch.size)
    return predictive, optimizer.objective(totals, theta, M), gradient


def _cosines(network, gradient, direction):
    """The cosine between gradient and natural gradient, of all parameters and layer by layer."""
    ops = network.ops
    pairs = {"cosine": (gradient, direction)}
    for layer, *views in zip(
        network.weighted, network.views(gradient), network.views(direction), strict=True
    ):
        pairs[f"{layer.name}_cosine"] = [view.reshape(-1) for view in views]
    return {name: _cosine(ops, *pair) for name, pair in pairs.items()}


def _cosine(ops, x, y):
    """x.y / (|x| |y|); zero where one of them vanishes."""
    product, *squares = (_number(ops, ops.dot(a, b)) for a, b in ((x, y), (x, x), (y, y)))
    length = math.sqrt(squares[0]) * math.sqrt(squares[1])
    return product / length if length > 0 else 0.0


def _clip_norms(optimizer, network, predictive):
    """nu of the whole step, and of each layer's part of it; tangents add up."""
    ops, rate = optimizer.ops, optimizer.previous_learning_rate
    m = ops.ranks.part(getattr(optimizer.config, "clip_fraction", 1.0), len(predictive))
    together, nus = ops.zeros(predictive[:m].shape), {}
    for index, layer in enumerate(network.weighted):
        part = ops.zeros(optimizer.direction.shape)
        ops.axpy(1.0, network.views(optimizer.direction)[index], network.views(part)[index])
        tangent = network.tangent(part, m)
        ops.axpy(1.0, tangent, together)
        nus[f"{layer.name}_nu"] = rate**2 * _number(
            ops, optimizer.quadratic(predictive, tangent, optimizer.decay_form(part))
        )
    whole = optimizer.quadratic(predictive, together, optimizer.decay_form(optimizer.direction))
    return {"nu": rate**2 * _number(ops, whole), **nus}


def _predicted_reduction(optimizer, network, predictive, gradient, move):
    """-(g^T d + 1/2 d^T (F + weight decay) d) for the parameters' move d, on the mini-batch."""
    tangent = network.tangent(move, len(predictive))
    ops = optimizer.ops
    curvature = _number(ops, optimizer.quadratic(predictive, tangent, optimizer.decay_form(move)))
    return -_number(ops, ops.dot(gradient, move)) - curvature / 2


def _factors(block, damping):
    """pi, and the range of the eigenvalues of both damped factors (Eq. 21)."""
    ops = block.ops
    factors = block.project(ops, block.Omega, block.Gamma)
    pi, *shifts = block.shifts(damping)
    result = {"pi": pi}
    for name, factor, shift in zip(("Omega", "Gamma"), factors, shifts, strict=True):
        matrix = ops.to_numpy(factor).astype(np.float64)
        values = np.linalg.eigvalsh(matrix) if np.isfinite(matrix).all() else [np.nan]
        result |= {f"{name}_min": values[0] + shift, f"{name}_max": values[-1] + shift}
    return result


def _number(ops, scalar):
    return float(ops.to_numpy(scalar)[0])
