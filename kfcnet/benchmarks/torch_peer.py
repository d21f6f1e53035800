"""The same network and SGD step in PyTorch, as a good user of it would write them.

Used by the benchmark alone, where PyTorch happens to be installed; nothing else imports it.
"""

import torch
from torch import nn
from torch.nn import functional

from kfcnet.optimizers.base import by_layer
from kfcnet.training.exports.torch_module import ChannelsLast, ResponseNorm2d


def _module(layer, in_shape):
    kind = layer.layer
    if kind == "conv":
        return nn.Conv2d(in_shape[-1], layer.filters, layer.kernel, layer.stride, layer.padding)
    if kind == "dense":
        return nn.Linear(in_shape[0] * in_shape[1] * in_shape[2], layer.units)
    if kind == "relu":
        return nn.ReLU(inplace=True)
    if kind == "max_pool":
        return nn.MaxPool2d(layer.size, layer.stride, ceil_mode=layer.clipped)
    if kind == "avg_pool":
        return nn.AvgPool2d(layer.size, layer.stride, ceil_mode=layer.clipped)
    if kind == "response_norm" and not layer.across:
        return ResponseNorm2d(layer.size, layer.scale, layer.power)
    raise ValueError(f"the PyTorch peer has no layer {kind!r}")


class TorchPeer:
    """A configuration's network and its SGD step, with the parameters of one of ours."""

    def __init__(self, config, network, threads, device="cpu"):
        """Raises ValueError for a layer that the CIFAR network does not have."""
        self.device = device
        torch.set_num_threads(threads)
        modules = []
        for layer, own in zip(config.network, network.layers, strict=True):
            if layer.layer == "dense":
                modules += [ChannelsLast(), nn.Flatten()]
            shape = getattr(own, "image_shape", own.input_shape)
            modules.append(_module(layer, shape))
        self.model = nn.Sequential(*modules).to(device, memory_format=torch.channels_last)
        self.weighted = [m for m in self.model if isinstance(m, nn.Conv2d | nn.Linear)]
        with torch.no_grad():
            for module, own in zip(self.weighted, network.weighted, strict=True):
                self._copy(module, torch.from_numpy(network.ops.to_numpy(own.weight).copy()), own)
        decays = by_layer(config.optimizer, "weight_decay", network.weighted, absent=0.0)
        groups = [
            dict(params=[m.weight], weight_decay=d)
            for m, d in zip(self.weighted, decays, strict=True)
        ]
        groups.append(dict(params=[m.bias for m in self.weighted], weight_decay=0.0))
        self.optimizer = torch.optim.SGD(
            groups,
            lr=config.optimizer.learning_rate,
            momentum=config.optimizer.momentum,
            fused=device != "cpu",
        )

    @staticmethod
    def _copy(module, homogeneous, own):
        """Wbar = (b, W), offset-major, into a module's bias and (I, J, K, K) weight."""
        module.bias.copy_(homogeneous[:, 0])
        weight = homogeneous[:, 1:]
        if isinstance(module, nn.Conv2d):
            kernel = own.window[0]
            weight = weight.reshape(len(weight), kernel, kernel, -1).permute(0, 3, 1, 2)
        module.weight.copy_(weight)

    @staticmethod
    def homogeneous(module):
        """A module's parameters as our Wbar (I, P), a NumPy array."""
        weight = module.weight.detach()
        if isinstance(module, nn.Conv2d):
            weight = weight.permute(0, 2, 3, 1).reshape(len(weight), -1)
        return torch.cat([module.bias.detach()[:, None], weight], dim=1).numpy()

    def _as_tensor(self, inputs):
        x = torch.from_numpy(inputs).permute(0, 3, 1, 2)  # NHWC memory is channels_last already
        return x.contiguous(memory_format=torch.channels_last).to(self.device)

    def forward(self, inputs):
        """inputs (M, H, W, C) -> logits (M, classes), NumPy arrays."""
        with torch.no_grad():
            return self.model(self._as_tensor(inputs)).numpy()

    def load(self, inputs, labels):
        """The mini-batch that every `step` uses."""
        self.x = self._as_tensor(inputs)
        self.labels = torch.from_numpy(labels).long().to(self.device)

    def step(self):
        """Forward, backward and update."""
        self.optimizer.zero_grad(set_to_none=True)
        functional.cross_entropy(self.model(self.x), self.labels).backward()
        self.optimizer.step()
