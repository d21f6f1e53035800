"""When runs reached the paper's errors: from their records, and from nothing else."""

import csv
import re
import shutil

import numpy as np
import pytest

from kfcnet.config import dump_config, load_config
from kfcnet.figures import milestones
from kfcnet.figures.html import write_page
from kfcnet.figures.milestones import (
    compare,
    ends,
    markdown,
    medians,
    milestone_rows,
    milestones_of,
)
from kfcnet.figures.paper import MILESTONES
from kfcnet.runs.files import WriteError, markdown_table, write_json
from kfcnet.runs.labels import common_titles, distinct_labels
from kfcnet.runs.metrics import COLUMNS, append_metrics, create_metrics
from kfcnet.runs.read import Run


def run(errors, seconds_per_row, updates_per_row):
    rows = len(errors)
    metrics = {name: np.ones(rows) for name in COLUMNS}
    metrics |= {
        "test_error": np.array(errors),
        "train_error": np.array(errors) - 0.05,
        "iteration": updates_per_row * np.arange(rows),
        "epoch": np.arange(rows) * 1.0,
        "seconds": seconds_per_row * np.arange(rows),
    }
    return Run(metrics, {}, {})


def test_milestones_are_the_first_rows_at_or_below_them():
    fast, slow = run([0.9, 0.2, 0.19, 0.3], 10.0, 5), run([0.9, 0.5, 0.3, 0.2], 4.0, 50)
    rows = milestone_rows(
        [fast, slow], ["fast", "slow"], [("test_error", 0.19), ("train_error", 0.25)]
    )
    assert rows[0] == {
        "milestone": "19% test error",
        "run": "fast",
        "epoch": 2.0,
        "updates": 10,
        "seconds": 20.0,
        "updates_ratio": 1.0,
        "seconds_ratio": 1.0,
    }
    assert rows[1] == {
        "milestone": "19% test error",
        "run": "slow",
        "epoch": "",
        "updates": "",
        "seconds": "",
        "updates_ratio": "",
        "seconds_ratio": "",
    }
    assert (rows[3]["updates_ratio"], rows[3]["seconds_ratio"]) == (20.0, 0.8)
    assert "| 19% test error | slow | not reached |" in markdown(rows)


def test_milestones_in_updates_alone_say_nothing_of_seconds(folders, tmp_path):
    rows = compare(folders, tmp_path / "out", by=("updates",))
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        "milestones.csv",
        "milestones.md",
        "runs.md",
        "report.html",
        "curves_by_updates.png",
    }
    table = markdown(rows)
    assert "updates, ratio" in table and "seconds" not in table
    assert len({line.count("|") for line in table.splitlines()}) == 1


@pytest.mark.parametrize(
    "seconds, text", [(123.4, "123"), (99.7, "100"), (99.4, "99"), (9.97, "10"), (0.083, "0.083")]
)
def test_seconds_have_two_digits_and_no_exponent(seconds, text):
    one = run([0.9, 0.1], seconds, 1)
    assert cells(ends([one], ["one"]))[2][3] == text
    rows = milestone_rows([one], ["one"], [("test_error", 0.19)])
    assert cells(markdown(rows))[2][4] == text
    table = medians([seeds("sgd", one)], [("test_error", 0.19)], ("seconds",))
    assert cells(table)[2][1] == text


@pytest.mark.parametrize(
    "updates, text", [(1234, "1.23"), (500, "0.50"), (36, "0.036"), (4, "0.004")]
)
def test_small_ratios_have_two_digits(updates, text):
    base, fast = run([0.9, 0.1], 1.0, 1000), run([0.9, 0.1], 1.0, updates)
    rows = milestone_rows([base, fast], ["base", "fast"], [("test_error", 0.19)], ("updates",))
    assert cells(markdown(rows))[3][4] == text
    groups = [seeds("sgd", base), seeds("kfc_pre", fast)]
    assert cells(medians(groups, [("test_error", 0.19)], ("updates",)))[2][3] == text


def test_a_milestone_that_only_the_other_run_reached_has_no_ratio():
    rows = milestone_rows(
        [run([0.9, 0.8], 1.0, 1), run([0.9, 0.1], 1.0, 1)], ["a", "b"], [("test_error", 0.19)]
    )
    assert rows[1]["updates"] == 1 and rows[1]["updates_ratio"] == ""


