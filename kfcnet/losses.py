"""Losses as negative log-likelihoods: the model's predictive distribution is what the Fisher needs.

Gradients are those of each example's own loss, never divided by M.
"""

from typing import Any, NamedTuple

import numpy as np

from kfcnet import philox


class Evaluated(NamedTuple):
    """A loss at the logits z (M, C) of a mini-batch, all of it on the device.

    predictive (M, C): the model's distribution; dz (M, C): derivatives of each example's loss;
    totals (2,): the sum of the losses in nats, and that of the examples' errors: how many
    predictions are wrong, or the mean square of what the outputs miss.
    """

    predictive: Any
    dz: Any
    totals: Any


class SoftmaxCrossEntropy:
    """-log softmax(z)[label]; the predictive distribution is categorical with p = softmax(z)."""

    def __init__(self, ops, seed=0):
        self.ops, self.seed = ops, seed

    def evaluate(self, z, labels):
        """z (M, C), labels int32 (M,) -> Evaluated, `predictive` being p."""
        return Evaluated(*self.ops.softmax_cross_entropy(z, labels))

    def predictive(self, z):
        """softmax(z), which needs no labels."""
        return self.evaluate(z, np.zeros(len(z), np.int32)).predictive

    def sampled_gradient(self, p, step):
        """dz (M, C) at classes drawn from p, not the labels: the Fisher, not the empirical one."""
        uniforms = self.ops.uniforms(len(p), self.seed, philox.TARGETS, step)
        return self.ops.sampled_gradient(p, uniforms)

    def fisher_factors(self, p):
        """Arrays dz (M, C) whose outer products sum to F_R = diag(p) - p p^T, one a class."""
        p = self.ops.to_numpy(p)
        for label in range(p.shape[1]):
            dz = p.copy()
            dz[:, label] -= 1
            yield self.ops.asarray(np.sqrt(p[:, label, None]) * dz)

    def fisher_form(self, p, r, s, scale):
        """scale * sum over examples of r^T F_R s, F_R = diag(p) - p p^T; r, s (m, C): (1,)."""
        return self.ops.softmax_fisher(p, r, s, scale)

    def fisher_product(self, p, r):
        """F_R r of every example, (m, C)."""
        return self.ops.softmax_fisher_product(p, r)


class SquaredError:
    """|z - y|^2 / 2 summed over outputs; the predictive distribution is Gaussian, N(z, I)."""

    def __init__(self, ops, seed=0):
        self.ops, self.seed = ops, seed

    def evaluate(self, z, targets):
        """z (M, C), targets (M, C) -> Evaluated: z, z - y, and |z - y|^2 / C as an error.

        For targets of variance one that is the share of their variance that is missed. Raises
        ValueError for targets of another shape.
        """
        if np.shape(targets) != z.shape:
            raise ValueError(
                f"targets have shape {np.shape(targets)}; there is one for each output, {z.shape}"
            )
        dz = self.ops.copy(z)
        self.ops.axpy(-1.0, targets, dz)
        squares, totals = self.ops.dot(dz, dz), self.ops.zeros((2,))
        self.ops.axpy(0.5, squares, totals[:1])
        self.ops.axpy(1 / z.shape[1], squares, totals[1:])
        return Evaluated(z, dz, totals)

    def predictive(self, z):
        """The mean of N(z, I)."""
        return z

    def sampled_gradient(self, z, step):
        """dz (M, C) at targets drawn from N(z, I): standard normals."""
        noise = self.ops.normals(z.size, self.seed, philox.TARGETS, step, width=z.shape[1])
        return noise.reshape(z.shape)

    def fisher_factors(self, z):
        """Arrays dz (M, C) whose outer products sum to F_R, the identity, one an output."""
        M, C = z.shape
        for output in range(C):
            dz = np.zeros((M, C))
            dz[:, output] = 1
            yield self.ops.asarray(dz)

    def fisher_form(self, z, r, s, scale):
        """scale * sum over examples of r^T s: the Fisher matrix of the outputs is the identity."""
        result = self.ops.zeros((1,))
        self.ops.axpy(scale, self.ops.dot(r, s), result)
        return result

    def fisher_product(self, z, r):
        """F_R r of every example, (m, C): r itself."""
        return r


LOSSES = {"softmax_cross_entropy": SoftmaxCrossEntropy, "squared_error": SquaredError}
