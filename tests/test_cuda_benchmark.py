"""Timing and verification of a GPU, as far as they go without one."""

import subprocess
import sys
from pathlib import Path

import cuda_on_cpu
import numpy as np
import pytest

from kfcnet import cuda_benchmark, verification
from kfcnet.config import parse_config
from kfcnet.ops.cuda import CudaOps, is_available

pytestmark = pytest.mark.skipif(cuda_on_cpu.missing() is not None,
                                reason=str(cuda_on_cpu.missing()))
SMALL = """
data: {name: cifar10}
network:
  - {layer: conv, filters: 2, kernel: 3, stride: 2, padding: 1}
  - {layer: max_pool, size: 16, stride: 16}
  - {layer: relu}
  - {layer: dense, units: 10}
optimizer: {name: kfc_pre, learning_rate: 1e-6, batch_size: 3, statistics_period: 1,
            inverse_period: 1}
epochs: 1
"""


@pytest.fixture
def ops(monkeypatch):
    monkeypatch.setattr(cuda_benchmark, "CACHE", 0)
    return CudaOps(cuda_on_cpu.CpuRuntime())


def test_every_primitive_of_a_step_gets_a_row_of_finite_rates(ops):
    rows = cuda_benchmark.primitive_rows(ops, parse_config(SMALL), replays=1)
    called = {row["call"].split()[0] for row in rows}
    assert {"conv_forward", "conv_backward_weights", "max_pool", "relu", "patch_gram", "gram",
            "matmul", "softmax_cross_entropy", "momentum_update"} <= called
    assert len({row["call"] for row in rows}) == len(rows)
    for row in rows:
        numbers = [row[key] for key in ("microseconds", "TFLOP_s", "GB_s")]
        assert np.isfinite(numbers).all() and row["microseconds"] > 0


def test_operations_count_a_multiply_add_as_two(ops):
    x, weight, dy = ops.zeros((3, 5, 4, 2)), ops.zeros((7, 19)), ops.zeros((3, 5, 4, 7))
    forward = cuda_benchmark.Call(ops, "conv_forward", (x, weight, 3, 1, 1), {}, dy)
    assert forward.operations == 2 * (3 * 5 * 4) * 7 * 19
    assert forward.bytes == 4 * (x.size + weight.size + dy.size)
    a, b = ops.zeros((4, 6)), ops.zeros((4, 5))
    product = cuda_benchmark.Call(ops, "matmul", (a, b), {"transpose_a": True}, ops.zeros((6, 5)))
    assert product.operations == 2 * 6 * 5 * 4


def test_ceilings_and_steps_are_measured(ops):
    found = cuda_benchmark.ceilings(ops, megabytes=1, side=32)
    assert found.keys() == {"copy_GB_s", "fp32_TFLOP_s"}
    assert min(found.values()) > 0
    row = cuda_benchmark.step_row(ops, parse_config(SMALL), "KFC-pre", rounds=1)
    assert row["images_per_second"] == pytest.approx(3 / (row["milliseconds"] / 1000))


def test_pytorch_is_timed_on_the_same_step_and_convolutions(ops):
    pytest.importorskip("torch", reason="PyTorch, the other contestant, is not installed")
    config = parse_config(SMALL.replace("kfc_pre", "sgd").replace(
        "statistics_period: 1,\n            inverse_period: 1", "momentum: 0.9"))
    steps, convolutions = cuda_benchmark.torch_rows(ops, config, device="cpu")
    assert [row["step"] for row in steps] == ["PyTorch SGD, eager, fp32"]
    assert [row["primitive"] for row in convolutions] == [
        "conv_forward", "conv_backward_data", "conv_backward_weights"]
    assert min(row["microseconds"] for row in convolutions) > 0
    report = {"device": {"name": "here"}, "ceilings": {"copy_GB_s": 1.0}, "steps": steps,
              "primitives": [], "convolutions in PyTorch": convolutions}
    assert "conv_backward_data in PyTorch" in cuda_benchmark.format_report(report)


def test_figure_shows_the_share_of_the_nearer_ceiling(tmp_path):
    ceilings = {"copy_GB_s": 100.0, "fp32_TFLOP_s": 10.0}
    rows = [{"call": "relu", "microseconds": 1.0, "TFLOP_s": 0.0, "GB_s": 80.0},
            {"call": "matmul", "microseconds": 2.0, "TFLOP_s": 5.0, "GB_s": 10.0}]
    assert [verification.share(row, ceilings) for row in rows] == [0.8, 0.5]
    report = {"primitives": rows, "ceilings": ceilings, "device": {"processor": "a GPU"}}
    verification.draw(report, tmp_path / "figure.png")
    assert (tmp_path / "figure.png").stat().st_size > 0


@pytest.mark.skipif(is_available(), reason="there is a GPU")
def test_verification_without_a_gpu_says_how_to_get_one():
    script = Path(__file__).parents[1] / "scripts" / "verify_gpu.py"
    done = subprocess.run([sys.executable, script], capture_output=True, text=True)
    assert done.returncode == 2
    assert "CuPy" in done.stderr and "Traceback" not in done.stderr
