"""Timing and verification of a GPU, as far as they go without one."""

import json
import subprocess
import sys
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import cuda_on_cpu
import numpy as np
import pytest
from checks import assert_close

from kfcnet.benchmarks import cuda as cuda_benchmark
from kfcnet.benchmarks import verification
from kfcnet.config import load_config, parse_config
from kfcnet.figures.curves import save_figure
from kfcnet.ops.cuda import CudaOps, is_available
from kfcnet.ops.errors import DeviceError
from kfcnet.ops.primitives import Placed
from kfcnet.training.train import train

pytestmark = pytest.mark.skipif(
    cuda_on_cpu.missing() is not None, reason=str(cuda_on_cpu.missing())
)
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
    monkeypatch.setattr(cuda_benchmark, "CALLS", 1)
    monkeypatch.setattr(cuda_benchmark, "REPLAYS", 1)
    monkeypatch.setattr(cuda_benchmark, "WARM_UP", 0)
    return CudaOps(cuda_on_cpu.CpuRuntime())


def test_every_primitive_of_a_step_gets_a_row_of_finite_rates(ops):
    rows, convolutions = cuda_benchmark.primitive_rows(
        ops, parse_config(SMALL), "KFC-pre, 3", replays=1
    )
    called = {row["call"].split()[0] for row in rows}
    assert {
        "weights",
        "conv_forward",
        "conv_backward_weights",
        "max_pool",
        "patch_gram",
        "gram",
        "matmul",
        "softmax_cross_entropy",
        "momentum_update",
        "spd_inverse",
    } <= called
    assert len({row["call"] for row in rows}) == len(rows)
    assert [row["call"] for row in rows if row["call"].startswith("weights")] == [
        "weights 86 (2 of 3x3x3, 10 of 1x1x2) (10 of 1x1x2)",
        "weights 86 (2 of 3x3x3, 10 of 1x1x2) ()",  # of the clip's direction
    ]
    for row in rows:
        numbers = [row[key] for key in ("microseconds", "TFLOP_s", "GB_s")]
        assert np.isfinite(numbers).all() and row["microseconds"] > 0
    assert ("conv_forward", 3, 32, 32, 3, 2) in convolutions
    assert ("conv_backward_data", 3, 32, 32, 3, 2) not in convolutions  # nobody asks for it
    phases = cuda_benchmark.phase_milliseconds(rows)
    assert phases.keys() == {"gradient", "statistics", "inverses", "preconditioning", "clip"}
    assert all(0 < ms < 1e6 for ms in phases.values())


def test_a_phase_takes_its_share_of_every_call():
    rows = [
        {"calls_a_step": {"gradient": 1.0, "statistics": 0.2}, "microseconds": 500.0},
        {"calls_a_step": {"gradient": 2.0}, "microseconds": 250.0},
        {"calls_a_step": {}, "microseconds": 7.0},
    ]
    assert cuda_benchmark.phase_milliseconds(rows) == pytest.approx(
        {"gradient": 1.0, "statistics": 0.1}
    )


@pytest.mark.parametrize("megabytes, calls", [(1, 112), (7, 112), (8, 16), (64, 2)])
def test_a_graph_has_so_many_short_calls_that_the_host_replays_it_in_time(
    ops, megabytes, calls, monkeypatch
):
    x, called = ops.empty(megabytes * 2**18), []
    monkeypatch.setattr(cuda_benchmark, "CACHE", 128 * 2**20)
    monkeypatch.setattr(cuda_benchmark, "CALLS", 100)
    monkeypatch.setattr(type(ops), "relu", lambda ops, x: called.append(x))
    monkeypatch.setattr(type(ops), "captured", lambda ops, function: function)
    monkeypatch.setattr(cuda_benchmark, "timed", lambda ops, function, replays: function() or 56.0)
    seconds = cuda_benchmark.Call(ops, "relu", (x,), {}, x).seconds()
    assert (seconds, len(called)) == (56.0 / calls, calls)


