"""What R processes gain: the messages of a step, the model of what they take, and its figure."""

import ast
import errno
import os
import re
import sys
import tempfile
from pathlib import Path

import numpy as np
import pytest
from reproductions import small_plan, write_run
from runs import small
from thread_ranks import on_ranks

from kfcnet import reproduce
from kfcnet.batches import Batch
from kfcnet.benchmarks import processes
from kfcnet.benchmarks.cpu import example_batch
from kfcnet.benchmarks.scaling import MessageCost, OwnWork, fitted
from kfcnet.config import load_config
from kfcnet.curvature.block import WIDE
from kfcnet.network import build_network
from kfcnet.ops.cpu import CpuOps
from kfcnet.ranks import RanksError, balanced
from kfcnet.reproduce import scaling, work
from kfcnet.reproduce.plan import FigurePlan, PanelPlan
from kfcnet.reproduce.progress import progress_of
from kfcnet.reproduce.values import Value
from kfcnet.runs.files import write_json
from kfcnet.runs.index import RunIndex
from kfcnet.runs.metrics import read_metrics
from kfcnet.training.build import build, period

SHAPE = (8, 8, 1)
pytestmark = pytest.mark.usefixtures("no_figures", "mpiexec")


@pytest.fixture
def mpiexec(monkeypatch):
    """One is there, or at least seems to be: nothing is started by it but where a test asks."""
    try:
        processes.mpiexec()
    except RanksError:
        monkeypatch.setattr(processes, "mpiexec", lambda: "mpiexec")


# The work and the messages of one process


def sent(call, itemsize):
    """("sum" or "broadcast", bytes) of each array of a call that ThreadRanks recorded."""
    kind, shapes = re.fullmatch(r"(sum|broadcast)(?: from \d+)? of (\[.*\])", call).groups()
    return [(kind, itemsize * int(np.prod(shape))) for shape in ast.literal_eval(shapes)]


@pytest.mark.parametrize("count", [2, 4])
def test_one_process_alone_counts_the_messages_that_several_exchange(count):
    config = small("dtype=float64", "optimizer.clip_fraction=0.5", "optimizer.batch_size=80")

    def calls(ranks):
        ops = CpuOps("float64", shards=1, native="off", ranks=ranks)
        batch = Batch(*map(ranks.share, example_batch(ops, 80, input_shape=SHAPE)))
        optimizer = build(config, ops, SHAPE)
        optimizer.prepare([Batch(*map(np.ascontiguousarray, batch))])
        before = len(ranks.calls)
        for _ in range(period(config)):
            optimizer.step(Batch(*map(np.ascontiguousarray, batch)))
        return ranks.calls[before:]

    expected = []
    for call in on_ranks(count, calls)[0]:
        expected += [("sum", 8)] * 2 if call == "allgather" else sent(call, 8)
    assert {kind for kind, _ in expected} == {"sum", "broadcast"}
    work = OwnWork(config, count, SHAPE)
    work.turn()
    found = work.messages()
    assert len(work.seconds) == 1 and work.seconds[0] > 0
    assert sorted((kind, size) for kind, size, _ in found) == sorted(set(expected))
    for kind, size, number in found:
        assert number == expected.count((kind, size)) / period(config), (kind, size)


def test_one_process_of_one_sends_nothing():
    work = OwnWork(small(), 1, SHAPE)
    work.turn()
    assert work.messages() == []


# The model


def test_a_sum_takes_the_better_of_a_ring_and_a_tree():
    cost = MessageCost(latency=3.0, per_byte=0.5)
    assert cost.sum(1, 100) == cost.broadcast(1, 100) == 0
    assert cost.sum(2, 100) == 2 * 3 + 100 * 0.5
    assert cost.sum(8, 4) == 2 * 3 * 3 + 2 * 4 * 0.5  # the tree: three rounds there and back
    assert cost.sum(8, 800) == 2 * 7 * (3 + 800 / 8 * 0.5)  # the ring: seven rounds, twice
    assert cost.broadcast(8, 4) == 3 * (3 + 4 * 0.5)
    assert cost.broadcast(8, 800) == (3 + 7) * 3 + 2 * 7 / 8 * 800 * 0.5
    assert cost.of([["sum", 100, 2], ["broadcast", 4, 0.5]], 2) == 2 * 56 + 0.5 * 5