def seeds(name, *runs):
    """Runs of one method as its seeds 0, 1, ...: a group."""
    config = {
        "data": {"name": "digits"},
        "network": [],
        "optimizer": {"name": name, "batch_size": 7},
    }
    return [
        Run(metrics, {**config, "seed": seed}, {"device": {"device": "cpu"}})
        for seed, (metrics, *_) in enumerate(runs)
    ]


def cells(table):
    return [[cell.strip() for cell in line.split("|")[1:-1]] for line in table.splitlines()]


def test_medians_are_over_the_seeds_and_their_ratios_over_pairs():
    """The machine was ten times as slow while the second pair ran: seconds of runs of two seeds
    are not to be divided by each other.
    """
    early, late = [0.9, 0.1], [0.9, 0.5, 0.1]
    fast = seeds("kfc_pre", run(early, 10.0, 5), run(late, 100.0, 5), run(early, 40.0, 20))
    slow = seeds("sgd", run(early, 20.0, 30), run(late, 150.0, 10), run(early, 36.0, 100))
    groups = [fast, [*slow[1:], slow[0]]]
    header, _, line = cells(medians(groups, [("test_error", 0.19)]))
    assert dict(zip(header, line, strict=True)) == {
        "milestone": "19% test error",
        "KFC-pre, M = 7, 3 runs: updates": "10",
        "KFC-pre, M = 7, 3 runs: seconds": "40",
        "SGD, M = 7, 3 runs: updates": "30",
        "SGD, M = 7, 3 runs: seconds": "36",
        "updates, ratio": "5.00",  # of 6, 2 and 5
        "seconds, ratio": "1.50",  # of 2, 1.5 and 0.9
    }


@pytest.mark.parametrize(
    "errors, median, ratio", [([0.9, 0.5], "not reached", ""), ([0.1, 0.1], "3", "0.30")]
)
def test_a_run_that_did_not_get_there_is_not_left_out_of_a_median(errors, median, ratio):
    """Neither is one that was there at once, but nothing can be divided by its zero updates."""
    other = seeds("kfc_pre", run([0.9, 0.1], 1.0, 6), run(errors, 1.0, 6))
    sgd = seeds("sgd", run([0.9, 0.1], 1.0, 10), run([0.9, 0.1], 1.0, 10))
    milestones = [("test_error", 0.19)]
    assert cells(medians([sgd, other], milestones, ("updates",)))[2][1:] == ["10", median, ratio]
    assert cells(medians([other, sgd], milestones, ("updates",)))[2][1:] == [median, "10", ""]


def test_medians_are_written_where_a_configuration_has_seeds(folders, tmp_path):
    compare(folders, tmp_path / "once")
    assert not (tmp_path / "once/medians.md").exists()
    again = tmp_path / "again"
    shutil.copytree(folders[0], again)
    (again / "config.yaml").write_text(dump_config(load_config("cifar_kfc", ["seed=1"])))
    compare([*folders, again], tmp_path / "twice", by=("updates",))
    header, *_ = cells((tmp_path / "twice/medians.md").read_text())
    assert header == [
        "milestone",
        "KFC-pre, M = 512, 2 runs: updates",
        "SGD, M = 128, 1 run: updates",
        "updates, ratio",
    ]


@pytest.fixture
def folders(tmp_path):
    made = []
    for name in ("cifar_kfc", "cifar_sgd"):
        folder = tmp_path / name
        folder.mkdir()
        (folder / "config.yaml").write_text(dump_config(load_config(name)))
        write_json(folder / "run.json", {"device": {"device": "cpu"}})
        create_metrics(folder / "metrics.csv")
        for step, error in enumerate((0.9, 0.5, 0.1)):
            row = dict.fromkeys(COLUMNS, 1.0) | {
                "iteration": step,
                "examples": step,
                "test_error": error,
                "train_error": error,
            }
            append_metrics(folder / "metrics.csv", row)
        made.append(folder)
    return made


def labels_of(optimizers, networks=None):
    """Labels of runs of SGD, with these settings and networks, without their common beginning."""
    runs = [
        Run(
            None,
            {
                "data": {"name": "digits"},
                "network": network,
                "optimizer": {"name": "sgd", "batch_size": 7, **settings},
            },
            {"device": {"device": "cpu"}},
        )
        for settings, network in zip(optimizers, networks or [[]] * len(optimizers), strict=True)
    ]
    return [label.removeprefix("SGD, M = 7, ") for label in distinct_labels(runs)]


def conv(**settings):
    return {"layer": "conv", "filters": 3, **settings}


