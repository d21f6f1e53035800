"""The benchmark: that it times what it says, and compares only what computes the same."""

import json
from pathlib import Path

import numpy as np
import pytest

from kfcnet.benchmarks import cpu as cpu_benchmark
from kfcnet.config import load_config
from kfcnet.network import build_network
from kfcnet.ops.cpu import CpuOps
from kfcnet.training.build import build, period

BENCHMARKS = Path(__file__).parents[1] / "results" / "benchmark"


@pytest.mark.slow
def test_the_report_has_both_steps_all_phases_and_the_epoch_ratio():
    report = cpu_benchmark.benchmark_cpu(rounds=1, native="off", shards=2)
    steps = {row["step"]: row for row in report["steps"]}
    assert steps["SGD"]["batch"] == 128 and steps["KFC-pre"]["batch"] == 512
    assert all(row["milliseconds"] > 0 for row in report["steps"])
    assert set(report["phases"]) == {
        "gradient",
        "statistics",
        "inverses",
        "preconditioning",
        "clip",
    }
    assert report["ratios"]["KFC-pre epoch / SGD epoch"] > 0
    assert "images/s" in cpu_benchmark.format_report(report)


@pytest.mark.parametrize("name", ["cpu_native", "cpu_numpy"])
def test_the_epoch_ratio_of_the_table_follows_from_its_milliseconds(name):
    record = json.loads((BENCHMARKS / f"{name}.json").read_text(encoding="utf-8"))
    table = (BENCHMARKS / f"{name}.md").read_text(encoding="utf-8")
    assert table == cpu_benchmark.markdown(record)
    rows = {line.split("|")[1].strip(): line.split("|")[2:] for line in table.splitlines()}
    (batch, ms, *_), (kfc_batch, kfc_ms, *_) = rows["SGD"], rows["KFC-pre, mean"]
    ratio = float(kfc_ms) / float(kfc_batch) / (float(ms) / float(batch))
    recorded = float(rows["ratio: KFC-pre epoch / SGD epoch"][1])
    assert ratio == pytest.approx(recorded, rel=0.03)


def test_a_period_holds_every_kind_of_step_a_whole_number_of_times():
    periods = ["optimizer.statistics_period=4", "optimizer.inverse_period=6"]
    assert period(load_config("cifar_kfc", periods)) == 12
    assert period(load_config("cifar_sgd")) == 1


def test_the_peer_network_computes_the_same_outputs_and_takes_the_same_step():
    pytest.importorskip("torch", reason="PyTorch, the peer, is not installed")
    from kfcnet.benchmarks.torch_peer import TorchPeer

    settings = ["optimizer.learning_rate=0.001", "optimizer.schedule.warm_up=0"]
    config = load_config("cifar_sgd", settings)
    ops = CpuOps("float32", shards=1)
    optimizer = build(config, ops, cpu_benchmark.INPUT_SHAPE)
    network = optimizer.network
    network.theta *= 3  # larger outputs than the tiny initial ones
    peer = TorchPeer(config, network, threads=1)
    batch = cpu_benchmark.example_batch(ops, 6)
    assert np.allclose(peer.forward(batch.inputs), network.forward(batch.inputs), rtol=1e-4)
    before = network.theta.copy()
    peer.load(batch.inputs, batch.targets)
    peer.step()
    optimizer.step(batch)
    stepped = build_network(config.network, cpu_benchmark.INPUT_SHAPE, ops)
    for module, layer in zip(peer.weighted, stepped.weighted, strict=True):
        layer.weight[...] = peer.homogeneous(module)
    moved = network.theta - before
    assert np.abs(stepped.theta - before - moved).max() < 1e-3 * np.abs(moved).max()
