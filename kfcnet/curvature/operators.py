"""The Fisher matrix and its Kronecker approximation as linear operators for SciPy.

Both act on NumPy vectors (n,) in the order of theta: layer by layer, each Wbar (I, P) row-major,
so that a layer's Kronecker block is Gamma (x) Omega. Being scipy.sparse.linalg.LinearOperators
they can be handed to conjugate gradients, Lanczos or a stochastic trace estimator.
"""

import math
from collections.abc import Iterable, Mapping
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.sparse.linalg import LinearOperator

from kfcnet.curvature.block import KroneckerBlock
from kfcnet.curvature.damping import damping_shifts
from kfcnet.curvature.eigenbasis import damped_reciprocals, eigen_solve, product_eigenvalues
from kfcnet.curvature.ekfac import EigenvalueCorrectedBlock
from kfcnet.curvature.numpy_api import derivative_factor, input_factor
from kfcnet.curvature.structures import build_block
from kfcnet.network import Network
from kfcnet.ops.cpu import CpuOps
from kfcnet.ops.shapes import output_sides


class FisherOperator(LinearOperator):
    """The exact Fisher matrix of a network on a mini-batch, F + diag(weight_decay) + damping*I.

        F = (1/M) sum over examples of J^T F_R J,    J = dz/dtheta,

    with F_R the Fisher matrix of the predictive distribution, so that F is also the generalised
    Gauss-Newton matrix. A product is a tangent pass, F_R, and a backward pass. It belongs to the
    parameters that the network uses when the operator is made, and works on a copy of it. Batch
    normalisation's statistics count as constants (kfcnet/layers/normalization.py).
    """

    def __init__(
        self,
        network: Network,
        loss: Any,
        inputs: Any,
        weight_decay: ArrayLike = 0.0,
        damping: float = 0.0,
        step: int | None = None,
    ) -> None:
        """inputs: (M, H, W, C), which are not copied. weight_decay: a number for all parameters,
        or one for each (n,); ValueError for another shape.

        step: train with the dropout masks of this step and the batch's own statistics; by default
        the network is as it is in evaluation.
        """
        n = len(network.theta)
        super().__init__(network.ops.dtype, (n, n))
        self.network, self.loss, self.inputs, self.step = network.copy(), loss, inputs, step
        if np.ndim(weight_decay) == 0:
            weight_decay = np.full(n, float(weight_decay))
        if np.shape(weight_decay) != (n,):
            raise ValueError(
                f"weight_decay: shape {np.shape(weight_decay)} given; it is a number, or ({n},)"
            )
        self.weight_decay = network.ops.copy(network.ops.asarray(weight_decay))
        self.damping = damping
        self._predictive = None

    def _matvec(self, v):
        ops, network = self.network.ops, self.network
        direction, product = ops.asarray(np.ravel(v)), ops.zeros(network.theta.shape)
        predictive = self._forward()
        r = network.tangent(direction, len(self.inputs))
        network.backward(self.loss.fisher_product(predictive, r), per_example=True)
        network.compute_gradient(out=product)
        ops.multiply_add(self.weight_decay, direction, product)
        ops.axpy(self.damping, direction, product)
        return ops.to_numpy(product)

    def _forward(self):
        """The predictive distribution, from the one forward pass that all products share."""
        if self._predictive is None:  # no cached_property: its lock is one for all threads
            z = self.network.forward(self.inputs, self.step is not None, self.step or 0)
            self._predictive = self.loss.predictive(z)
        return self._predictive

    def _adjoint(self):
        return self


LAYER_KEYS = ("inputs", "derivatives", "kernel_size", "stride", "padding")


def _factors_of(number, layer):
    """(Omega, Gamma) of one layer; raises as `KroneckerFisher.from_arrays` says."""
    if not isinstance(layer, Mapping):
        kind = type(layer).__name__
        raise TypeError(f"layer {number}: expected a mapping with the key inputs, got a {kind}")
    missing = [key for key in LAYER_KEYS[:2] if key not in layer]
    unknown = [key for key in layer if key not in LAYER_KEYS]
    if missing or unknown:
        what = f"{unknown[0]}: unknown key" if unknown else f"{missing[0]}: missing"
        raise TypeError(f"layer {number}: {what}; a layer has {', '.join(LAYER_KEYS)}")
    inputs, derivatives = np.asarray(layer["inputs"]), np.asarray(layer["derivatives"])
    kernel_size, stride, padding = map(layer.get, LAYER_KEYS[2:], (1, 1, 0))
    try:
        for name, array in (("inputs", inputs), ("derivatives", derivatives)):
            if array.dtype.kind == "f" and not np.isfinite(array).all():
                raise ValueError(f"{name}: a number is not finite")
        factors = (
            input_factor(inputs, kernel_size, stride, padding),
            derivative_factor(derivatives),
        )
        sides = inputs.shape[1:3] if inputs.ndim == 4 else (1, 1)
        outputs = output_sides((1, *sides, 1), kernel_size, stride, padding)
        expected = (len(inputs), *outputs) if derivatives.ndim == 4 else (len(inputs),)
        if derivatives.shape[:-1] != expected or (derivatives.ndim == 2 and outputs != (1, 1)):
            raise ValueError(
                f"derivatives: shape {derivatives.shape} does not fit inputs of shape "
                f"{inputs.shape}; expected {(len(inputs), *outputs)} and the maps out, which are "
                "the last axis of both"
            )
    except (TypeError, ValueError) as error:
        raise type(error)(f"layer {number}: {error}") from None
    return factors


