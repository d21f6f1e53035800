"""Derivatives of different weights uncorrelated: the diagonal of KFC's block."""

from kfcnet.curvature.block import KroneckerBlock
from kfcnet.curvature.matrices import hadamard, identity


class DiagonalBlock(KroneckerBlock):
    """KFC, and derivatives of different weights uncorrelated: diag(Omega) and diag(Gamma).

    The co-ordinatewise methods' structure (LeCun et al. 1998, Adagrad, RMSProp, Adam).
    """

    def project(self, ops, Omega, Gamma):
        return tuple(hadamard(ops, identity(ops, len(factor)), factor) for factor in (Omega, Gamma))
