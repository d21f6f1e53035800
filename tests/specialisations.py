"""Which kernels, with which constants, the networks of `configs/` and everything else launch.

Found by going through the training steps with a runtime that launches nothing and writes it down.
"""

from functools import cache
from typing import NamedTuple
from unittest.mock import patch

import numpy as np

from kfcnet import network
from kfcnet.batches import Batch
from kfcnet.config import load_config, parse_config
from kfcnet.losses import LOSSES
from kfcnet.ops.cuda import CudaOps
from kfcnet.ops.cuda.dry_run import DryRun
from kfcnet.optimizers import build_optimizer
from kfcnet.optimizers.running_sums import Reading

# What the paper's networks do not use: the other layers and odd numbers of maps.
OTHER_LAYERS = """
data: {name: cifar10}
network:
  - {layer: conv, filters: 33, kernel: 3, stride: 2, padding: 1}
  - {layer: batch_norm}
  - {layer: relu}
  - {layer: response_norm, size: 5, across: true}
  - {layer: conv, filters: 24, kernel: 1}
  - {layer: response_norm, size: 3, across: true}
  - {layer: dense, units: 10}
optimizer: {name: kfc_pre, learning_rate: 0.01, max_norm: 4.0}
epochs: 1
"""
LADDER = {  # for teaching, or to be compared; the launchers take the top rungs
    "matmul_naive": dict(TRANSPOSE_A=0, TRANSPOSE_B=1, A_SHIFT=0, B_SHIFT=0),
    "matmul_tiled": dict(TRANSPOSE_A=0, TRANSPOSE_B=1, A_SHIFT=0, B_SHIFT=0, TILE=16),
    "conv_forward_naive": dict(
        HEIGHT=16,
        WIDTH=16,
        IN_MAPS=32,
        OUT_MAPS=32,
        KERNEL_SIZE=5,
        STRIDE=1,
        PADDING=2,
        OUT_HEIGHT=16,
        OUT_WIDTH=16,
        BIAS=1,
        RELU=0,
    ),
}
LADDER["conv_forward_tiled"] = LADDER["conv_forward_naive"] | dict(TILE=16)
SIDES = 76, 32, 801, 32, 801, 64, 1025, 10  # the factors of the CIFAR-10 network
LADDER["spd_inverse"] = dict(
    SIDES=",".join(map(str, SIDES)), COUNT=len(SIDES), TOTAL=sum(side**2 for side in SIDES)
)
LADDER["scale_shift"] = dict(MAPS=33)
LADDER["conv_backward_naive"] = LADDER["patches"] = LADDER["conv_forward_naive"]


class Specialisation(NamedTuple):
    """A source with its constants, and of each kernel launched (threads, dynamic shared bytes)."""

    file: str
    constants: tuple
    launches: dict


def of_config(config, tensor_cores):
    """The Specialisations of a configuration's training step and evaluation."""
    runtime = DryRun((99 if tensor_cores else 48) * 1024)
    ops = CudaOps(runtime, tensor_cores)
    _train(ops, config)
    return [
        Specialisation(file, constants, launches)
        for (file, constants), launches in runtime.launched.items()
    ]


def _train(ops, config):
    side = (32, 32, 3)
    with patch.object(network.philox, "normals", lambda *a, **k: np.zeros(a[3])):
        net = network.build_network(config.network, side, ops)
    loss = LOSSES[config.loss](ops)
    M = config.optimizer.batch_size
    images = ops.to_device(np.empty((2 * M, *side), np.uint8))
    inputs = ops.gather(images, np.zeros(M, np.int64), ops.empty(side), 1.0)
    batch = Batch(inputs, ops.take(np.zeros(2 * M, np.int32), np.zeros(M, np.int64)))
    optimizer = build_optimizer(config.optimizer, net, loss)
    optimizer.prepare([batch])
    optimizer.read_sums = lambda: Reading(0.0, 0.0, 0, 0.0, None)  # nothing was computed
    for _ in range(getattr(config.optimizer, "inverse_period", 1)):
        optimizer.step(batch)
    net.measure_statistics(inputs[:256])
    net.forward(inputs[:256])


@cache
def everything(tensor_cores):
    """All Specialisations, each once; without tensor cores none of the TF32 kernels."""
    configs = [load_config("cifar_kfc"), load_config("svhn_kfc"), parse_config(OTHER_LAYERS)]
    configs += [
        load_config("cifar_sgd", [f"optimizer={{name: {name}, learning_rate: 0.1}}"])
        for name in ("sgd", "sgd, nesterov: true", "adagrad", "rmsprop", "adam")
    ]
    found = {}
    for config in configs:
        for file, constants, launches in of_config(config, tensor_cores):
            found.setdefault((file, constants), {}).update(launches)
    for file, constants in LADDER.items():
        found[file, tuple(sorted(constants.items()))] = {}
    return [
        Specialisation(file, constants, launches)
        for (file, constants), launches in sorted(found.items())
    ]
