"""The structures of a layer's Fisher block: which assumptions they add to KFC's or drop.

The paper reads earlier methods as structured approximations of the Fisher matrix (its section 4.2
and appendix C). Each structure but `autocovariance` starts from the same running averages as KFC,
to which `ekfac` adds its own moments, so that a comparison shows what an assumption loses; none is
written to be cheaper than KFC.
"""

from kfcnet.curvature.autocovariance import AutocovarianceBlock
from kfcnet.curvature.block import KroneckerBlock
from kfcnet.curvature.diagonal import DiagonalBlock
from kfcnet.curvature.eigenbasis import EigenbasisBlock
from kfcnet.curvature.ekfac import EigenvalueCorrectedBlock
from kfcnet.curvature.scale_shift import ScaleShiftBlock
from kfcnet.curvature.sua import SuaBlock
from kfcnet.curvature.white_derivatives import WhiteDerivativesBlock

STRUCTURES = {
    "kfc": KroneckerBlock,
    "diagonal": DiagonalBlock,
    "sua": SuaBlock,
    "white_derivatives": WhiteDerivativesBlock,
    "ekfac": EigenvalueCorrectedBlock,
    "autocovariance": AutocovarianceBlock,
}


def build_block(structure, layer, ops, weight_decay=0.0, tikhonov="factored"):
    """The block of a weighted layer, which is exact for a learned scale and shift.

    tikhonov: "factored", or for structure "kfc" also "exact" (`EigenbasisBlock`). Raises ValueError
    for an unknown structure.
    """
    if structure not in STRUCTURES:
        raise ValueError(
            f"optimizer.structure: {structure!r} is not one of {', '.join(STRUCTURES)}"
        )
    kronecker = EigenbasisBlock if tikhonov == "exact" else STRUCTURES[structure]
    block = {"kronecker": kronecker, "scale_shift": ScaleShiftBlock}[layer.fisher_block]
    return block(layer, ops, weight_decay)
