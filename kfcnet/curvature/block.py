"""One layer's block of the approximate Fisher matrix."""

import warnings

import numpy as np

from kfcnet.curvature.damping import damped_inverses, precondition
from kfcnet.curvature.factors import update_derivative_factor, update_input_factor
from kfcnet.curvature.robust import InversionWarning, all_finite, damping_floor, inverted


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
    RECORDABLE = True  # whether `update_factors` does the same every time, with the same memory

    def __init__(self, layer, ops, weight_decay=0.0):
        I, P = layer.weight_shape
        self.layer, self.ops, self.weight_decay = layer, ops, weight_decay
        self.Omega, self.Gamma = ops.zeros((P, P)), ops.zeros((I, I))
        self.Omega_inv, self.Gamma_inv = ops.zeros((P, P)), ops.zeros((I, I))
        self.has_inverses = False

    def update_factors(self, decay):
        """Fold in the layer's latest sampled pass; its m examples also choose the activations."""
        derivatives = self.layer.output_gradients
        inputs = self.layer.inputs[: len(derivatives)]
        update_input_factor(self.ops, inputs, self.layer.window, decay, self.Omega)
        update_derivative_factor(self.ops, derivatives, decay, self.Gamma)

    def update_inverses(self, damping, step=None):
        """Invert the damped factors; where that fails, warn and keep the last good inverses.

        step: said in the warning. Raises numpy.linalg.LinAlgError naming the layer where there are
        no inverses to keep.
        """
        factors = [getattr(self, name) for name in self.FACTORS]
        self._take(lambda: self._inverted(factors, damping), damping, step)

    def begin_inverses(self, damping, on_host, factors=None):
        """Start inverting the factors, by default those of now; a Pending for `take_inverses`."""
        c = self.weight_decay + damping
        factors = factors or [getattr(self, name) for name in self.FACTORS]
        return self.ops.begin(
            lambda ops, *arrays: self.invert(ops, c, *arrays), *factors, on_host=on_host
        )

    def take_inverses(self, pending, damping, step=None):
        """Adopt what `begin_inverses` began; where it failed, what `update_inverses` would do."""

        def result():
            try:
                return pending.result()
            except np.linalg.LinAlgError:
                return self._inverted(pending.inputs, damping)

        self._take(result, damping, step)

    def _inverted(self, factors, damping):
        c = self.weight_decay + damping
        return inverted(
            self.ops,
            lambda ops, *arrays: self.invert(ops, c, *arrays),
            dict(zip(self.FACTORS, factors, strict=True)),
        )

    def _take(self, result, damping, step):
        try:
            inverses = result()
        except np.linalg.LinAlgError as error:
            text = f"{self.layer.name}: {error}{self._diagnosis(self.weight_decay + damping)}"
            if not self.has_inverses:
                raise np.linalg.LinAlgError(text) from None
            at = "" if step is None else f"step {step}, "
            warnings.warn(
                f"{at}{text}; the last good inverses stay", InversionWarning, stacklevel=3
            )
            return
        # Into the same memory: a recorded step goes on reading it.
        for name, inverse in zip(self.INVERSES, inverses, strict=True):
            self.ops.write(getattr(self, name), inverse)
        self.has_inverses = True

    def invert(self, ops, c, Omega, Gamma):
        """The arrays of INVERSES from those of FACTORS, on any device; c = weight decay + damping.

        Raises numpy.linalg.LinAlgError where a damped factor is not positive definite.
        """
        return damped_inverses(ops, *self.project(ops, Omega, Gamma), c)

    def project(self, ops, Omega, Gamma):
        """The factors of this structure, which may keep less than KFC's own."""
        return Omega, Gamma

    def _diagnosis(self, c):
        """What is known about factors that cannot be inverted, for people."""
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
        self.has_inverses = True
