"""docs/settings.md: its tables and figure come from the records, and the records can be made."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest

from kfcnet import data
from kfcnet.reproduce import settings
from kfcnet.training.build import examples_of
from kfcnet.training.evaluation import evaluate
from kfcnet.training.fit import settings_for

ROOT = Path(__file__).resolve().parents[1]
RESULTS, SCRIPT = ROOT / "results" / "settings", ROOT / "scripts" / "settings.py"


@pytest.fixture
def short(monkeypatch):
    monkeypatch.setattr(settings, "SETS", {"digits": 1})


def test_the_tables_are_those_of_the_records():
    rows = settings.read(RESULTS / "runs.csv")
    assert (RESULTS / "best.md").read_text(encoding="utf-8") == settings.table(rows)
    assert (RESULTS / "failures.md").read_text(encoding="utf-8") == settings.failure_table(rows)
    tried = settings.candidate_table(settings.read(RESULTS / "candidates.csv"))
    assert (RESULTS / "candidates.md").read_text(encoding="utf-8") == tried


def test_no_recorded_run_of_damping_auto_fails_at_any_rate():
    rows = [row for row in settings.read(RESULTS / "runs.csv") if row["damping"] == "auto"]
    for name in settings.SETS:
        own = [row for row in rows if row["data"] == name]
        assert len({row["seed"] for row in own}) == 5
        assert {row["rate"] for row in own} >= {0.3, 0.1, 0.03, 0.01, 0.003}
        assert settings.failures(own)[0] == 0
    assert all(np.isfinite(row["objective"]) and row["train_loss"] < row["start"] for row in rows)


# Some fixed settings bring three digits to a loss of zero.
@pytest.mark.parametrize("name", [name for name in settings.SETS if name != "three"])
def test_the_default_of_fit_ends_within_a_tenth_of_the_best_fixed_settings(name):
    rows = [row for row in settings.read(RESULTS / "runs.csv") if row["data"] == name]
    rate = settings_for(None, 2000)["learning_rate"]
    auto = [r["train_loss"] for r in rows if r["damping"] == "auto" and r["rate"] == rate]
    assert np.median(auto) < 1.1 * settings.best_fixed(rows, "train_loss")["train_loss"]


def test_measuring_leaves_a_row_for_every_point_and_goes_on_where_it_stopped(short, tmp_path):
    path = tmp_path / "runs.csv"
    arguments = dict(seeds=[0], dampings=["auto", 0.1], rates=[0.03])
    settings.measure(path, ["digits"], clips=[0.3], **arguments)
    first = path.read_text()
    settings.measure(path, ["digits"], clips=[0.3, 0.003], **arguments)
    assert path.read_text().startswith(first)
    rows = settings.read(path)
    assert [(row["damping"], row["clip"]) for row in rows] == [
        ("auto", 0.3), ("0.1", 0.3), ("0.1", 0.003),
    ]  # fmt: skip
    assert all(np.isfinite(row["objective"]) and row["objective"] < row["start"] for row in rows)
    settings.draw(rows, tmp_path / "settings.png")
    assert (tmp_path / "settings.png").stat().st_size > 5000


def test_a_row_that_a_kill_has_cut_short_is_measured_again(short, tmp_path):
    path, arguments = tmp_path / "runs.csv", dict(seeds=[0], dampings=["auto"], rates=[0.03, 0.01])
    settings.measure(path, ["digits"], clips=[0.3], **arguments)
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join(lines)[:-7])
    assert [row["rate"] for row in settings.read(path)] == [0.03]
    settings.measure(path, ["digits"], clips=[0.3], **arguments)
    again = path.read_text().splitlines(keepends=True)
    assert again[:2] == lines[:2] and again[2].split(",")[:-1] == lines[2].split(",")[:-1]


def test_without_runs_there_is_nothing_to_draw(tmp_path, capsys):
    specification = importlib.util.spec_from_file_location("settings_script", SCRIPT)
    script = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(script)
    with pytest.raises(SystemExit) as stopped:
        script.main(["--out", str(tmp_path)])
    assert stopped.value.code == 2 and "has no runs to draw: --train" in capsys.readouterr().err


def test_a_run_that_diverges_is_a_row_without_an_objective(short, tmp_path):
    path = tmp_path / "runs.csv"
    settings.measure(path, ["digits"], seeds=[0], dampings=[1e-9], clips=[1e30], rates=[1e9])
    [row] = settings.read(path)
    assert np.isnan(row["objective"]) and row["start"] > 0


def test_a_row_is_of_the_averaged_parameters_after_whole_epochs(monkeypatch):
    """Three epochs of 150 images in mini-batches of 64 are 7 updates, not three times two."""
    built, build_for = [], settings.build_for

    def watched(*args):
        built.append((*args, build_for(*args)))
        return built[-1][-1]

    monkeypatch.setattr(settings, "build_for", watched)
    monkeypatch.setattr(settings, "SETS", {"digits": 3})
    digits = settings.data_set("digits")
    parts = (digits.train_images, digits.train_labels, digits.test_images, digits.test_labels)
    few = data.from_arrays(*(part[:150] for part in parts))
    row = settings.train_once(few, "digits", 0.03, 0.1, 0.3, seed=0)
    ((_, config, ops, optimizer),) = built
    assert (config.optimizer.batch_size, optimizer.steps) == (64, 7)
    with optimizer.network.using(optimizer.average):
        train, test = (
            evaluate(optimizer.network, optimizer.loss, examples_of(few, part, config, ops))
            for part in ("train", "test")
        )
    ends = row["train_loss"], row["train_error"], row["test_error"]
    assert ends == pytest.approx((*train, test[1]), rel=1e-5)
    penalty = optimizer.decay_vector @ optimizer.average**2 / 2
    assert row["objective"] - row["train_loss"] == pytest.approx(penalty, rel=1e-3)


def row(damping, rate, loss, clip=0.3, data="digits"):
    return dict(data=data, damping=damping, clip=clip, rate=rate, start=5.0, train_loss=loss,
                objective=loss + 1)  # fmt: skip


def test_tables_count_failures_and_find_the_best():
    nan = float("nan")
    rows = [
        row("auto", 0.03, 0.1), row("auto", 0.03, 0.3), row("auto", 0.03, 0.2),
        row("0.1", 0.03, 0.4), row("0.1", 0.3, nan), row("0.1", 0.3, 0.0), row("0.1", 0.001, 3.0),
        row("0.1", 0.1, 0.6, clip=0.003),
    ]  # fmt: skip
    lines = settings.table(rows).splitlines()
    assert lines[2] == "| UCI digits 8x8 | training loss | 0.2 | 0.4 | 0.03, 0.1, 0.3 |"
    assert lines[3] == "| UCI digits 8x8 | objective | 1.2 | 1.4 | 0.03, 0.1, 0.3 |"
    assert settings.failure_table(rows).splitlines()[2:] == [
        "| 0.1, 0.003 | 1 of 1 |", "| 0.1, 0.3 | 1 of 3 |", "| auto | 0 of 3 |",
    ]  # fmt: skip
    assert settings.failures([row("0.1", 0.3, 2.4, data="cifar_whole")]) == (0, 1)
    assert settings.failures([row("0.1", 0.3, 2.6, data="cifar_whole")]) == (1, 1)
    assert settings.table([row("auto", 0.03, 0.1), row("0.1", 0.3, nan)]).count("\n") == 2
    assert settings.worst(rows)["digits", "0.1", 0.3] == {0.03: 1.4, 0.3: np.inf, 0.001: 4.0}


def test_candidates_are_compared_over_the_same_seeds_of_the_small_sets():
    small = ("digits", "three", "cifar")
    rows = [
        row("0.01", rate, loss + seed, data=name) | dict(candidate=candidate, seed=seed)
        for candidate, loss in (("bound", 0.1), ("partly", 0.2))
        for rate, seed in ((0.03, 0), (0.03, 1), (0.03, 2), (0.1, 0))
        for name in (small if candidate == "bound" else small[1:])
    ]
    lines = settings.candidate_table(rows).splitlines()
    assert len(lines) == 3 and lines[2] == "| bound | 0.01 " + 3 * "| 0.6, 1.6 " + "|"


@pytest.mark.parametrize("name", settings.SETS)
def test_damping_auto_took_less_than_a_tenth_more_time(name):
    own = [row for row in settings.read(RESULTS / "runs.csv") if row["data"] == name]
    seconds = {True: [], False: []}
    for each in own:
        if np.isfinite(each["seconds"]) and each["damping"] in ("auto", "0.001", "0.01", "0.1"):
            seconds[each["damping"] == "auto"].append(each["seconds"])
    assert 0.5 < np.median(seconds[True]) / np.median(seconds[False]) < 1.1