def test_the_cost_of_messages_is_fitted_to_sums_over_two():
    true = MessageCost(2e-6, 3e-10)
    cost = fitted([[floats, true.sum(2, 4 * floats)] for floats in processes.SIZES])
    np.testing.assert_allclose(cost, true, rtol=1e-9)
    flat = fitted([[floats, 5e-6] for floats in processes.SIZES[:3]])
    assert min(flat) >= 0  # a machine that is slow at times leaves no negative cost


# Preconditioning


def operations(config, network, count):
    """(all but preconditioning, preconditioning by every process, shared by rows) of one of
    `count` processes in an update of KFC-pre.
    """
    c, M, decay = config.optimizer, config.optimizer.batch_size, config.optimizer.weight_decay
    sampled, clipped = c.statistics_fraction * M / c.statistics_period, c.clip_fraction * M
    shared, inversions, every, rows = 0, [], 0, 0
    for layer in network.weighted:
        (I, P), T = layer.weight_shape, layer.locations
        passes = 1 if layer is network.weighted[0] else 2  # nothing flows back to the images
        shared += 2 * T * I * P * ((1 + passes) * M + (passes - 1) * sampled + passes * clipped)
        shared += 2 * T * (P * P + I * I) * sampled
        inversions.append((I**3 + P**3) / c.inverse_period)
        product = 2 * I * P * (I + P)
        if count == 1 and T == 1 and not decay:
            product = min(product, 2 * M * (I * I + P * P + I * P))
        every += product
        rows += product / count if I + P >= WIDE and count <= I else product
    owners, loads = balanced(inversions, count), [0.0] * count
    for owner, cost in zip(owners, inversions, strict=True):
        loads[owner] += cost
    return shared / count + max(loads), every, rows


@pytest.mark.parametrize("name", ["cifar", "svhn"])
def test_the_page_gives_the_operations_that_the_shapes_lead_to(name):
    config = load_config(f"{name}_kfc")
    network = build_network(config.network, (32, 32, 3), CpuOps("float32", shards=1), config.seed)
    rest, every, rows = np.array([operations(config, network, R) for R in (1, 2, 8, 64)]).T
    lines = {
        "all else": rest / 1e9,
        "preconditioning by every process": every / 1e9,
        "preconditioning shared by rows": rows / 1e9,
        "gain if every process preconditions": (rest + every)[0] / (rest + every),
        "gain if rows are shared": (rest + rows)[0] / (rest + rows),
    }
    title = {"cifar": "CIFAR-10", "svhn": "SVHN"}[name]
    page = Path(__file__).parents[1].joinpath("docs", "scaling.md").read_text(encoding="utf-8")
    expected = {
        f"| {title}, {what} | {' | '.join(f'{value:.3g}' for value in values)} |"
        for what, values in lines.items()
    }
    there = {line for line in page.splitlines() if line.startswith(f"| {title}, ")}
    assert there and there <= expected, there - expected


# The figure


@pytest.fixture
def plan(tmp_path):
    """Both curves of one run; the second one never comes to the error."""
    plan = small_plan(tmp_path)
    curves = {
        name: plan.curves[name]._replace(rates=(), epochs=1.0, seeds=1)
        for name in ("digits_kfc", "digits_sgd")
    }
    figure = FigurePlan("More processors", (PanelPlan("a", "error", tuple(curves)),), "scaling")
    return plan._replace(
        curves=curves,
        figures={"scaling": figure},
        measurements=(),
        errors=plan.errors._replace(updates=0.4),
    )


@pytest.fixture
def index(plan, tmp_path):
    index = RunIndex(tmp_path / "out")
    write_run(index, plan, "digits_kfc", {}, [0.9, 0.5, 0.2])  # 40% after 12 updates
    write_run(index, plan, "digits_sgd", {}, [0.9, 0.7, 0.6])
    return index


@pytest.fixture
def measured(plan, index, monkeypatch):
    """The Scaling of both curves, from a quick measurement."""
    monkeypatch.setattr(processes, "started", fake_start)
    monkeypatch.setattr(scaling, "COUNTS", (1, 2, 4))
    monkeypatch.setattr(scaling, "TURNS", 1)
    progress = progress_of(plan, index)
    assert scaling.measure_missing(plan, progress, index.root, {}) == {}
    return scaling.found(plan, progress, index.root)


