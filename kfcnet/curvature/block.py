"""One layer's block of the approximate Fisher matrix."""

import contextlib
import warnings
from functools import partial

import numpy as np

from kfcnet.curvature.damping import (
    damped_inverses,
    damping_floor,
    damping_shifts,
    precondition,
    precondition_product,
    trace_norm_pi,
)
from kfcnet.curvature.factors import update_derivative_factor, update_input_factor
from kfcnet.curvature.inversion import Inversion, InversionWarning, all_finite, inverted
from kfcnet.ranks import of_all

WIDE = 2000
"""Processes share a layer's preconditioning where I + P is at least that. R of them save
2 I P (I + P) (1 - 1/R) operations each and send 8 I P (1 - 1/R) bytes more: (I + P) / 4 operations
a byte, here 500. What is below costs little beside the gradient."""


class KroneckerBlock:
    """Omega (P, P) and Gamma (I, I) of a weighted layer as running averages, and their inverses.

    The paper's KFC: activations independent of derivatives (IAD), means that are the same
    everywhere and second moments that depend on the offset between two locations only (SH),
    derivatives uncorrelated between locations (SUD).
    weight_decay: the layer's lambda. The block is damped with lambda + damping (Eq. 21), the bias
    column too although h does not decay it: a Kronecker product has one c for the layer.
    """

    FACTORS = "Omega", "Gamma"  # what an inversion starts from
    INVERSES = "Omega_inv", "Gamma_inv"  # what it leaves
    CAPTURED = True  # whether `update_factors` may be part of a captured graph

    def __init__(self, layer, ops, weight_decay=0.0):
        self.layer, self.ops, self.weight_decay = layer, ops, weight_decay
        P, I = self._sides()
        self.Omega, self.Gamma = ops.zeros((P, P)), ops.zeros((I, I))
        self._allocate_inverses(P, I)
        self.has_inverses, self.failures = False, 0

    def _sides(self):
        """Those of Omega and of Gamma."""
        return self.layer.factor_sizes

    def _allocate_inverses(self, P, I):
        self.Omega_inv, self.Gamma_inv = self.ops.zeros((P, P)), self.ops.zeros((I, I))

    def update_factors(self, decay):
        """Update the running averages with the layer's latest sampled pass, of m examples.

        Returns the arrays that processes which share the mini-batch have yet to add up.
        """
        derivatives = self.layer.derivatives
        self.update_input_factor(self.layer.inputs[: len(derivatives)], decay)
        update_derivative_factor(self.ops, derivatives, decay, self.Gamma)
        return [self.Omega, self.Gamma]

    def update_input_factor(self, inputs, decay):
        """Update Omega alone, with inputs (m, H, W, J)."""
        update_input_factor(self.ops, inputs, self.layer.window, decay, self.Omega)

    def update_inverses(self, damping, step=None):
        """Invert the damped factors; where that fails, warn and keep the last good inverses.

        step: said in the warning. Raises numpy.linalg.LinAlgError naming the layer where there are
        no inverses to keep.
        """
        self.adopt(self.take_inverses(self.inversion(damping)), step)

    def inversion(self, damping):
        """The Inversion of the present factors, not begun."""
        return Inversion(self.total_damping(damping), self._factors(), None)

    def begin_inversion(self, damping, on_host, factors=None):
        """Start an Inversion, by default of the present factors, that runs beside training."""
        c = self.total_damping(damping)
        pending = self.ops.submit(
            partial(self.invert, c), *(factors or self._factors()), on_host=on_host
        )
        return Inversion(c, pending.inputs, pending.result)

    def inversion_elsewhere(self, damping, factors=None):
        """An Inversion that another process does: what `begin_inversion` would begin with."""
        arrays = [self.ops.copy(array) for array in factors or self._factors()]
        return Inversion(self.total_damping(damping), arrays, None)

    def take_inverses(self, inversion):
        """Take over the inverses of an Inversion; where it failed a text that says how, or None.

        Raises no LinAlgError: of several processes only one may be here.
        """
        try:
            inverses = self._inverses(inversion)
        except np.linalg.LinAlgError as error:
            return self._failure(error, inversion.c)
        # Into the same memory: a captured graph goes on reading it.
        for inverse, new in zip(self.inverses(), inverses, strict=True):
            self.ops.write(inverse, new)
        return None

    def adopt(self, failure, step=None):
        """Go on with the inverses that `take_inverses` left.

        failure: what it returned, the same in all processes that share a mini-batch. Where it is a
        text, warn and keep the last good inverses, or raise numpy.linalg.LinAlgError where there
        are none. step: said in the warning.
        """
        if failure is None:
            self.has_inverses = True
        elif not self.has_inverses:
            raise of_all(np.linalg.LinAlgError(failure))
        else:
            self._warn("" if step is None else f"step {step}, ", failure)

    @property
    def inverts_factors(self):
        """Whether the inverses are those of the damped factors as they stand (Eq. 21)."""
        kind = type(self)
        return (kind.invert, kind.project) == (KroneckerBlock.invert, KroneckerBlock.project)

    def place(self, name, array):
        """Let one of the FACTORS or INVERSES lie in an array of its shape, with its contents."""
        self.ops.write(array, getattr(self, name))
        setattr(self, name, array)

    def tell_failures(self, count, damping, step):
        """Warn of `count` more inversions that failed within captured steps, before `step`."""
        if count:
            error = "matrix is not positive definite after damping"
            failure = self._failure(error, self.total_damping(damping))
        for _ in range(count):
            self._warn(f"before step {step}, ", failure)

    def inverses(self):
        """The arrays that INVERSES names."""
        return [getattr(self, name) for name in self.INVERSES]

    def _warn(self, at, text):
        """Warn of the 1st, 10th, 100th, ... inversion that failed: the others say nothing new."""
        self.failures += 1
        if str(self.failures).strip("0") == "1":
            count = f", failure {self.failures} of this layer" if self.failures > 1 else ""
            warnings.warn(
                f"{at}{text}; the last good inverses stay{count}", InversionWarning, stacklevel=4
            )

    def _inverses(self, inversion):
        if inversion.result is not None:
            with contextlib.suppress(np.linalg.LinAlgError):
                return inversion.result()
        factors = dict(zip(self.FACTORS, inversion.factors, strict=True))
        return inverted(self.ops, partial(self.invert, inversion.c), factors)

    def total_damping(self, damping):
        """c of Eq. 21: the layer's weight decay lambda, and gamma."""
        return self.weight_decay + damping

    def _factors(self):
        return [getattr(self, name) for name in self.FACTORS]

    def invert(self, c, ops, Omega, Gamma):
        """The arrays of INVERSES from those of FACTORS, on any device; c = weight decay + damping.

        Raises numpy.linalg.LinAlgError where a damped factor is not positive definite.
        """
        return damped_inverses(ops, *self.project(ops, Omega, Gamma), c)

    def project(self, ops, Omega, Gamma):
        """The factors of this structure, which may keep less than KFC's own."""
        return Omega, Gamma

    def _failure(self, error, c):
        """A text on an inversion that failed: the error, and the eigenvalues if they converge."""
        diagnosis = ""
        with contextlib.suppress(np.linalg.LinAlgError):
            diagnosis = self._diagnosis(c)
        return f"{self.layer.name}: {error}{diagnosis}"

    def _diagnosis(self, c):
        """A text on factors that cannot be inverted: their eigenvalues, and the damping to take."""
        if not (all_finite(self.ops, self.Omega) and all_finite(self.ops, self.Gamma)):
            return ""
        factors = self.project(self.ops, self.Omega, self.Gamma)
        floor, (input_value, derivative_value) = self._damping_floor(*factors)
        return (
            f": smallest eigenvalue of Omega {input_value:.3g}, of Gamma "
            f"{derivative_value:.3g}; weight decay + damping is {c:.3g}, from {floor:.3g} on "
            f"it is safe in {self.ops.dtype.name}"
        )

    def _damping_floor(self, Omega, Gamma):
        """(the least weight decay + damping that is safe, smallest eigenvalues of the two)."""
        return damping_floor(self.ops, Omega, Gamma)

    def precondition(self, gradient, out=None):
        """The block's share of the natural gradient (Eq. 22): (I, P) -> (I, P)."""
        return precondition(self.ops, gradient, self.Omega_inv, self.Gamma_inv, out)

    def natural_gradient(self, gradient, out):
        """out (I, P): `precondition` of the gradient of h that the latest backward pass gave.

        A dense layer's gradient is made of m rows. Where these are few, and h does not decay the
        layer, preconditioning the rows takes fewer operations than preconditioning the product.
        Where processes share a mini-batch, each has only its own rows, but all of the product.
        """
        I, P = gradient.shape
        rows = self.layer.examples * self.layer.locations
        of_rows, of_product = rows * (I * I + P * P + I * P), I * P * (I + P)
        has_plain_rows = self.layer.locations == 1 and not self.weight_decay
        is_alone = self.ops.ranks.count == 1
        if not (self.is_product and has_plain_rows and is_alone and of_rows < of_product):
            return self.precondition(gradient, out)
        return precondition_product(
            self.ops,
            self.layer.derivatives.reshape(rows, I),
            self.ops.patches(self.layer.inputs[:rows], *self.layer.window),
            self.Omega_inv,
            self.Gamma_inv,
            out,
        )

    @property
    def is_shared(self):
        """Whether processes share the preconditioning, by rows: see WIDE."""
        I, P = self.layer.weight_shape
        return 1 < self.ops.ranks.count <= I and I + P >= WIDE and self.is_product

    @property
    def is_product(self):
        """Whether the inverse is Gamma_inv (x) Omega_inv, so that its factors can act apart."""
        return type(self).precondition is KroneckerBlock.precondition

    def precondition_rows(self, gradient, out):
        """out (I, P): this process's rows of `precondition`, the others zero: the whole is the sum
        over processes.
        """
        begin, end = self.ops.ranks.rows(len(out))
        self.ops.write(out, 0.0)
        precondition(self.ops, gradient, self.Omega_inv, self.Gamma_inv[begin:end], out[begin:end])

    def shifts(self, damping):
        """(pi, what Eq. 21 adds to Omega's diagonal, to Gamma's): floats."""
        ops = self.ops
        factors = self.project(ops, self.Omega, self.Gamma)
        scalars = (
            trace_norm_pi(ops, *factors),
            *damping_shifts(ops, *factors, self.total_damping(damping)),
        )
        return tuple(float(ops.to_numpy(scalar)[0]) for scalar in scalars)

    def matrix(self):
        """The block (I*P, I*P) in theta's order, undamped, as a NumPy array; for small layers."""
        Omega, Gamma = map(self.ops.to_numpy, self.project(self.ops, self.Omega, self.Gamma))
        return np.kron(Gamma, Omega)

    def state(self):
        return {
            name: self.ops.to_numpy(getattr(self, name)).copy()
            for name in dict.fromkeys(self.FACTORS + self.INVERSES)
        }

    def load_state(self, state):
        for name in dict.fromkeys(self.FACTORS + self.INVERSES):
            self.ops.write(getattr(self, name), state[name])
        # Of a state from before the first inversion they are still zero.
        self.has_inverses = any(np.any(state[name]) for name in self.INVERSES)
