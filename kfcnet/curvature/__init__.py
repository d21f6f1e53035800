"""The curvature: Kronecker factors, their running averages, damping, inverses, preconditioning.

The functions and operators of this package take and return NumPy arrays, float32 or float64, and
keep the dtype; the modules below it do the same on any device.
"""

from kfcnet.curvature.block import KroneckerBlock
from kfcnet.curvature.eigenbasis import EigenbasisBlock
from kfcnet.curvature.numpy_api import (
    damped_inverses,
    damping_floor,
    derivative_factor,
    input_factor,
    precondition,
)
from kfcnet.curvature.operators import FisherOperator, KroneckerFisher

__all__ = [
    "EigenbasisBlock",
    "FisherOperator",
    "KroneckerBlock",
    "KroneckerFisher",
    "damped_inverses",
    "damping_floor",
    "derivative_factor",
    "input_factor",
    "precondition",
]