def test_settings_of_layers_tell_runs_apart():
    networks = [[conv(std=0.1), conv(name="last", std=std)] for std in (0.1, "he")]
    networks.append([conv(std=0.2), conv(name="last", std=0.1)])
    assert labels_of([{}, {}, {}], networks) == [
        "conv1 std 0.1, last std 0.1",
        "conv1 std 0.1, last std he",
        "conv1 std 0.2, last std 0.1",
    ]


def test_a_number_differs_from_a_mapping_of_layers():
    decays = (1e-4, {"conv1": 0.1}, {"conv2": 0.1, "fc": 1.0})
    older_record = {}
    assert labels_of([older_record, *({"weight_decay": decay} for decay in decays)]) == [
        "SGD, M = 7",
        "weight decay 0.0001",
        "weight decay {conv1: 0.1}",
        "weight decay {conv2: 0.1, fc: 1.0}",
    ]


def test_a_label_has_as_much_of_a_key_as_tells_it_from_the_others():
    optimizers = [{"weight_decay": {"conv1": x}, "max_norm": {"conv1": 10 * x}} for x in (0.1, 0.2)]
    assert labels_of(optimizers)[0] == "weight decay conv1 0.1, max norm conv1 1.0"


def test_a_schedule_is_called_one():
    schedules = ({"name": "constant"}, {"name": "cosine", "epochs": 2.0})
    assert labels_of([{"schedule": schedule} for schedule in schedules]) == [
        "schedule constant",
        "schedule cosine",
    ]


def test_images_of_ones_own_that_differ_behind_one_name_are_told_apart():
    def trained_on(checksum):
        data = {"title": "arrays in memory", **({"sha256": checksum} if checksum else {})}
        settings = {"data": {"name": "arrays"}, "network": [], "optimizer": {"name": "sgd"}}
        settings["optimizer"]["batch_size"] = 7
        return Run(None, settings, {"device": {"device": "cpu"}, "data": data})

    apart = [trained_on("abcdef01"), trained_on("fedcba10")]
    assert distinct_labels(apart) == [
        f"SGD, M = 7, arrays in memory ({each})" for each in ("abcdef", "fedcba")
    ]
    assert not any("arrays" in title for title in common_titles(apart))
    same = [trained_on("abcdef01"), trained_on("abcdef01"), trained_on(None)]
    assert common_titles(same)[0] == "arrays in memory"


def test_runs_that_no_label_tells_apart_are_called_after_their_folders(folders, tmp_path):
    config, _ = folders
    for name in ("a/again", "b/again", "b/longer"):
        shutil.copytree(config, tmp_path / name)
    again = [tmp_path / name for name in ("a/again", "b/again", "b/longer")]
    (again[2] / "config.yaml").write_text(dump_config(load_config("cifar_kfc", ["epochs=77"])))
    compare([*folders, *again, again[2]], tmp_path / "out", by=("updates",))
    _, _, *lines = cells((tmp_path / "out/runs.md").read_text())
    assert [line[0] for line in lines] == [
        "KFC-pre, M = 512, cifar_kfc",
        "SGD, M = 128",
        "KFC-pre, M = 512, a/again",
        "KFC-pre, M = 512, b/again",
        "KFC-pre, M = 512, longer",
        "KFC-pre, M = 512, longer (2)",
    ]


def test_medians_number_groups_that_no_label_tells_apart():
    groups = [seeds("sgd", run([0.9, 0.1], 1.0, 6)) for _ in range(2)]
    header, *_ = cells(medians(groups, [("test_error", 0.19)], ("updates",)))
    assert header[1:3] == ["SGD, M = 7, 1 run: updates", "SGD, M = 7 (2), 1 run: updates"]


def digits(*errors):
    """Runs on the digits, one for each list of training errors; test errors are twice as large."""
    config = {"data": {"name": "digits"}, "network": [], "optimizer": {"name": "sgd"}}
    runs = [run(np.array(row), 1.0, 1) for row in errors]
    for one, row in zip(runs, errors, strict=True):
        one.metrics.update(train_error=np.array(row), test_error=2 * np.array(row))
    return [Run(one.metrics, config, {}) for one in runs]


def test_milestones_are_the_papers_on_cifar_and_the_data_sets_own_elsewhere(folders):
    cifar = [milestones.read_run(folder) for folder in folders]
    assert milestones_of(cifar) == MILESTONES
    runs = digits([0.45, 0.012, 0.04], [0.45, 0.06, 0.2])
    assert milestones_of(runs) == (
        ("test_error", 0.15),  # all reached it
        ("test_error", 0.03),  # one did
        ("train_error", 0.07),
        ("train_error", 0.02),
    )
    assert milestones_of(digits([0.4, 0.012], [0.4, 0.011])) == (
        ("test_error", 0.03),
        ("train_error", 0.02),
    )
    assert milestones_of(digits([0.9, 0.8])) == ()


