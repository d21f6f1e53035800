"""The layers: forward, backward and tangent over an `ops` object, and nothing about devices."""

from kfcnet.layers.base import Layer, Mode
from kfcnet.layers.check import LayerCheck, LayerError, check_layer
from kfcnet.layers.elementwise import Dropout, ReLU
from kfcnet.layers.normalization import BatchNorm, ResponseNorm
from kfcnet.layers.pooling import AvgPool, MaxPool
from kfcnet.layers.weighted import Conv2d, Dense, ScaleShift, Weighted

__all__ = [
    "AvgPool",
    "BatchNorm",
    "Conv2d",
    "Dense",
    "Dropout",
    "Layer",
    "LayerCheck",
    "LayerError",
    "MaxPool",
    "Mode",
    "ReLU",
    "ResponseNorm",
    "ScaleShift",
    "Weighted",
    "check_layer",
]