def fake_start(count, settings):
    """What `count` processes would measure: a step of 60 ms and of 36."""
    assert settings["input_shape"] == [8, 8, 1] and settings["shards"] == 1
    return {
        "steps": {
            name: {"milliseconds": 60, "cpu": 59} if count == 1 else {"milliseconds": 36, "cpu": 70}
            for name in settings["configs"]
        },
        "sums": [[floats, 1e-6 + 1e-9 * floats] for floats in processes.SIZES],
    }


def test_the_figure_is_measured_drawn_and_told_from_its_record(plan, index, monkeypatch):
    monkeypatch.setattr(processes, "started", fake_start)
    monkeypatch.setattr(scaling, "COUNTS", (1, 2, 16))
    monkeypatch.setattr(scaling, "TURNS", 1)
    out, progress = index.root, progress_of(plan, index)
    reproduce.draw(plan, index, out, {})
    page = (out / "README.md").read_text()
    assert "## Not run yet\n\n- More processors: `reproduce scaling`" in page
    first = {"digits_sgd": progress["digits_sgd"]}
    assert scaling.measure_missing(plan, first, out, {}) == {}
    before = scaling.read(out)["curves"]
    assert list(before) == ["digits_sgd"]
    assert scaling.measure_missing(plan, progress, out, {}) == {}
    record = scaling.read(out)
    assert record["curves"]["digits_sgd"] == before["digits_sgd"]  # measured once
    curve = record["curves"]["digits_kfc"]
    assert curve["batch"] == 120 and curve["measured"] == {"1": 0.06, "2": 0.036}
    assert curve["on cores"] == {"1": 59 / 60, "2": 70 / (2 * 36)}
    assert list(curve["local"]) == ["1", "2"]  # 16 cannot share 120 images equally
    assert curve["local"]["1"]["messages"] == [] != curve["local"]["2"]["messages"]
    reproduce.draw(plan, index, out, {})
    assert (out / "figures" / "scaling.png").exists()
    page = (out / "README.md").read_text()
    assert "did not come to 40% training error within 12 updates and is not drawn" in page
    assert "latency 0.5 microseconds, 4 GB/s" in page and "`reproduce scaling`" not in page
    monkeypatch.setattr(scaling, "measure", None)  # what is there is not measured again
    assert scaling.measure_missing(plan, progress, out, {}) == {}


def test_updates_of_two_machines_are_not_drawn_together(plan, index, monkeypatch):
    monkeypatch.setattr(processes, "started", fake_start)
    monkeypatch.setattr(scaling, "COUNTS", (1, 2))
    monkeypatch.setattr(scaling, "TURNS", 1)
    out, progress = index.root, progress_of(plan, index)
    assert scaling.measure_missing(plan, {"digits_sgd": progress["digits_sgd"]}, out, {}) == {}
    record = scaling.read(out)
    here = record["device"]["processor"]
    elsewhere = {**record["device"], "processor": "another"}
    record["curves"]["digits_sgd"]["measured"] = {"1": 1e3, "2": 1e3}
    write_json(out / scaling.FILE, {**record, "device": elsewhere})
    drawn = scaling.found(plan, progress, out)
    assert "CPU (another)" in scaling.draw(drawn).get_suptitle()
    assert scaling.measure_missing(plan, progress, out, {}) == {}
    record = scaling.read(out)
    assert record["device"]["processor"] == here
    assert {name: each["measured"] for name, each in record["curves"].items()} == {
        name: {"1": 0.06, "2": 0.036} for name in ("digits_kfc", "digits_sgd")
    }


def test_updates_of_other_settings_are_measured_again_and_not_drawn(plan, index, measured):
    sgd = plan.curves["digits_sgd"]._replace(overrides=("optimizer.batch_size=60",))
    plan = plan._replace(curves={**plan.curves, "digits_sgd": sgd})
    write_run(index, plan, "digits_sgd", {}, [0.9, 0.7, 0.6, 0.5, 0.3])
    out, progress = index.root, progress_of(plan, index)
    found, before = scaling.found(plan, progress, out), scaling.read(out)["curves"]
    assert list(found.methods) == ["digits_kfc"]
    assert "SGD, M = 60 is not measured yet and is not drawn." in scaling.page(found)
    assert scaling.measure_missing(plan, progress, out, {}) == {}
    after = scaling.read(out)["curves"]
    assert after["digits_kfc"] == before["digits_kfc"]
    assert (before["digits_sgd"]["batch"], after["digits_sgd"]["batch"]) == (120, 60)
    found = scaling.found(plan, progress, out)
    assert found.methods["digits_sgd"].updates == (24.0, False)
    assert "is not measured" not in scaling.page(found)