def test_operations_count_a_multiply_add_as_two(ops):
    x, weight, dy = ops.zeros((3, 5, 4, 2)), ops.zeros((7, 19)), ops.zeros((3, 5, 4, 7))
    forward = cuda_benchmark.Call(ops, "conv_forward", (x, weight, 3, 1, 1), {}, dy)
    assert forward.operations == 2 * (3 * 5 * 4) * 7 * 19
    assert forward.bytes == 4 * (x.size + weight.size + dy.size)
    (packed,) = ops.weights(weight.reshape(-1), [Placed(0, 7, x.shape, (3, 1, 1))])
    same = cuda_benchmark.Call(ops, "conv_forward", (x, packed, 3, 1, 1), {}, dy)
    assert (same.operations, same.bytes) == (forward.operations, forward.bytes)
    assert same.label == "conv_forward 3x5x4x2 7x19 packed 3 1 1" != forward.label
    assert same.convolution == forward.convolution and same.seconds(replays=1) > 0
    a, b = ops.zeros((4, 6)), ops.zeros((4, 5))
    product = cuda_benchmark.Call(ops, "matmul", (a, b), {"transpose_a": True}, ops.zeros((6, 5)))
    assert product.operations == 2 * 6 * 5 * 4


def test_the_ceiling_of_copies_is_measured_on_numbers_that_differ(ops, monkeypatch):
    copied = []
    monkeypatch.setattr(ops.runtime, "copy_into", lambda target, source: copied.append(source))
    cuda_benchmark.ceilings(ops, megabytes=1, side=8)
    assert len(np.unique(copied[0])) > 0.9 * copied[0].size


def test_ceilings_and_steps_are_measured(ops):
    found = cuda_benchmark.ceilings(ops, megabytes=1, side=32)
    assert found.keys() == {"copy_GB_s", "fp32_TFLOP_s"}
    assert min(found.values()) > 0
    assert cuda_benchmark.omega_ratio(ops, M=2, image=(3, 4, 2), kernel=3) > 0
    row = cuda_benchmark.step_row(ops, parse_config(SMALL), "KFC-pre", rounds=1, least=1)
    assert row["images_per_second"] == pytest.approx(3 / (row["milliseconds"] / 1000))


def test_products_of_the_library_are_those_of_numpy(cuda, rng):
    a, b = (cuda.asarray(rng.standard_normal(shape)) for shape in ((5, 3), (5, 4)))
    for tensor_cores in {False, bool(cuda.runtime.tensor_cores)}:
        out, expected = cuda.zeros((3, 4)), cuda.to_numpy(a).T @ cuda.to_numpy(b)
        cuda.runtime.library_product(a, b, out, tensor_cores, transpose_a=True)
        assert_close(cuda.to_numpy(out), expected, 1e-2 if tensor_cores else 1e-6)
        c, square = cuda.zeros((5, 4)), cuda.asarray(rng.standard_normal((5, 5)))
        cuda.runtime.library_product(square, b, c, tensor_cores)
        assert_close(
            cuda.to_numpy(c),
            cuda.to_numpy(square) @ cuda.to_numpy(b),
            1e-2 if tensor_cores else 1e-6,
        )


def test_inversions_are_timed_against_the_library(ops):
    ratio = cuda_benchmark.inversion_ratio(ops, parse_config(SMALL))
    assert np.isfinite(ratio) and ratio > 0


POOLED = SMALL.replace("size: 16, stride: 16", "size: 3, stride: 2").replace(
    "filters: 2,", "filters: 4,"
)


@pytest.mark.parametrize("tensor_cores", [False, True])
def test_a_first_convolution_that_pools_has_rows_of_its_own(ops, tensor_cores):
    ops.tensor_cores = tensor_cores
    norm = "  - {layer: response_norm, size: 3, scale: 0.1, power: 0.75}\n  - {layer: dense, units"
    config = parse_config(POOLED.replace("  - {layer: dense, units", norm))
    rows, _ = cuda_benchmark.primitive_rows(ops, config, "KFC-pre, 3", replays=1)
    rows = {row["call"].split()[0]: row for row in rows}
    pooled = {"conv_max_pool", "conv_max_pool_backward_weights", "conv_max_pool_tangent"}
    assert rows.keys() & pooled == (pooled if tensor_cores else set())
    assert ("max_pool_norm" in rows) is not tensor_cores
    assert not [name for name in rows if name.startswith("can_")]
    for name in pooled & rows.keys():
        row = rows[name]
        products = 2 * 3 * 16 * 16 * 4 * 28  # of 3 images; the tangent is of fewer
        most = row["TFLOP_s"] * row["microseconds"] * 1e6
        assert most == pytest.approx(products) or (name.endswith("tangent") and most < products)


