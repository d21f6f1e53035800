"""Which kernels, with which constants, the networks of `configs/` and everything else launch.

Found by going through the training steps with a runtime that launches nothing and writes it down.
"""

from functools import cache
from typing import NamedTuple
from unittest.mock import patch

import ladder
import numpy as np

from kfcnet import network
from kfcnet.batches import Batch
from kfcnet.config import load_config, parse_config
from kfcnet.losses import LOSSES
from kfcnet.ops.cuda import CudaOps, kernels
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
NOT_LAUNCHED = {  # for teaching, or to be compared; the launchers take the top rungs
    rung.file: rung.constants for rung in ladder.RUNGS if rung.file not in ladder.LAUNCHED
}
SIDES = 76, 32, 801, 32, 801, 64, 1025, 10  # the factors of the CIFAR-10 network
NOT_LAUNCHED["spd_inverse"] = dict(
    SIDES=",".join(map(str, SIDES)), COUNT=len(SIDES), TOTAL=sum(side**2 for side in SIDES)
)
NOT_LAUNCHED["scale_shift"] = dict(MAPS=33)
NOT_LAUNCHED["conv_backward_naive"] = NOT_LAUNCHED["conv_forward_naive"]
NOT_LAUNCHED["patches"] = NOT_LAUNCHED["conv_forward_naive"]


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
    labels, indices = np.zeros(2 * M, np.int32), np.zeros(M, np.int64)
    batch = Batch(*ops.gather(images, labels, indices, ops.empty(side), 1.0))
    optimizer = build_optimizer(config.optimizer, net, loss)
    optimizer.prepare([batch])
    optimizer.read_sums = lambda: Reading(0.0, 0.0, 0, 0.0, None)  # nothing was computed
    for _ in range(getattr(config.optimizer, "inverse_period", 1)):
        optimizer.step(batch)
    net.measure_statistics(batch.inputs[:256])
    net.forward(batch.inputs[:256])


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
    for file, constants in NOT_LAUNCHED.items():
        if tensor_cores or "mma_m16n8k8_tf32" not in kernels.source(file):
            found[file, tuple(sorted(constants.items()))] = {}
    return [
        Specialisation(file, constants, launches)
        for (file, constants), launches in sorted(found.items())
    ]
