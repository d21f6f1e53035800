"""Small problems for optimizers that minimise a quadratic model, and that model, dense."""

import functools
import math

import networks
import numpy as np

from kfcnet.curvature import FisherOperator

SMALL = [
    dict(layer="dropout", keep=0.8),
    dict(layer="conv", filters=2, kernel=2, std=0.5),
    dict(layer="relu"),
    dict(layer="dense", units=3, std=0.5),
]
SHAPE = (3, 4, 2)

batches = functools.partial(networks.batches, shape=SHAPE)


def dense_model(opt, batch, step):
    """(g (n,), C (n, n)) of the quadratic model M before a step, from their definitions."""
    net, m = opt.network, math.ceil(opt.config.fisher_fraction * len(batch.inputs))
    fisher = FisherOperator(
        net, opt.loss, batch.inputs[:m], opt.decay_vector, opt.damping, step=step
    )
    C = fisher @ np.eye(len(net.theta))
    return objective_gradient(opt, batch, step), C


def objective_gradient(opt, batch, step):
    """g (n,), which then also stands in the network's `gradient`."""
    net = opt.network
    z = net.forward(batch.inputs, training=True, step=step)
    net.backward(opt.loss.evaluate(z, batch.targets)[1])
    net.compute_gradient()
    net.gradient += opt.decay_vector * net.theta
    return net.gradient.copy()


def objective(opt, batch, step):
    z = opt.network.forward(batch.inputs, training=True, step=step)
    penalty = opt.network.theta @ (opt.decay_vector * opt.network.theta) / 2
    return opt.loss.evaluate(z, batch.targets)[2][0] / len(z) + penalty