def test_the_factor_of_activations_is_counted_over_the_locations_that_there_are():
    x, P = np.zeros((2, 7, 5, 3)), 28
    made = cuda_benchmark.operations(
        "patch_gram", (x, 3, 2, 0, 1.0, 0.0), {"out": np.zeros((P, P))}, None
    )
    assert made == 2 * (3 * 2) * P * (P + 1)


def test_pytorch_is_timed_on_the_same_step_and_convolutions(ops):
    pytest.importorskip("torch", reason="PyTorch, the other contestant, is not installed")
    config = parse_config(
        SMALL.replace("kfc_pre", "sgd").replace(
            "statistics_period: 1,\n            inverse_period: 1", "momentum: 0.9"
        )
    )
    steps, convolutions = cuda_benchmark.torch_rows(ops, config, device="cpu")
    assert [row["step"] for row in steps] == ["PyTorch SGD, eager, fp32"]
    shape = 3, 32, 32, 3, 2  # M, H, W, J, I
    assert convolutions.keys() == {
        ("conv_forward", *shape),
        ("conv_backward_data", *shape),
        ("conv_backward_weights", *shape),
    }
    assert min(convolutions.values()) > 0
    rows, ours = cuda_benchmark.primitive_rows(ops, config, "SGD, 3", replays=1)
    found = cuda_benchmark.ratios(
        "SGD, 3", {"milliseconds": 2.0}, [{**steps[0], "milliseconds": 3.0}], ours, convolutions
    )
    assert found["PyTorch SGD, eager, fp32 / SGD, 3"] == 1.5
    assert sum("conv_backward_weights 3 32 32 3 2 in" in what for what in found) == 1
    report = {
        "device": {"name": "here"},
        "ceilings": {"copy_GB_s": 1.0},
        "steps": steps,
        "phases": {"SGD, 3": {"gradient": 0.5}},
        "primitives": rows,
        "ratios": found,
    }
    text = cuda_benchmark.format_report(report)
    assert "1.50  PyTorch SGD, eager, fp32 / SGD, 3" in text and "gradient 0.500" in text


def test_pytorch_that_computes_something_else_is_not_compared(ops, monkeypatch):
    torch_gpu = pytest.importorskip("kfcnet.benchmarks.torch_gpu")
    monkeypatch.setattr(torch_gpu.StepOnDevice, "forward", lambda self, count: np.ones((3, 10)))
    config = parse_config(
        SMALL.replace("kfc_pre", "sgd").replace(
            "statistics_period: 1,\n            inverse_period: 1", "momentum: 0.9"
        )
    )
    with pytest.raises(RuntimeError, match="does not compute what ours does"):
        cuda_benchmark.torch_rows(ops, config, device="cpu")


@pytest.mark.slow
def test_whole_report_has_every_step_precision_and_ratio(ops, monkeypatch):
    small = parse_config(SMALL)
    monkeypatch.setattr(cuda_benchmark, "load_config", lambda name, changes: small)
    for name, settings in (
        ("ceilings", dict(megabytes=1, side=8)),
        ("step_row", dict(rounds=1, least=1)),
        ("primitive_rows", dict(replays=1)),
        ("omega_ratio", dict(M=2, image=(3, 4, 2), kernel=3)),
    ):
        monkeypatch.setattr(
            cuda_benchmark, name, partial(getattr(cuda_benchmark, name), **settings)
        )
    monkeypatch.setattr(ops.runtime, "tensor_cores", True)
    monkeypatch.setattr(ops.runtime, "shared_limit", 99 * 1024)
    report = cuda_benchmark.benchmark_cuda(ops)
    assert [row["step"] for row in report["steps"]] == [
        f"{name}, {precision}"
        for precision in ("TF32", "fp32")
        for name in ("SGD", "SGD", "KFC-pre", "KFC-pre")
    ]
    assert len(report["phases"]) == 4 and len(report["ratios"]) == 4
    assert report["done"] == list(cuda_benchmark.parts(ops)) and "failed" not in report
    assert {row["precision"] for row in report["primitives"]} == {"TF32", "fp32"}
    assert json.loads(json.dumps(report)) == report
    assert cuda_benchmark.format_report(report)


