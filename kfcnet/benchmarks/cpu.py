"""How long a training step takes: SGD and KFC-pre, by phase, and PyTorch on the same network.

Steps are timed in one process, the contestants taking turns, on synthetic images; the figures are
medians, those of KFC-pre are shown as means over whole periods. A network is compared with
PyTorch's only after both have computed the same outputs.
"""

import statistics
import time

import numpy as np

from kfcnet.batches import Batch
from kfcnet.config import load_config
from kfcnet.ops import get_ops
from kfcnet.runs.files import markdown_table
from kfcnet.training.build import build, build_model, period
from kfcnet.training.clock import Stopwatch

INPUT_SHAPE = (32, 32, 3)


class Contestant:
    """Something that takes training steps on batches of M images of its own."""

    def __init__(self, name, step, M):
        self.name, self.step, self.M = name, step, M
        self.seconds = []

    def turn(self, steps):
        """Take `steps` timed steps."""
        for _ in range(steps):
            start = time.perf_counter()
            self.step()
            self.seconds.append(time.perf_counter() - start)

    def row(self):
        """Medians: {"step", "batch", "milliseconds", "images_per_second"}."""
        median = statistics.median(self.seconds)
        return {
            "step": self.name,
            "batch": self.M,
            "milliseconds": 1e3 * median,
            "images_per_second": self.M / median,
        }


def example_batch(ops, M, seed=0, input_shape=INPUT_SHAPE):
    """M random images with CIFAR's spread of pixel values about their mean, and labels."""
    rng = np.random.default_rng(seed)
    return Batch(
        ops.asarray(rng.normal(0, 60, (M, *input_shape))), rng.integers(0, 10, M).astype(np.int32)
    )


def benchmark_cpu(sgd="cifar_sgd", kfc="cifar_kfc", rounds=5, native="auto", shards=2):
    """Rows of step times, the phases of KFC-pre, and ratios to PyTorch where it is installed.

    Returns {"device", "steps": [row], "phases": {name: milliseconds a step}, "ratios"}; a ratio is
    the median over rounds of PyTorch's time over ours, so that above one we are the faster.
    """
    ops = get_ops("cpu", "float32", shards, native)
    sgd_config, kfc_config = load_config(sgd), load_config(kfc)
    M = sgd_config.optimizer.batch_size
    batch = example_batch(ops, M)
    optimizer = build(sgd_config, ops, INPUT_SHAPE)
    ours = Contestant("SGD", lambda: optimizer.step(batch), M)
    peer = _torch_contestant(sgd_config, ops, batch)
    contestants = [ours, *([peer] if peer else [])]
    for contestant in contestants:
        contestant.turn(2)
        contestant.seconds.clear()
    ratios = []
    for _ in range(rounds):
        for contestant in contestants:
            # Let the other's worker threads fall asleep, and one step wake one's own.
            time.sleep(0.3)
            contestant.step()
            contestant.turn(4)
        if peer:
            ratios.append(
                statistics.median(peer.seconds[-4:]) / statistics.median(ours.seconds[-4:])
            )
    kfc_contestant, phases = _kfc_contestant(kfc_config, ops)
    report = {
        "device": ops.describe(),
        "steps": [c.row() for c in [*contestants, kfc_contestant]],
        "phases": phases,
        "ratios": {},
    }
    epoch = {c.name: statistics.mean(c.seconds) / c.M for c in (ours, kfc_contestant)}
    report["ratios"]["KFC-pre epoch / SGD epoch"] = epoch["KFC-pre"] / epoch["SGD"]
    if peer:
        report["ratios"]["PyTorch SGD step / ours"] = statistics.median(ratios)
    return report


def _kfc_contestant(config, ops):
    """KFC-pre over one whole period of its parts, so that every kind of step has its share."""
    M = config.optimizer.batch_size
    batch, optimizer = example_batch(ops, M), build(config, ops, INPUT_SHAPE)
    optimizer.prepare([batch])
    contestant = Contestant("KFC-pre", lambda: optimizer.step(batch), M)
    contestant.turn(2)
    contestant.seconds.clear()
    watch = Stopwatch(ops)
    optimizer.phase = watch.phase
    steps = period(config)
    contestant.turn(steps)
    watch.count()
    return contestant, {name: 1e3 * seconds / steps for name, seconds in watch.phases.items()}


def _torch_contestant(config, ops, batch):
    try:
        import torch  # noqa: F401
    except ImportError:
        return None
    from kfcnet.benchmarks.torch_peer import TorchPeer

    network, _ = build_model(config, ops, INPUT_SHAPE)
    peer = TorchPeer(config, network, threads=ops.shards)
    inputs, labels = ops.to_numpy(batch.inputs), batch.targets
    expected = ops.to_numpy(network.forward(batch.inputs))
    tolerance = 1e-5 * np.abs(expected).max()
    if not np.allclose(peer.forward(inputs), expected, rtol=1e-3, atol=tolerance):
        raise RuntimeError("PyTorch's network does not compute what ours does: nothing to compare")
    peer.load(inputs, labels)
    return Contestant("SGD in PyTorch", peer.step, len(labels))


def _shown(report):
    """The rows as they are shown: KFC-pre's is the mean of whole periods, the sum of its phases,
    since its median step is one without statistics and inverses.
    """
    rows = [dict(row) for row in report["steps"]]
    row, mean = rows[-1], sum(report["phases"].values())
    row |= {
        "step": f"{row['step']}, mean",
        "milliseconds": mean,
        "images_per_second": 1e3 * row["batch"] / mean,
    }
    return rows


def markdown(report):
    """The steps and ratios as a table in Markdown."""
    lines = [["step", "batch", "ms", "images/s"], ["---", *["---:"] * 3]]
    lines += [
        [
            row["step"],
            str(row["batch"]),
            f"{row['milliseconds']:.1f}",
            f"{row['images_per_second']:.0f}",
        ]
        for row in _shown(report)
    ]
    lines += [
        [f"ratio: {name}", "", f"{ratio:.2f}", ""] for name, ratio in report["ratios"].items()
    ]
    return markdown_table(lines)


def format_report(report):
    """The report as a text."""
    lines = [f"{key}: {value}" for key, value in report["device"].items()]
    lines += ["", f"{'step':<18}{'batch':>6}{'ms':>10}{'images/s':>11}"]
    lines += [
        f"{row['step']:<18}{row['batch']:>6}{row['milliseconds']:>10.1f}"
        f"{row['images_per_second']:>11.0f}"
        for row in _shown(report)
    ]
    lines += ["", "KFC-pre, mean milliseconds a step by phase:"]
    lines += [f"  {name:<16}{duration:>8.1f}" for name, duration in report["phases"].items()]
    lines += [f"{name}: {ratio:.2f}" for name, ratio in report["ratios"].items()]
    return "\n".join(lines)
