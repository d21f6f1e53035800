"""A network as a module of PyTorch, where PyTorch is installed; nothing else imports this."""

import torch
from numpy.typing import NDArray
from torch import nn
from torch.nn import functional

from kfcnet.layers import (
    AvgPool,
    BatchNorm,
    Conv2d,
    Dense,
    Dropout,
    Layer,
    MaxPool,
    ReLU,
    ResponseNorm,
    ScaleShift,
)
from kfcnet.network import Network
from kfcnet.training.exports.arrays import layer_arrays


class ResponseNorm2d(nn.Module):
    """x (1 + scale * mean of x^2 over the neighbourhood)^-power, its mean by average pooling.

    The neighbourhood, of `size` x `size` pixels or `size` maps, starts at -(size // 2).
    """

    def __init__(self, size, scale, power, across=False):
        super().__init__()
        self.size, self.scale, self.power, self.across = size, scale, power, across

    def forward(self, x):
        before = self.size // 2
        after = self.size - 1 - before
        if self.across:
            squares = functional.pad((x * x).unsqueeze(1), (0, 0, 0, 0, before, after))
            mean = functional.avg_pool3d(squares, (self.size, 1, 1), stride=1).squeeze(1)
        elif before == after:
            mean = functional.avg_pool2d(x * x, self.size, stride=1, padding=before)
        else:
            squares = functional.pad(x * x, (before, after, before, after))
            mean = functional.avg_pool2d(squares, self.size, stride=1)
        return x * (1 + self.scale * mean).pow(-self.power)


class ChannelsLast(nn.Module):
    """NCHW -> NHWC, the order in which our dense layers flatten."""

    def forward(self, x):
        return x.permute(0, 2, 3, 1) if x.ndim == 4 else x


class MapScale(nn.Module):
    """shift + scale * x, map by map."""

    def __init__(self, scale, shift):
        super().__init__()
        self.scale, self.shift = nn.Parameter(scale), nn.Parameter(shift)

    def forward(self, x):
        shape = (1, -1, *(1,) * (x.ndim - 2))
        return self.shift.reshape(shape) + self.scale.reshape(shape) * x


class RawImages(nn.Module):
    """Images (M, H, W, C) as the data set has them -> what the first layer takes, (M, C, H, W)."""

    def __init__(self, mean, input_scale):
        super().__init__()
        self.register_buffer("mean", mean)
        self.input_scale = input_scale

    def forward(self, images):
        x = (images.to(self.mean.dtype) - self.mean) / self.input_scale
        return x.permute(0, 3, 1, 2)


def to_torch(network: Network, mean: NDArray, input_scale: float) -> nn.Sequential:
    """A module that takes images (M, H, W, C) as the data set has them and gives logits.

    mean (H, W, C) and input_scale: inputs are (images - mean) / input_scale. Raises ValueError
    naming a layer that PyTorch's module cannot have: a custom one.
    """
    modules = [RawImages(torch.from_numpy(mean.copy()), float(input_scale))]
    for layer in network.layers:
        modules += _modules(layer)
    model = nn.Sequential(*modules).eval()
    return model.to(getattr(torch, network.ops.dtype.name))


def _modules(layer: Layer) -> list[nn.Module]:
    tensors = {part: torch.from_numpy(array) for part, array in layer_arrays(layer).items()}
    if isinstance(layer, Dense):
        module = nn.Linear(tensors["weight"][0].numel(), len(tensors["bias"]))
        _fill(module, tensors["weight"].flatten(1), tensors["bias"])
        return [ChannelsLast(), nn.Flatten(), module]
    if isinstance(layer, Conv2d):
        I, kernel, _, J = tensors["weight"].shape
        module = nn.Conv2d(J, I, *layer.window)
        _fill(module, tensors["weight"].permute(0, 3, 1, 2), tensors["bias"])
        return [module]
    if isinstance(layer, ReLU):
        return [nn.ReLU()]
    if isinstance(layer, MaxPool | AvgPool):
        size, stride = layer.window
        sides = tuple(min(size, side) for side in layer.input_shape[:2])
        pool = nn.MaxPool2d if isinstance(layer, MaxPool) else nn.AvgPool2d
        return [pool(sides, stride, ceil_mode=layer.clipped)]
    if isinstance(layer, ResponseNorm):
        size, alpha, power, across = layer.parameters
        return [ResponseNorm2d(size, alpha * (size if across else size**2), power, across)]
    if isinstance(layer, BatchNorm):
        if not tensors:
            raise ValueError(f"{layer.name}: its statistics for evaluation were never measured")
        mean, inv_std = tensors["mean"], tensors["inv_std"]
        return [MapScale(inv_std, -mean * inv_std)]
    if isinstance(layer, ScaleShift):
        return [MapScale(tensors["scale"], tensors["shift"])]
    if isinstance(layer, Dropout):
        return [nn.Dropout(1 - layer.keep)]
    raise ValueError(f"{layer.name}: PyTorch has no layer like {type(layer).__name__}")


def _fill(module, weight, bias):
    with torch.no_grad():
        module.weight.copy_(weight)
        module.bias.copy_(bias)