def test_a_part_and_a_row_that_fail_say_why_and_the_others_go_on(ops, monkeypatch):
    def diverges(*_):
        raise RuntimeError("the timed steps diverged")

    report = {"steps": [{"step": "SGD", "batch": 3, "milliseconds": 1.0, "images_per_second": 1.0}]}
    cuda_benchmark.add_part(report, "KFC-pre", diverges)
    cuda_benchmark.add_part(report, "Omega", lambda report: {"ratios": {"a": 2.0}, "steps": []})
    assert report["done"] == ["KFC-pre", "Omega"] and len(report["steps"]) == 1
    assert report["failed"] == {"KFC-pre": "RuntimeError: the timed steps diverged"}
    seconds = cuda_benchmark.Call.seconds

    def no_memory_for_products(call, replays):
        if call.name == "matmul":
            raise DeviceError("out of memory")
        return seconds(call, replays)

    monkeypatch.setattr(cuda_benchmark.Call, "seconds", no_memory_for_products)
    rows, _ = cuda_benchmark.primitive_rows(ops, parse_config(SMALL), "KFC-pre, 3", replays=1)
    failed = [row for row in rows if row.get("failed") == "DeviceError: out of memory"]
    assert failed and len(cuda_benchmark.measured(rows)) == len(rows) - len(failed)
    report |= {"device": {}, "primitives": rows, "phases": {}}
    assert "failed: matmul" in cuda_benchmark.format_report(report)
    assert verification.failures(report).keys() >= {"KFC-pre", f"{failed[0]['call']}, KFC-pre, 3"}


def test_a_pytorch_that_fails_leaves_what_was_measured_of_ours(monkeypatch):
    def refuses(*_):
        raise RuntimeError("a graph was refused")

    row = {"step": "SGD, fp32, 128", "call": "relu", "calls_a_step": {}, "microseconds": 1.0}
    monkeypatch.setattr(cuda_benchmark, "primitive_rows", lambda *_: ([row], {}))
    monkeypatch.setattr(cuda_benchmark, "torch_rows", refuses)
    report = {
        **cuda_benchmark.empty_report(),
        "steps": [{"step": "SGD, fp32", "batch": 128, "milliseconds": 1.0}],
    }
    config = load_config("cifar_sgd")
    part = partial(cuda_benchmark._primitives_part, None, config, "SGD, fp32", True)
    cuda_benchmark.add_part(report, "primitives", part)
    assert report["primitives"] == [row] and report["done"] == ["primitives"]
    said = {"PyTorch beside SGD, fp32, 128": "RuntimeError: a graph was refused"}
    assert report["failed"] == said


def test_figure_shows_the_share_of_the_nearer_ceiling(tmp_path):
    ceilings = {"copy_GB_s": 100.0, "fp32_TFLOP_s": 10.0, "TF32_TFLOP_s": 100.0}
    step = {"step": "KFC-pre, TF32, 512", "precision": "fp32"}
    rows = [
        {**step, "call": "relu", "microseconds": 1.0, "TFLOP_s": 0.0, "GB_s": 80.0},
        {**step, "call": "matmul", "microseconds": 2.0, "TFLOP_s": 5.0, "GB_s": 10.0},
    ]
    assert [verification.share(row, ceilings) for row in rows] == [0.8, 0.5]
    report = {"primitives": rows, "ceilings": ceilings, "device": {"processor": "a GPU"}}
    save_figure(lambda: verification.ceiling_figure(report), tmp_path / "figure.png")
    assert (tmp_path / "figure.png").stat().st_size > 0


@pytest.fixture
def verified(monkeypatch):
    """The parts of a verification on a machine with a GPU, all of which succeed."""
    report = {
        "device": {"processor": "NVIDIA H200 (fake)"},
        "ceilings": {"copy_GB_s": 1.0, "fp32_TFLOP_s": 1.0},
        "primitives": [
            {
                "call": "relu",
                "step": "KFC-pre, fp32, 512",
                "microseconds": 1.0,
                "TFLOP_s": 0.0,
                "GB_s": 0.5,
                "precision": "fp32",
            }
        ],
    }
    replaced = {
        "get_ops": lambda device: SimpleNamespace(
            describe=lambda: report["device"], runtime=SimpleNamespace(synchronize=lambda: None)
        ),
        "_files_with_tests": lambda: [verification.ROOT / "tests" / "test_cuda.py"],
        "run_tests": lambda file, seconds, log: ({"passed": 3}, ""),
        "parts": lambda ops: {
            "device": lambda seen: {"device": report["device"]},
            "compilation": lambda seen: {},
            "ceilings": lambda seen: {"ceilings": report["ceilings"]},
            "primitives": lambda seen: {"primitives": report["primitives"]},
        },
        "step_errors": lambda ops: {"1: gather 128x32x32x3": 1e-6},
        "short_training": lambda name, data, path: {"training": name},
    }
    for name, part in replaced.items():
        monkeypatch.setattr(verification, name, part)