def test_seconds_of_a_share_are_the_median_of_its_turns_but_for_the_first(monkeypatch):
    class Work:
        def __init__(self, *_):
            self.seconds, self.left = [], [100.0, 2.0, 1.0, 6.0]

        def turn(self):
            self.seconds.append(self.left.pop(0))

        def messages(self):
            return []

    monkeypatch.setattr(scaling, "OwnWork", Work)
    monkeypatch.setattr(processes, "started", fake_start)
    local = scaling.measure(small(), {})["local"]
    assert {each["seconds"] for each in local.values()} == {2.0}


def test_the_table_has_milliseconds_measured_and_seconds_and_gains_modelled(measured):
    modelled = {1: 0.05, 2: 0.03, 8: 0.01, 64: 0.0125}
    each = measured.methods["digits_kfc"]._replace(modelled=modelled)
    bound = each._replace(updates=Value(12.0, True))
    page = scaling.page(measured._replace(methods={"a": each, "b": bound}))
    assert page.splitlines()[-2:] == [
        "| SGD, M = 120 | 12 | 60 | 36 | 0.833 | 0.6 | 0.12 | 0.15 | 5 on 8 |",
        "| SGD, M = 120 | > 12 | 60 | 36 | 0.833 |  |  |  | 5 on 8 |",
    ]


def test_seconds_are_updates_times_those_of_one(index, measured):
    assert [each.updates for each in measured.methods.values()] == [(12.0, False), (12.0, True)]
    record = scaling.read(index.root)["curves"]["digits_kfc"]["local"]["4"]
    modelled = measured.methods["digits_kfc"].modelled
    assert modelled[4] == record["seconds"] + measured.cost.of(record["messages"], 4)
    left, right = scaling.draw(measured).axes
    (line,), (dashed,) = left.lines, right.lines
    assert line.get_ydata().tolist() == [12 * 0.06, 12 * 0.036]
    np.testing.assert_allclose(dashed.get_ydata(), [12 * value for value in modelled.values()])
    assert dashed.get_xdata().tolist() == [1, 2, 4] and dashed.get_linestyle() == "--"


def test_updates_are_the_median_of_the_seeds_and_cores_the_least_that_processes_had(
    plan, index, measured
):
    curve = plan.curves["digits_kfc"]._replace(seeds=3)
    more = plan._replace(curves={**plan.curves, "digits_kfc": curve})
    for seed in (1, 2):
        write_run(index, more, "digits_kfc", {}, [0.9, 0.3, 0.2], seed)  # 40% after 6 updates
    found = scaling.found(more, progress_of(more, index), index.root).methods["digits_kfc"]
    assert found.updates == (6.0, False) and measured.methods["digits_kfc"].updates.number == 12
    assert found.on_cores == 70 / (2 * 36)  # of the time that two processes had, less than of one's


def test_a_run_under_way_has_no_number_of_updates_yet(plan, index, measured):
    curve = plan.curves["digits_kfc"]._replace(seeds=2)
    more = plan._replace(curves={**plan.curves, "digits_kfc": curve})
    write_run(index, more, "digits_kfc", {}, [0.9, 0.8], 1)
    progress = progress_of(more, RunIndex(index.root, to_go_on=False))
    assert len(progress["digits_kfc"].runs()) == 2
    found = scaling.found(more, progress, index.root).methods["digits_kfc"]
    assert found.updates == (12.0, False)


def test_the_assumptions_stand_on_the_figure(measured):
    text = " ".join(scaling.draw(measured).get_supxlabel().split())
    for assumption in scaling.ASSUMPTIONS:
        assert assumption.partition(" {")[0] in text
    assert "did not come to 40% training error" in text
    assert "A curve ends where its mini-batch" not in text
    shorter = measured._replace(
        methods={
            name: each._replace(modelled={1: 0.06, 2: 0.04})
            for name, each in measured.methods.items()
        }
    )
    assert "A curve ends where its mini-batch" in scaling.draw(shorter).get_supxlabel()


