"""White derivatives, the other assumption of Theorem 4."""

from kfcnet.curvature.block import KroneckerBlock
from kfcnet.curvature.matrices import identity


class WhiteDerivativesBlock(KroneckerBlock):
    """KFC, and white derivatives (WD): Gamma = (tr Gamma / I) * identity.

    The structure of projected natural gradient (Desjardins et al. 2015), which whitens each
    layer's activations; together with SUA it is Theorem 4.
    """

    def project(self, ops, Omega, Gamma):
        return Omega, identity(ops, len(Gamma)) * (ops.trace(Gamma) / len(Gamma))