def report_in(folder):
    return json.loads((folder / "nvidia-h200-fake.json").read_text())


def test_verification_writes_its_parts_and_a_figure(verified, tmp_path):
    target = verification.verify(tmp_path / "gpu")
    assert target == tmp_path / "gpu" / "nvidia-h200-fake.json"
    report = json.loads(target.read_text())
    assert report["tests"]["test_cuda.py"] == [{"passed": 3}, ""]
    assert len(report["trainings"]) == 2 and report["done"][:3] == [
        "device",
        "compilation",
        "real step",
    ]
    assert target.with_suffix(".png").stat().st_size > 0


@pytest.mark.parametrize("data", [None, "cifar10"])
def test_verification_trains_on_synthetic_images_where_cifar10_is_absent(
    verified, tmp_path, monkeypatch, data
):
    used, said = set(), []
    monkeypatch.setattr(
        verification, "short_training", lambda name, data, path: used.add(data) or {}
    )
    verification.verify(tmp_path, data, path=tmp_path, say=said.append)
    assert used == {data or "synthetic"}
    assert any("CIFAR-10 is not at hand" in line for line in said) == (data is None)


def test_a_part_of_tests_ends_within_its_minutes(monkeypatch):
    assert verification.run_tests(seconds=0.06) == ({"error": 1}, "not done within 0.001 minutes")


def test_what_tests_said_before_they_were_stopped_is_kept(tmp_path):
    file = tmp_path / "test_slow.py"
    file.write_text(
        "import pytest, time\n\n@pytest.mark.gpu\ndef test_that_hangs():\n    time.sleep(60)\n"
    )
    outcomes, said = verification.run_tests(file, seconds=12)
    assert outcomes == {"error": 1} and "test_that_hangs" in said


def test_tests_that_the_end_of_a_call_cut_short_run_again(verified, tmp_path, monkeypatch):
    asked = []

    def run_tests(file, seconds, log):
        asked.append(seconds)
        return (
            ({"error": 1}, "not done within 1 minutes") if len(asked) < 2 else ({"passed": 3}, "")
        )

    monkeypatch.setattr(verification, "run_tests", run_tests)
    with pytest.raises(verification.Unfinished, match="test_cuda.py was cut short: the same comm"):
        verification.verify(tmp_path, minutes=3)
    assert "tests" not in report_in(tmp_path)
    verification.verify(tmp_path)
    assert report_in(tmp_path)["tests"]["test_cuda.py"] == [{"passed": 3}, ""]
    assert asked[0] <= 180 < asked[1] == 60 * verification.MINUTES_OF_A_PART


def test_tests_are_not_begun_at_the_end_of_a_call_and_the_rest_is(verified, tmp_path):
    """A minute would cut them short, and another one would call that a failure."""
    with pytest.raises(verification.Unfinished, match="1 of 8 parts are left: the same command"):
        verification.verify(tmp_path, minutes=1)
    report = report_in(tmp_path)
    assert "tests in test_cuda.py" not in report["begun"] and len(report["trainings"]) == 2


FAILING = """
import pytest
pytestmark = pytest.mark.gpu

def test_a():
    assert "the cause" == "", "of all the others"

@pytest.mark.parametrize("number", range(40))
def test_b(number):
    assert number < 0
"""


def test_the_first_failure_is_kept_with_all_that_tests_said_in_a_file(tmp_path):
    file, log = tmp_path / "test_failing.py", tmp_path / "tests.txt"
    file.write_text(FAILING)
    outcomes, said = verification.run_tests(file, log=log)
    assert outcomes == {"failed": 41}
    first, _, end = said.partition("\n...\n")
    assert "of all the others" in first and "test_b" not in first and "test_b[39]" in end
    assert log.read_text().count("____ test_b[") == 40