def test_a_machine_that_was_busy_is_told_of_on_the_figure(measured):
    told = "The processes had their cores in"
    assert told not in scaling.draw(measured).get_supxlabel()
    first, *others = measured.methods.items()
    busy = measured._replace(methods=dict([*others, (first[0], first[1]._replace(on_cores=0.4))]))
    assert f"{told} 40% of the measured time" in scaling.draw(busy).get_supxlabel()


def test_what_keeps_updates_from_being_measured_is_said(plan, index, monkeypatch, capsys):
    progress = progress_of(plan, index)
    gpu = plan._replace(device="cuda")
    (reason,) = scaling.measure_missing(gpu, progress, index.root, {}).values()
    assert "on a CPU only" in reason

    def absent(*_):
        raise RanksError("there is no mpiexec: install one")

    def full(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device", "/tmp")

    for home, name, fault, told in (
        (processes, "mpiexec", absent, "there is no mpiexec: install one"),
        (processes, "started", absent, "there is no mpiexec: install one"),
        (tempfile, "mkdtemp", full, "[Errno 28] No space left on device: '/tmp'"),
    ):
        with monkeypatch.context() as patch:
            patch.setattr(home, name, fault)
            found = scaling.measure_missing(plan, progress, index.root, {})
        assert found == {"scaling": told}
    assert scaling.read(index.root) == {}
    monkeypatch.setattr(processes, "mpiexec", absent)
    trained = []
    monkeypatch.setattr(work, "train_missing", lambda *_: trained.append(capsys.readouterr()) or {})
    monkeypatch.setattr(reproduce, "draw", lambda *_: None)
    failures = reproduce.reproduce("scaling", index.root / "new", device="cpu", quick=True)
    assert "will not be measured: there is no mpiexec: install one" in trained[0].err
    assert failures == {}, "nothing has been trained that could be measured"
    monkeypatch.setattr(scaling, "cores", lambda: {0})
    assert "two cores" in scaling.measure_missing(plan, progress, index.root, {})["scaling"]


@pytest.mark.skipif(os.name != "posix", reason="a shell's script")
def test_a_process_that_fails_in_another_encoding_is_told_of(tmp_path, monkeypatch):
    program = tmp_path / "python"
    program.write_text("#!/bin/sh\nprintf 'd\\351faut' >&2\nexit 1\n")
    program.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(program))
    with pytest.raises(RanksError, match="did not come to an end: d.faut"):
        processes.started(1, {})


def test_the_page_on_scaling_has_the_numbers_of_the_record():
    root = Path(__file__).parents[1]
    results = (root / "results/paper/README.md").read_text(encoding="utf-8")
    rows = {line.split("|")[1].strip(): line for line in results.splitlines() if "on 64" in line}
    _, _, said = (root / "docs/scaling.md").read_text(encoding="utf-8").partition("On CIFAR-10 (")
    said = " ".join(said.partition("\n\n## ")[0].split())
    for method, numbers in {
        "KFC-pre, M = 512": ("276", "11.6", "635", "23.8"),
        "SGD, M = 128": ("1032", "24.5"),
        "KFC-pre, M = 4096": ("123", "37.7", "11.9"),
        "SGD, M = 4096": ("5042", "14838", "233", "63.6"),
    }.items():
        for number in numbers:
            assert re.search(rf"\b{number}\b", rows[method]) and re.search(rf"\b{number}\b", said)
    (lost,) = re.findall(r"\(\.\./(results/paper/again/[^)]+)\)", said)
    metrics = read_metrics(root / lost)
    update = int(re.search(r"lost after update (\d+)", said)[1])
    before, after = (float(number) for number in re.findall(r"([\d.]+)% to ([\d.]+)%", said)[-1])
    at = metrics["iteration"].tolist().index(update)
    assert 100 * metrics["train_error"][at] == pytest.approx(before, abs=0.06)
    soon = metrics["epoch"] <= metrics["epoch"][at] + 4
    assert 100 * metrics["train_error"][soon].max() == pytest.approx(after, abs=0.06)
    tables = root / "results/benchmark/processes.md"
    assert tables.read_text(encoding="utf-8") in (root / "docs/scaling.md").read_text("utf-8")