def _eigen_of(factor):
    """(values, vectors) of a factor (n, n); zero is what rounding left of it, n eps the largest."""
    values, vectors = np.linalg.eigh(factor)
    floor = len(values) * np.finfo(values.dtype).eps * values[-1]
    return np.where(values > floor, values, 0), vectors


class KroneckerFisher(LinearOperator):
    """KFC's approximation of the Fisher matrix: block-diagonal, Gamma (x) Omega for each layer.

    Everything is found from the small factors, in closed form. `factors` is a list of pairs Omega
    (P, P), Gamma (I, I), symmetric and positive semi-definite, in layer order.
    """

    def __init__(self, factors: Iterable[tuple[ArrayLike, ArrayLike]]) -> None:
        """Raises ValueError where a factor is not square or there is none, TypeError where it is
        not of floats.
        """
        self.factors = [tuple(map(np.array, pair)) for pair in factors]  # copies
        if not self.factors:
            raise ValueError("factors: none given; there must be a pair for each layer")
        for factor in (factor for pair in self.factors for factor in pair):
            if factor.ndim != 2 or factor.shape[0] != factor.shape[1]:
                raise ValueError(f"factors: one of shape {factor.shape} is not a square matrix")
        self._ends = np.cumsum([len(Omega) * len(Gamma) for Omega, Gamma in self.factors])
        dtype = np.result_type(*(factor for pair in self.factors for factor in pair))
        if dtype not in (np.float32, np.float64):
            raise TypeError(f"factors: they are {dtype}, not float32 or float64")
        super().__init__(dtype, (self._ends[-1],) * 2)
        self._ops = CpuOps(dtype, shards=1)

    @classmethod
    def from_arrays(cls, layers: Iterable[Mapping[str, Any]]) -> "KroneckerFisher":
        """From what passes through the layers of any network, in any framework: KFC's factors.

        layers: for each a mapping of
            `inputs`: activations (M, H, W, J) of a convolution, or (M, J) of a dense layer
            `derivatives`: of the pre-activations, (M, Ho, Wo, I) or (M, I), of each example's own
                loss at a target drawn from the model's predictions, not at its label
            `kernel_size`, `stride`, `padding`: of a convolution; 1, 1 and 0 by default
        Derivatives of the mean loss over a mini-batch must be multiplied by M first. Vectors are in
        the order of each layer's Wbar (I, 1 + K*K*J), row-major: the bias, then rows and columns of
        the kernel, maps in fastest.

        Raises ValueError naming the layer for shapes that do not belong together or a number that
        is not finite, TypeError for a layer that is no mapping, a key that is missing or unknown,
        and another dtype than float32 and float64.
        """
        if isinstance(layers, Mapping):
            raise TypeError(
                "layers: expected a list of mappings, one for each layer, got a mapping"
            )
        return cls([_factors_of(number, layer) for number, layer in enumerate(layers)])

    @classmethod
    def of(cls, blocks: Iterable[KroneckerBlock]) -> "KroneckerFisher":
        """From the blocks of an optimizer: copies of what they keep of their running averages.

        Raises ValueError where a block has eigenvalues of its own, and so is no Kronecker product.
        """
        blocks = list(blocks)
        for block in blocks:
            if isinstance(block, EigenvalueCorrectedBlock):
                raise ValueError(
                    f"{block.layer.name}: a block of structure ekfac is no Kronecker "
                    "product; its `matrix` is the block itself"
                )
        return cls(
            [
                [
                    block.ops.to_numpy(factor)
                    for factor in block.project(block.ops, block.Omega, block.Gamma)
                ]
                for block in blocks
            ]
        )

    @classmethod
    def estimate(
        cls, network: Network, loss: Any, inputs: Any, draws: int | None = 1
    ) -> "KroneckerFisher":
        """From a mini-batch (M, H, W, C), the mean over `draws` sampled targets of each example.

        draws: None for the expectation over the targets, without sampling: one backward pass a
        class. Raises ValueError where there is no draw.
        """
        if draws is not None and draws < 1:
            raise ValueError(f"draws: {draws} is below 1; None takes the expectation")
        blocks = [build_block("kfc", layer, network.ops) for layer in network.weighted]
        predictive = loss.predictive(network.forward(inputs))
        if draws is None:
            passes = loss.fisher_factors(predictive)
        else:
            passes = (loss.sampled_gradient(predictive, draw) for draw in range(draws))
        count = 0
        for dz in passes:
            network.backward(dz, per_example=True)
            for block in blocks:
                block.update_factors(decay=count / (count + 1))
            count += 1
        if draws is None:  # a sum over the classes, not their mean
            for block in blocks:
                block.Gamma *= count
        return cls.of(blocks)

    def _matvec(self, v):
        return self._by_layer(v, lambda V, Omega, Gamma: Gamma @ V @ Omega)

    def _adjoint(self):
        return self

    def _by_layer(self, v, function, *settings):
        """The vector of every layer's function(V (I, P), Omega, Gamma, *its settings)."""
        v = np.asarray(v)
        if v.size != self.shape[1]:
            raise ValueError(f"v: shape {v.shape} given; the operator takes ({self.shape[1]},)")
        parts = np.split(v.ravel(), self._ends[:-1])
        layers = zip(parts, self.factors, *settings, strict=True)
        return np.concatenate(
            [
                function(part.reshape(len(Gamma), len(Omega)), Omega, Gamma, *rest).ravel()
                for part, (Omega, Gamma), *rest in layers
            ]
        )

    def _for_each_layer(self, damping):
        """A number for all layers as a list, or a list as it is; ValueError for what is neither."""
        count = len(self.factors)
        if np.shape(damping) not in ((), (1,), (count,)):
            raise ValueError(
                f"damping: shape {np.shape(damping)} given; it is a number, or one for each of "
                f"{count} layers"
            )
        if not (np.isfinite(damping) & np.greater_equal(damping, 0)).all():
            raise ValueError(f"damping: {damping} is negative or not finite")
        return np.broadcast_to(damping, count).tolist()  # floats, which keep a factor's dtype

    def damped(self, damping: ArrayLike) -> "KroneckerFisher":
        """The factored Tikhonov damping of Eq. 21, itself a KroneckerFisher.

        damping: weight decay + damping, a number or one for each layer. Raises ValueError where one
        is negative.
        """
        return KroneckerFisher(
            [
                self._shifted(*pair, c)
                for pair, c in zip(self.factors, self._for_each_layer(damping), strict=True)
            ]
        )

    def _shifted(self, Omega, Gamma, c):
        shifts = damping_shifts(self._ops, Omega, Gamma, c)
        return [
            factor + shift * np.eye(len(factor), dtype=self.dtype)
            for factor, shift in zip((Omega, Gamma), shifts, strict=True)
        ]

    def inverse(self) -> "KroneckerFisher":
        """The inverse, itself a KroneckerFisher; raises numpy.linalg.LinAlgError where singular."""
        if not all(values.all() for pair in self._eigen for values, _ in pair):
            raise np.linalg.LinAlgError("a factor is singular; damp it first")
        return KroneckerFisher([tuple(map(np.linalg.inv, pair)) for pair in self.factors])

    def solve(self, v: ArrayLike, damping: ArrayLike = 0.0) -> NDArray:
        """(K + damping*I)^-1 v, the exact Tikhonov damping; a number, or one for each layer.

        Raises ValueError for a vector of another size or a negative damping,
        numpy.linalg.LinAlgError where the damped matrix is singular.
        """

        def solve(V, Omega, Gamma, eigen, values, c):
            (_, input_basis), (_, derivative_basis) = eigen
            reciprocals = damped_reciprocals(self._ops, values, c)
            return eigen_solve(self._ops, V, input_basis, derivative_basis, reciprocals)

        return self._by_layer(
            v, solve, self._eigen, self._eigenvalues, self._for_each_layer(damping)
        )

    @cached_property
    def _eigen(self):
        """((values, vectors) of Omega, (values, vectors) of Gamma) of every layer."""
        return [tuple(map(_eigen_of, pair)) for pair in self.factors]

    @cached_property
    def _eigenvalues(self):
        """Every layer's eigenvalues (I, P)."""
        return [product_eigenvalues(d_G, d_O) for (d_O, _), (d_G, _) in self._eigen]

    def eigenvalues(self) -> NDArray:
        """All n, from the smallest on: the products of one of Gamma's and one of Omega's."""
        return np.sort(np.concatenate([block.ravel() for block in self._eigenvalues]))

    def trace(self) -> float:
        """Sum over layers of tr(Omega) tr(Gamma)."""
        return float(sum(np.trace(Omega) * np.trace(Gamma) for Omega, Gamma in self.factors))

    def log_determinant(self, damping: ArrayLike = 0.0) -> float:
        """log det(K + damping*I), a number or one for each layer; -inf where singular.

        Undamped it is the sum over layers of I log det(Omega) + P log det(Gamma).
        """
        of_layers = zip(self._eigen, self._for_each_layer(damping), strict=True)
        with np.errstate(divide="ignore"):
            return float(
                sum(
                    np.log(np.multiply.outer(*map(np.float64, (d_G, d_O))) + c).sum()
                    for ((d_O, _), (d_G, _)), c in of_layers
                )
            )

    def frobenius_norm(self) -> float:
        """The root of the sum over layers of |Omega|^2 |Gamma|^2."""
        norms = [
            math.prod(float(np.linalg.norm(factor.astype(np.float64))) for factor in pair)
            for pair in self.factors
        ]
        return math.hypot(*norms)