def test_what_failed_is_done_again_where_the_sources_have_changed(verified, tmp_path, monkeypatch):
    asked = []

    def failing(ops):
        asked.append("real step")
        raise RuntimeError("wrong")

    def run_tests(file, seconds, log):
        asked.append(file.name)
        return {"failed": 1}, "test_a FAILED"

    with monkeypatch.context() as patch:
        patch.setattr(verification, "step_errors", failing)
        patch.setattr(verification, "run_tests", run_tests)
        said = []
        for _ in range(2):  # with the same sources nothing would change
            with pytest.raises(verification.VerificationFailed):
                verification.verify(tmp_path, say=said.append)
        assert asked == ["real step", "test_cuda.py"]
        assert "RuntimeError: wrong" in said and "test_a FAILED" in said
    monkeypatch.setattr(verification, "_sources", lambda: "others")
    verification.verify(tmp_path)
    report = report_in(tmp_path)
    assert not report.get("failed") and report["tests"]["test_cuda.py"] == [{"passed": 3}, ""]
    assert len(report["trainings"]) == 2  # not done again


def test_a_part_of_primitives_is_forgotten_with_its_rows():
    ours, theirs = {"step": "SGD, fp32", "batch": 3}, {"step": "PyTorch", "beside": "SGD, fp32, 3"}

    def report(**changes):
        done = ["SGD, fp32, 3", "primitives of SGD, fp32, 3", "primitives of KFC-pre, fp32, 5"]
        rows = [{"step": "SGD, fp32, 3"}, {"step": "KFC-pre, fp32, 5"}]
        return {"steps": [ours, theirs], "primitives": rows, "done": done} | changes

    whole = report()
    cuda_benchmark.forget_failures(whole)
    assert whole == report()
    rows = [{"step": "SGD, fp32, 3", "failed": "no memory"}, {"step": "KFC-pre, fp32, 5"}]
    for failed in (
        report(primitives=rows),
        report(failed={"PyTorch beside SGD, fp32, 3": "refused"}),
    ):
        cuda_benchmark.forget_failures(failed)
        assert failed == {
            "steps": [ours],
            "primitives": [{"step": "KFC-pre, fp32, 5"}],
            "done": ["SGD, fp32, 3", "primitives of KFC-pre, fp32, 5"],
        }


def test_parts_come_behind_the_steps_that_they_look_for():
    names = [f"{kind}, {precision}, {M}" for precision in ("TF32", "fp32")
             for kind, M in (("SGD", 128), ("KFC-pre", 512))]  # fmt: skip
    names += [f"primitives of {name}" for name in names]
    assert cuda_benchmark.needed("primitives of SGD, fp32, 128", names) == ["SGD, fp32, 128"]
    found = cuda_benchmark.needed("epochs, TF32", names)
    assert found == ["SGD, TF32, 128", "KFC-pre, TF32, 512"]
    assert cuda_benchmark.needed("Omega", names) == []


def test_a_step_that_was_cut_short_comes_before_what_looks_for_it(verified, tmp_path, monkeypatch):
    begun = []

    def step(report):
        begun.append("step")
        if len(begun) == 1:
            raise KeyboardInterrupt
        return {"steps": [{"step": "SGD, fp32", "batch": 3}]}

    def primitives(report):
        begun.append("primitives")
        return {"primitives": []}

    found = {"device": lambda report: {}, "compilation": lambda report: {}}
    found |= {"SGD, fp32, 3": step, "primitives of SGD, fp32, 3": primitives}
    monkeypatch.setattr(verification, "parts", lambda ops: dict(found))
    with pytest.raises(KeyboardInterrupt):
        verification.verify(tmp_path)
    verification.verify(tmp_path)
    assert begun == ["step", "step", "primitives"]


def test_only_files_with_tests_for_a_gpu_are_begun(monkeypatch):
    listed = "tests/test_ops.py::test_a[cuda]\ntests/test_cuda.py::test_b\n2/9 tests collected\n"
    broken = "ERROR tests/test_loader.py - NameError\nERROR tests/test_philox.py\n"
    for text, names in (
        (listed, {"test_ops.py", "test_cuda.py"}),
        (listed + broken, {"test_ops.py", "test_cuda.py", "test_loader.py", "test_philox.py"}),
        ("", {file.name for file in (verification.ROOT / "tests").glob("test_*.py")}),
    ):
        done = SimpleNamespace(stdout=text)
        monkeypatch.setattr(verification.subprocess, "run", lambda *_, done=done, **__: done)
        assert {file.name for file in verification._files_with_tests()} == names