def test_where_runs_ended_is_told_with_the_lowest_test_error():
    (one,) = digits([0.45, 0.01, 0.02])
    one.metrics["train_error"][1] = 0.03
    header, _, line = cells(ends([one], ["mine"]))
    told = dict(zip(header, line, strict=True))
    assert (told["run"], told["epochs"], told["updates"], told["seconds"]) == (
        "mine",
        "2.0",
        "2",
        "2",
    )
    assert (told["training error"], told["test error"]) == ("2.00%", "4.00%")
    assert (told["lowest"], told["at"]) == ("2.00%", "epoch 1.0")


def test_a_report_needs_no_other_file(folders, tmp_path):
    compare(folders, tmp_path / "out")
    page = (tmp_path / "out" / "report.html").read_text()
    assert page.count('src="data:image/png;base64,') == 2 and "src=" not in re.sub(
        r'src="data:[^"]*"', "", page
    )
    assert not re.search(r"https?://", page)
    assert page.index("Where the runs ended") < page.index("When they first reached")
    assert "<td>KFC-pre, M = 512</td>" in page and "prefers-color-scheme: dark" in page
    assert "<title>CIFAR-10" in page


def test_a_figure_of_a_page_has_its_caption_and_a_wide_table_scrolls(tmp_path):
    (tmp_path / "a.svg").write_text("<svg/>")
    write_page(
        "# One & two\n\n![Errors < 1](a.svg)\n\n| a | b |\n| --- | ---: |\n| 1 | 2 |\n",
        tmp_path / "p.html",
    )
    page = (tmp_path / "p.html").read_text()
    assert "<title>One &amp; two</title>" in page
    assert '<figure><img alt="Errors &lt; 1" src="data:image/svg+xml;base64,PHN2Zy8+">' in page
    assert "<figcaption>Errors &lt; 1</figcaption>" in page
    assert '<div class="table"><table>' in page and "</table></div>" in page


def test_a_name_is_text_in_a_table_and_on_a_page(tmp_path):
    name = "a|b <b>c.npz"
    table = markdown_table([["run", "updates"], ["---", "---:"], [name, "7"]])
    write_page(f"# {name}\n\n{table}", tmp_path / "p.html")
    page = (tmp_path / "p.html").read_text()
    assert "<h1>a|b &lt;b&gt;c.npz</h1>" in page
    assert '<td>a|b &lt;b&gt;c.npz</td>\n<td style="text-align: right;">7</td>' in page


def test_compare_reads_each_run_once(folders, tmp_path, monkeypatch):
    read, original = [], milestones.read_run
    monkeypatch.setattr(
        milestones, "read_run", lambda folder: read.append(folder) or original(folder)
    )
    compare(folders, tmp_path / "out")
    assert read == folders


def test_compare_leaves_both_figures_and_the_table(folders, tmp_path):
    compare(folders, tmp_path / "out")
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert names == {
        "curves_by_seconds.png",
        "curves_by_updates.png",
        "milestones.csv",
        "milestones.md",
        "runs.md",
        "report.html",
    }
    with open(tmp_path / "out" / "milestones.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["updates"] for row in rows] == ["2", "2", "2", "2", "", ""]
    labels = distinct_labels(
        [
            Run(
                None,
                {
                    "data": {"name": "digits"},
                    "network": [],
                    "optimizer": {"name": "sgd", "batch_size": 7},
                },
                {"device": {"device": "cpu"}},
            )
        ]
    )
    assert labels == ["SGD, M = 7"]


def test_files_of_an_earlier_comparison_do_not_stay(folders, tmp_path):
    out = tmp_path / "out"
    again = tmp_path / "again"
    shutil.copytree(folders[0], again)
    (again / "config.yaml").write_text(dump_config(load_config("cifar_kfc", ["seed=1"])))
    compare([*folders, again], out)
    (out / "notes.md").write_text("mine")
    assert (out / "medians.md").exists()
    compare(folders, out, milestones=(), by=("updates",))
    names = {path.name for path in out.iterdir()}
    assert names == {"curves_by_updates.png", "runs.md", "report.html", "notes.md"}


def test_a_folder_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(WriteError, match="cannot make the folder .*name another place with --out"):
        compare([tmp_path / "run"], tmp_path / "file" / "out")