@pytest.mark.parametrize("error", [TypeError("no array"), KeyError("ceilings"), MemoryError()])
def test_a_part_that_fails_in_any_way_is_reported(verified, tmp_path, monkeypatch, error):
    def failing(ops):
        raise error

    monkeypatch.setattr(verification, "step_errors", failing)
    with pytest.raises(verification.VerificationFailed, match=f"real step: {type(error).__name__}"):
        verification.verify(tmp_path)
    assert "ceilings" in report_in(tmp_path)


def test_a_failure_that_takes_the_device_away_fails_nothing_else(verified, tmp_path, monkeypatch):
    """A context whose kernel met an illegal address answers every later call with that error."""

    def lost():
        raise DeviceError("an illegal memory access was encountered")

    ops = verification.get_ops("cuda")

    def loses(ops):
        ops.runtime.synchronize = lost
        lost()

    with monkeypatch.context() as patch:
        patch.setattr(verification, "get_ops", lambda device: ops)
        patch.setattr(verification, "step_errors", loses)
        with pytest.raises(verification.Unfinished, match="real step took the device away"):
            verification.verify(tmp_path)
    assert report_in(tmp_path)["done"] == ["device", "compilation", "real step"]
    with pytest.raises(verification.VerificationFailed, match="real step: DeviceError: an illegal"):
        verification.verify(tmp_path)
    assert list(report_in(tmp_path)["failed"]) == ["real step"]


def test_a_device_that_a_part_lost_without_failing_ends_the_call(verified, tmp_path, monkeypatch):
    """As rows of primitives do, each of which fails by itself."""

    def lost():
        raise DeviceError("an illegal memory access was encountered")

    there = verification.get_ops("cuda")
    gone = SimpleNamespace(describe=there.describe, runtime=SimpleNamespace(synchronize=lost))
    monkeypatch.setattr(verification, "get_ops", lambda device: gone)
    with pytest.raises(verification.Unfinished, match="device took the device away"):
        verification.verify(tmp_path)


def test_without_ceilings_no_figure_is_drawn(verified, tmp_path, monkeypatch):
    parts = verification.parts(None)
    del parts["ceilings"]
    monkeypatch.setattr(verification, "parts", lambda ops: dict(parts))
    assert not verification.verify(tmp_path).with_suffix(".png").exists()


def test_verification_that_was_cut_goes_on_behind_the_last_part(verified, tmp_path, monkeypatch):
    begun = []

    def training(name, data, path):
        begun.append(name)
        if begun == ["SGD", "KFC-pre"]:
            raise KeyboardInterrupt
        return {"training": name}

    monkeypatch.setattr(verification, "short_training", training)
    with pytest.raises(KeyboardInterrupt):
        verification.verify(tmp_path)
    assert "ceilings" in report_in(tmp_path) and len(report_in(tmp_path)["trainings"]) == 1
    verification.verify(tmp_path)
    assert begun == ["SGD", "KFC-pre", "KFC-pre"] and len(report_in(tmp_path)["trainings"]) == 2


def test_a_part_that_ends_every_call_comes_last_and_then_has_failed(
    verified, tmp_path, monkeypatch
):
    """As where a kernel hangs, or takes the process along."""

    def ends_the_call(ops):
        raise KeyboardInterrupt

    monkeypatch.setattr(verification, "step_errors", ends_the_call)
    for done in (["device", "compilation"], ["training of SGD", "training of KFC-pre"]):
        with pytest.raises(KeyboardInterrupt):
            verification.verify(tmp_path)
        assert report_in(tmp_path)["done"][-2:] == done
    with pytest.raises(verification.VerificationFailed, match="real step: .* begun 2 times"):
        verification.verify(tmp_path)


def test_tests_that_are_cut_short_twice_have_failed_and_what_they_said_is_kept(
    verified, tmp_path, monkeypatch
):
    late = {"error": 1}, "not done within 9 minutes\ntest_that_hangs"
    monkeypatch.setattr(verification, "run_tests", lambda file, seconds, log: late)
    with pytest.raises(verification.Unfinished, match="was cut short"):
        verification.verify(tmp_path, minutes=9)
    with pytest.raises(verification.VerificationFailed, match="test_that_hangs"):
        verification.verify(tmp_path, minutes=9)
    assert "trainings" in report_in(tmp_path)


def test_verification_begins_no_part_after_its_time(verified, tmp_path):
    with pytest.raises(verification.Unfinished, match="parts are left: the same command goes on"):
        verification.verify(tmp_path, minutes=-1)
    verification.verify(tmp_path)


def test_verification_measures_the_rest_where_a_part_fails(verified, tmp_path, monkeypatch):
    def short_training(name, data, path):
        raise DeviceError("out of memory")

    monkeypatch.setattr(verification, "short_training", short_training)
    with pytest.raises(verification.VerificationFailed, match="training of SGD: .* of memory"):
        verification.verify(tmp_path)
    assert "ceilings" in report_in(tmp_path) and len(report_in(tmp_path)["failed"]) == 2


def test_short_training_is_on_the_gpu_and_reports_its_last_row(monkeypatch):
    configs = []

    def train_on_the_cpu(config, folder):
        configs.append(config)
        return train(load_config("digits_kfc", ["epochs=0.2", "device=cpu"]), folder)

    monkeypatch.setattr(verification, "train", train_on_the_cpu)
    found = verification.short_training("KFC-pre", "synthetic", "/somewhere")
    (config,) = configs
    assert (config.device, config.data.name, config.epochs) == ("cuda", "synthetic", 2)
    assert config.optimizer.name == "kfc_pre"
    assert set(found) == {"training", "data", *verification.RESULTS}
    assert 0 < found["train_error"] < 1 and found["seconds"] > 0


@pytest.mark.parametrize(
    "status, text, outcomes",
    [
        (0, "2 skipped, 341 passed in 60s", {"passed": 341, "skipped": 2}),
        (1, "1 failed, 3 passed, 2 errors in 9s", {"failed": 1, "passed": 3, "error": 2}),
        (0, "343 skipped in 2s", {"skipped": 343}),
        (4, "no such option", {"error": 1}),
        (5, "12 deselected in 1s", {"deselected": 12}),
    ],
)
def test_verification_counts_the_tests_by_outcome(monkeypatch, status, text, outcomes):
    monkeypatch.setattr(
        subprocess,
        "run",
        lambda *_, **__: subprocess.CompletedProcess(
            [], status, f"test_a\n===== {text} =====\n", "a warning"
        ),
    )
    counted, said = verification.run_tests()
    assert counted == outcomes and text in said and "a warning" in said


@pytest.mark.parametrize("outcomes", [{"passed": 3, "failed": 1}, {"skipped": 343}, {"error": 1}])
def test_verification_measures_all_and_then_says_that_tests_failed(
    verified, tmp_path, monkeypatch, outcomes
):
    monkeypatch.setattr(
        verification, "run_tests", lambda file, seconds, log: (outcomes, "test_a FAILED")
    )
    said = "none has passed" if "passed" not in outcomes else "test_a FAILED"
    with pytest.raises(verification.VerificationFailed, match=said):
        verification.verify(tmp_path)
    assert report_in(tmp_path)["tests"]["test_cuda.py"][0] == outcomes
    assert report_in(tmp_path)["trainings"]


@pytest.mark.skipif(is_available(), reason="there is a GPU")
def test_verification_without_a_gpu_says_how_to_get_one():
    script = Path(__file__).parents[1] / "scripts" / "verify_gpu.py"
    done = subprocess.run([sys.executable, script], capture_output=True, text=True)
    assert done.returncode == 2
    assert "CuPy" in done.stderr and "Traceback" not in done.stderr


def test_what_the_benchmark_launches_is_compiled_before_it_is_timed():
    compiled, said = [], []

    def compile_sources(wanted, shown):
        compiled.extend(wanted)
        shown(len(wanted), len(wanted))

    runtime = SimpleNamespace(tensor_cores=True, shared_limit=99 * 1024, compile=compile_sources)
    ops = SimpleNamespace(runtime=runtime)
    assert cuda_benchmark.compile_all(ops, said.append) == {"compiled": len(compiled)}
    files = {file for file, _ in compiled}
    assert {"conv_forward_tf32", "conv_forward_register", "spd_inverse", "momentum_update"} <= files
    assert len(set(compiled)) == len(compiled) > 50 and str(len(compiled)) in said[-1]
