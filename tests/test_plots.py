"""Figures: what is in them, that they are the same bytes twice, and what they cannot be made of."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import matplotlib
import numpy as np
import pytest
import yaml
from matplotlib import image
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.transforms import Bbox

import kfcnet
from kfcnet.config import dump_config, load_config
from kfcnet.figures import curves
from kfcnet.runs.files import RecordError, read_json, write_json
from kfcnet.runs.identity import group_by_seed
from kfcnet.runs.labels import data_set, method
from kfcnet.runs.metrics import COLUMNS, append_metrics, create_metrics, read_metrics
from kfcnet.runs.read import read_run

PACKAGE = Path(kfcnet.__file__).parent
LAYERS = [
    {"layer": "conv", "filters": 32},
    {"layer": "relu"},
    {"layer": "conv", "filters": 64},
    {"layer": "dense", "units": 10},
]


def write_run(
    folder,
    name="kfc_pre",
    batch=512,
    data="cifar10",
    rows=9,
    seed=0,
    final=0.2,
    processor="Some CPU",
    network=LAYERS,
    zero=False,
    rate=0.01,
    pace=30.0,
):
    """A run that nobody trained: errors fall from 90% to `final`."""
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(
        yaml.safe_dump(
            {
                "data": {"name": data},
                "network": network,
                "seed": seed,
                "optimizer": {"name": name, "batch_size": batch, "learning_rate": rate},
            }
        )
    )
    write_json(folder / "run.json", {"device": {"device": "cpu", "processor": processor}})
    create_metrics(folder / "metrics.csv")
    for row in range(rows):
        done = row / max(rows - 1, 1)
        values = dict.fromkeys(COLUMNS, 0.0) | {
            "iteration": row * 49,
            "examples": row * 49 * batch,
            "epoch": 0.5 * row,
            "seconds": pace * row,
            "train_loss": 2.3 * 0.1**done,
            "test_loss": 2.3 * 0.2**done,
            "train_error": 0.0 if zero and row == rows - 1 else 0.9 * (final / 2) ** done,
            "test_error": 0.9 * (final / 0.9) ** done,
        }
        append_metrics(folder / "metrics.csv", values)
    return folder


def drawn(folders, x="seconds"):
    """(Figure, loss axes, error axes) of runs."""
    figure = curves.draw_runs([read_run(folder) for folder in folders], x)
    return figure, *figure.axes


def lines_of(axes):
    return [line for line in axes.lines if len(line.get_xdata()) > 2]


def title(figure):
    return figure.texts[0].get_text()


def texts(figure):
    return [text.get_text() for text in figure.legends[0].get_texts()]


@pytest.mark.parametrize("suffix", ["png", "svg", "pdf"])
def test_a_figure_drawn_twice_is_the_same_bytes(suffix, tmp_path):
    run = write_run(tmp_path / "run")
    first, second = tmp_path / f"first.{suffix}", tmp_path / f"second.{suffix}"
    curves.plot_runs([run], first)
    with matplotlib.rc_context({"lines.linewidth": 9, "font.size": 20}):  # a user's own settings
        curves.plot_runs([run], second)
    assert first.read_bytes() == second.read_bytes()
    assert len(first.read_bytes()) > 2000


@pytest.mark.parametrize("parts", [1, 2])
def test_a_figure_does_not_show_the_last_digits_of_its_layout(parts, tmp_path, monkeypatch):
    execute, noise = ConstrainedLayoutEngine.execute, 0

    def noisy(self, figure):
        execute(self, figure)
        for part in figure.subfigs:
            part.bbox_relative.set_points(part.bbox_relative.get_points() + noise)
        for axes in figure.axes:
            axes.set_position(Bbox(axes.get_position().get_points() + noise))

    def draw():
        figure = Figure()
        places = [figure] if parts == 1 else figure.subfigures(1, parts)
        for place in places:
            place.subplots().plot([3, 1, 2])
        return figure

    monkeypatch.setattr(ConstrainedLayoutEngine, "execute", noisy)
    for noise in (0, 1e-13):
        curves.save_figure(draw, tmp_path / f"{noise}.svg")
    assert (tmp_path / "0.svg").read_bytes() == (tmp_path / "1e-13.svg").read_bytes()


def test_a_figure_in_several_formats_is_drawn_once_and_each_file_is_as_if_alone(tmp_path):
    run, drawn = read_run(write_run(tmp_path / "run")), []

    def draw():
        drawn.append(curves.draw_runs([run]))
        return drawn[-1]

    for name in ("alone.png", "alone.svg", "alone.pdf"):
        curves.save_figure(draw, tmp_path / name)
    drawn.clear()
    curves.save_figure(draw, *(tmp_path / f"together.{kind}" for kind in ("png", "svg", "pdf")))
    assert len(drawn) == 1
    for kind in ("png", "svg", "pdf"):
        alone, together = (tmp_path / f"{name}.{kind}" for name in ("alone", "together"))
        assert alone.read_bytes() == together.read_bytes()


def test_a_figure_is_a_picture_with_every_curve_in_it(tmp_path):
    runs = [write_run(tmp_path / "a"), write_run(tmp_path / "b", "sgd", 128, final=0.3)]
    curves.plot_runs(runs, tmp_path / "two.png")
    pixels = image.imread(tmp_path / "two.png")[..., :3]
    assert pixels.shape[1] >= 1400
    for colour in curves.COLOURS[:2]:
        assert (np.abs(pixels - to_rgb(colour)).max(axis=2) < 0.02).sum() > 500
    assert (np.abs(pixels - to_rgb(curves.COLOURS[2])).max(axis=2) < 0.02).sum() == 0


@pytest.mark.parametrize(
    "x, column, label",
    [
        ("seconds", "seconds", "training time (s)"),
        ("updates", "iteration", "updates"),
        ("epochs", "epoch", "epochs"),
        ("examples", "examples", "training examples"),
    ],
)
def test_curves_lie_where_the_records_say(x, column, label, tmp_path):
    run = write_run(tmp_path / "run")
    metrics = read_metrics(run / "metrics.csv")
    _, *panels = drawn([run], x)
    for axes, quantity in zip(panels, ("loss", "error"), strict=True):
        assert axes.get_xlabel() == label
        train, test = lines_of(axes)
        for line, part in ((train, "train"), (test, "test")):
            np.testing.assert_array_equal(line.get_xdata(), metrics[column])
            np.testing.assert_array_equal(line.get_ydata(), metrics[f"{part}_{quantity}"])
        assert (train.get_linestyle(), test.get_linestyle()) == ("--", "-")
        assert train.get_color() == test.get_color()


@pytest.mark.parametrize("rows, unit", [(21, "s"), (22, "min"), (481, "min"), (482, "h")])
def test_time_is_shown_in_readable_units(rows, unit, tmp_path):
    _, loss, _ = drawn([write_run(tmp_path / "run", rows=rows)])
    assert loss.get_xlabel() == f"training time ({unit})"
    divisor = {"s": 1, "min": 60, "h": 3600}[unit]
    assert lines_of(loss)[0].get_xdata()[-1] == 30 * (rows - 1) / divisor


@pytest.mark.parametrize("rows, every", [(5, 1), (41, 5)])
def test_a_curve_has_about_eight_markers(rows, every, tmp_path):
    _, *panels = drawn([write_run(tmp_path / "run", rows=rows)])
    marks = {line.get_markevery() for axes in panels for line in lines_of(axes)}
    assert marks == {every}


def test_runs_differ_in_colour_and_in_marker(tmp_path):
    runs = [write_run(tmp_path / str(batch), batch=batch) for batch in (64, 128, 256, 512)]
    lines = lines_of(drawn(runs)[1])
    assert len({line.get_color() for line in lines}) == len({line.get_marker() for line in lines})
    assert len({line.get_marker() for line in lines}) == 4


def test_labels_and_title_come_from_the_records(tmp_path):
    runs = [write_run(tmp_path / "a"), write_run(tmp_path / "b", "sgd", 128)]
    figure = drawn(runs)[0]
    assert title(figure) == "CIFAR-10, conv 32-64, dense 10, CPU (Some CPU)"
    assert texts(figure)[:4] == ["KFC-pre, M = 512", "SGD, M = 128", "training", "test"]
    assert title(drawn(runs[:1])[0]) == (
        "CIFAR-10, conv 32-64, dense 10, batch 512, CPU (Some CPU)"
    )


def test_what_runs_do_not_share_is_in_their_labels(tmp_path):
    runs = [
        write_run(tmp_path / "a", rate=0.1),
        write_run(tmp_path / "b", rate=0.3),
        write_run(
            tmp_path / "c",
            "sgd",
            128,
            processor="Other CPU",
            network=[*LAYERS, {"layer": "batch_norm"}],
        ),
    ]
    figure = drawn(runs)[0]
    assert title(figure) == "CIFAR-10, conv 32-64, dense 10"
    assert texts(figure)[:3] == [
        "KFC-pre, M = 512, CPU (Some CPU), learning rate 0.1",
        "KFC-pre, M = 512, CPU (Some CPU), learning rate 0.3",
        "SGD, M = 128, batch norm, CPU (Other CPU)",
    ]


def edit_optimizer(folder, **settings):
    config = yaml.safe_load((folder / "config.yaml").read_text())
    config["optimizer"].update(settings)
    (folder / "config.yaml").write_text(yaml.safe_dump(config))


def test_a_structure_is_part_of_a_methods_name(tmp_path):
    runs = [write_run(tmp_path / name) for name in ("kfc", "sua")]
    for run in runs:
        edit_optimizer(run, structure=run.name)
    assert texts(drawn(runs)[0])[:2] == ["KFC-pre, M = 512", "KFC-pre (SUA), M = 512"]
    edit_optimizer(runs[1], tikhonov="exact")
    assert method(read_run(runs[1])) == "KFC-pre (SUA) (exact Tikhonov), M = 512"


def test_a_run_whose_record_is_older_than_a_setting_is_a_seed_of_the_others(tmp_path):
    for seed in range(2):
        text = dump_config(load_config("digits_sgd", [f"seed={seed}"]))
        older = text.replace("  nesterov: false\n", "")
        assert older != text
        folder = write_run(tmp_path / str(seed))
        (folder / "config.yaml").write_text(text if seed else older)
    runs = [read_run(tmp_path / str(seed)) for seed in range(2)]
    assert [len(group) for group in group_by_seed(runs)] == [2]


def test_a_setting_that_an_older_record_lacks_is_in_no_label(tmp_path):
    runs = [write_run(tmp_path / "old", rate=0.1), write_run(tmp_path / "new", rate=0.3)]
    edit_optimizer(runs[1], nesterov=False)
    assert texts(drawn(runs)[0])[:2] == [
        "KFC-pre, M = 512, learning rate 0.1",
        "KFC-pre, M = 512, learning rate 0.3",
    ]


def test_words_stand_in_a_label_in_place_of_the_settings_that_differ(tmp_path):
    folders = [write_run(tmp_path / name, rate=rate) for name, rate in (("a", 0.1), ("b", 0.3))]
    runs = [read_run(folder) for folder in folders]
    figure = curves.draw_panels([curves.Panel(runs, "loss", words=("", "a higher rate"))])
    assert texts(figure)[:2] == ["KFC-pre, M = 512", "KFC-pre, M = 512, a higher rate"]


def test_the_legend_of_a_single_panel_is_no_wider_than_the_figure(tmp_path):
    runs = [read_run(write_run(tmp_path / name, name)) for name in ("kfc_pre", "sgd")]
    figure = curves.draw_panels([curves.Panel(runs, "error", "updates")])
    FigureCanvasAgg(figure).draw()
    legend = figure.legends[0].get_window_extent()
    assert legend.x0 >= 0 and legend.x1 <= figure.bbox.width


def test_seeds_are_one_curve_their_median_in_a_band_from_lowest_to_highest(tmp_path):
    finals = (0.1, 0.2, 0.4)
    runs = [
        write_run(tmp_path / str(seed), seed=seed, final=final, pace=pace)
        for seed, (final, pace) in enumerate(zip(finals, (10.0, 20.0, 60.0), strict=True))
    ]
    figure, _, error = drawn(runs)
    assert texts(figure)[0] == "KFC-pre, M = 512, 3 seeds"
    _, test = lines_of(error)
    assert test.get_ydata()[-1] == pytest.approx(finals[1])
    np.testing.assert_allclose(test.get_xdata(), 20.0 * np.arange(9))  # seconds, their median
    band = error.collections[1].get_paths()[0].vertices
    ends = band[band[:, 0] == 160.0][:, 1]
    assert ends.min() == pytest.approx(0.1) and ends.max() == pytest.approx(0.4)
    assert error.get_ylim()[1] > 0.9


@pytest.mark.parametrize(
    "x, column, unit", [("updates", "iteration", 1), ("seconds", "seconds", 60)]
)
def test_behind_the_end_of_a_seed_that_was_cut_the_others_are_thin_lines(x, column, unit, tmp_path):
    runs = [
        write_run(tmp_path / "whole", seed=0, rows=9, final=0.1, pace=90.0),
        write_run(tmp_path / "cut", seed=1, rows=4, final=0.1, pace=90.0),
    ]
    error = drawn(runs, x)[2]
    whole, cut = (read_metrics(run / "metrics.csv") for run in runs)
    _, test, _, rest = sorted(lines_of(error), key=lambda line: -line.get_linewidth())
    np.testing.assert_array_equal(test.get_xdata(), whole[column][:4] / unit)
    middle = (whole["test_error"][:4] + cut["test_error"]) / 2
    np.testing.assert_allclose(test.get_ydata(), middle)
    np.testing.assert_array_equal(rest.get_xdata(), whole[column][3:] / unit)
    np.testing.assert_array_equal(rest.get_ydata(), whole["test_error"][3:])
    assert rest.get_linewidth() < test.get_linewidth()


def test_a_seed_evaluated_less_often_is_joined_by_straight_lines(tmp_path):
    often = write_run(tmp_path / "often", seed=0)
    seldom = write_run(tmp_path / "seldom", seed=1)
    lines = (seldom / "metrics.csv").read_text().splitlines(keepends=True)
    (seldom / "metrics.csv").write_text("".join(lines[:1] + lines[1::2]))
    values = read_metrics(often / "metrics.csv")["test_error"]
    _, test = lines_of(drawn([often, seldom])[2])
    expected = (values[1] + (values[0] + values[2]) / 2) / 2
    assert test.get_ydata()[1] == pytest.approx(expected)
    assert test.get_ydata()[2] == values[2]


def test_a_row_without_a_number_leaves_the_rows_beside_it_as_they_are(tmp_path):
    runs = [read_run(write_run(tmp_path / str(seed), seed=seed)) for seed in range(2)]
    expected = runs[0].metrics["test_error"].copy()
    runs[1].metrics["test_error"][4] = np.nan
    _, test = lines_of(curves.draw_runs(runs).axes[1])
    np.testing.assert_array_equal(test.get_ydata(), expected)


@pytest.mark.parametrize(
    ("other", "first", "second"),
    [
        ({"device": {"native": False}}, "", " (2)"),
        ({"data": {"sha256": "b"}}, ", CIFAR-10 (a)", ", CIFAR-10 (b)"),
    ],
)
def test_seeds_on_other_images_or_without_the_extension_are_a_curve_of_their_own(
    other, first, second, tmp_path
):
    runs = [read_run(write_run(tmp_path / str(seed), seed=seed)) for seed in range(3)]
    for run in runs:
        run.record.update(data={"sha256": "a"})
        run.record["device"].update(native=True)
    for key, values in other.items():
        runs[2].record[key].update(values)
    assert texts(curves.draw_runs(runs))[:2] == [
        f"KFC-pre, M = 512{first}, 2 seeds",
        f"KFC-pre, M = 512{second}, 1 seed",
    ]


def test_the_same_seed_twice_is_two_curves(tmp_path):
    runs = [write_run(tmp_path / name) for name in ("first", "again")]
    figure, loss, _ = drawn(runs)
    assert texts(figure)[:2] == ["KFC-pre, M = 512", "KFC-pre, M = 512 (2)"]
    assert len({line.get_marker() for line in lines_of(loss)}) == 2


def test_a_method_looks_the_same_in_all_panels(tmp_path):
    kfc = [read_run(write_run(tmp_path / f"kfc{seed}", seed=seed)) for seed in range(2)]
    sgd = read_run(write_run(tmp_path / "sgd", "sgd", 128))
    other = read_run(write_run(tmp_path / "other", data="svhn"))
    panels = [
        curves.Panel([sgd, *kfc], "error", "updates", "(a)", is_logarithmic=True),
        curves.Panel([other], "error", "updates", "(b)"),
        curves.Panel([other], "loss", "epochs", "(c)"),
    ]
    figure = curves.draw_panels(panels)
    assert [axes.get_xscale() for axes in figure.axes] == ["log", "linear", "linear"]
    assert [axes.get_xlabel() for axes in figure.axes] == ["updates", "updates", "epochs"]
    assert [axes.get_title() for axes in figure.axes] == ["(a)", "(b)", "(c)"]
    first, second, _ = figure.axes
    assert (
        lines_of(first)[2].get_color()
        == lines_of(second)[0].get_color()
        != (lines_of(first)[0].get_color())
    )
    assert texts(figure)[:2] == ["SGD, M = 128, 1 seed", "KFC-pre, M = 512, 1 to 2 seeds"]
    figure = curves.draw_panels([panels[0]._replace(runs=kfc), panels[1]])
    assert [axes.get_title() for axes in figure.axes] == ["(a), 2 seeds", "(b), 1 seed"]
    assert texts(figure)[0] == "KFC-pre, M = 512"


@pytest.mark.parametrize(
    "data, published",
    [
        (["cifar10"], "published test error, 18%"),
        (["svhn"], "published test error, 2.78%"),
        (["digits"], None),
        (["synthetic"], None),
        (["cifar10", "svhn"], None),
    ],
)
def test_the_published_error_is_drawn_for_its_own_data_set_only(data, published, tmp_path):
    runs = [write_run(tmp_path / name, data=name) for name in data]
    figure, loss, error = drawn(runs)
    shown = [text for text in texts(figure) if "published" in text]
    assert shown == ([published] if published else [])
    levels = [line.get_ydata()[0] for line in error.lines if line.get_linestyle() == ":"]
    assert levels == {"cifar10": [0.18], "svhn": [0.0278]}.get("".join(data), [])
    assert not [line for line in loss.lines if line.get_linestyle() == ":"]


def test_images_of_ones_own_are_called_what_their_record_says(tmp_path):
    own = read_run(write_run(tmp_path / "run", data="folder"))
    assert data_set(own) == "folder"
    own.record["data"] = {"title": "flowers", "train_examples": 10, "test_examples": 2}
    assert data_set(own) == "flowers"


def test_a_part_of_a_data_set_is_called_one_and_the_published_error_that_of_all(tmp_path):
    run = write_run(tmp_path / "run", data="svhn")
    record = read_json(run / "run.json")
    for train, test, name, whole in (
        (8001, 1999, "SVHN, 10k subset", " on all of SVHN"),
        (73257, 26032, "SVHN", ""),
        (604388, 26032, "SVHN", ""),
    ):
        record["data"] = {"train_examples": train, "test_examples": test}
        write_json(run / "run.json", record)
        figure = drawn([run])[0]
        assert title(figure).startswith(f"{name}, conv")
        assert [text for text in texts(figure) if "published" in text] == [
            f"published test error{whole}, 2.78%"
        ]


def test_an_error_of_zero_lies_on_the_lower_edge(tmp_path):
    _, _, error = drawn([write_run(tmp_path / "run", zero=True)])
    bottom = error.get_ylim()[0]
    training = lines_of(error)[0].get_ydata()
    assert error.get_yscale() == "log" and training[-1] == bottom > 0
    assert (training[:-1] > bottom).all()


def test_a_run_of_one_row_and_a_diverged_run_can_be_drawn(tmp_path):
    one = write_run(tmp_path / "one", rows=1)
    curves.plot_runs([one], tmp_path / "one.png")
    bad = write_run(tmp_path / "bad")
    row = {
        **dict.fromkeys(COLUMNS, np.nan),
        "iteration": 10**6,
        "examples": 10**8,
        "seconds": 900,
        "epoch": 99,
    }
    append_metrics(bad / "metrics.csv", row)
    curves.plot_runs([bad], tmp_path / "bad.png")
    assert (tmp_path / "one.png").exists() and (tmp_path / "bad.png").exists()


def test_bad_requests_are_errors_that_name_the_value(tmp_path):
    run = write_run(tmp_path / "run")
    with pytest.raises(ValueError, match="'hours' is not one of seconds, updates"):
        curves.plot_runs([run], tmp_path / "x.png", "hours")
    with pytest.raises(ValueError, match="curves.gif.*.png"):
        curves.plot_runs([run], tmp_path / "curves.gif")


@pytest.mark.parametrize(
    "name, content, message",
    [
        ("metrics.csv", "iteration\n", "metrics.csv, line 1"),
        ("run.json", "{", "run.json, line 1"),
        ("config.yaml", "data: [", "config.yaml: line"),
        ("config.yaml", "data: 3", "config.yaml lacks the entry network .*move its folder"),
        ("run.json", "[]", "run.json lacks the entry device"),
    ],
)
def test_an_unreadable_record_is_an_error_naming_the_file(name, content, message, tmp_path):
    run = write_run(tmp_path / "run")
    (run / name).write_text(content)
    with pytest.raises(RecordError, match=message):
        curves.plot_runs([run], tmp_path / "x.png")
    assert not (tmp_path / "x.png").exists()


def test_a_folder_without_a_run_is_an_error_naming_it(tmp_path):
    with pytest.raises(RecordError, match="nothing holds no run"):
        curves.plot_runs([tmp_path / "nothing"], tmp_path / "x.png")
    run = write_run(tmp_path / "run")
    shutil.rmtree(run)
    with pytest.raises(RecordError, match="run holds no run"):
        curves.plot_runs([run], tmp_path / "x.png")


def test_a_sweep_is_drawn_with_a_line_a_stage_and_crosses_where_runs_diverged(tmp_path):
    run = read_run(write_run(tmp_path / "run"))
    results = [
        (2.0, {"optimizer.learning_rate": rate}, error)
        for rate, error in ((0.3, None), (0.1, 0.4), (0.03, 0.3))
    ]
    results.append((12.0, {"optimizer.learning_rate": 0.03}, 0.1))
    normalised = {**run.config, "network": [*run.config["network"], {"layer": "batch_norm"}]}
    assert (
        ", batch norm, CPU"
        in curves.draw_sweep(results, [run._replace(config=normalised)]).get_suptitle()
    )
    figure = curves.draw_sweep(results, [run])
    assert "batch norm" not in figure.get_suptitle()
    axes = figure.axes[0]
    lines = {line.get_label(): line for line in axes.lines}
    assert lines["2 epochs"].get_xydata().tolist() == [[0, 0.3], [1, 0.4]]
    assert lines["12 epochs"].get_xydata().tolist() == [[0, 0.1]]
    assert texts(figure) == ["2 epochs", "12 epochs", "diverged"]
    crosses = [line.get_xydata().tolist() for line in axes.lines if line.get_marker() == "x"]
    assert crosses == [[[2, 1]], []]  # the empty one is the legend's
    assert [text.get_text() for text in axes.get_xticklabels()] == ["0.03", "0.1", "0.3"]


def test_values_of_a_sweep_that_are_words_stand_behind_the_numbers():
    axes = Figure().subplots()
    curves.draw_grid(axes, {"2 epochs": [("auto", 0.3), (0.1, 0.5), (0.03, 0.4)]})
    assert [text.get_text() for text in axes.get_xticklabels()] == ["0.03", "0.1", "auto"]
    assert axes.lines[0].get_xydata().tolist() == [[0, 0.4], [1, 0.5], [2, 0.3]]


def labels_of(axis):
    """The labels that an axis shows within its limits."""
    low, high = axis.get_view_interval()
    return [
        tick.get_text() for tick in axis.get_ticklabels() if low <= tick.get_position()[1] <= high
    ]


@pytest.mark.parametrize(
    "lowest, highest, labels",
    [
        (0.3, 0.5, "30 40 50 60 70 80 90 100"),
        (0.2, 0.5, "20 50 100"),
        (0.03, 0.5, "5 10 20 50 100"),
        (0.05, 0.09, "5 10 20 50 100"),
        (0.0007, 0.5, "0.1 1 10 100"),
    ],
)
def test_errors_are_labelled_in_percent_and_as_densely_as_fits(lowest, highest, labels):
    axes = Figure().subplots()
    curves.draw_grid(axes, {"2 epochs": [(0.1, highest), (0.3, lowest)]})
    assert labels_of(axes.yaxis) == labels.split()


def test_losses_are_labelled_as_they_are_and_errors_in_percent(tmp_path):
    _, loss, error = drawn([write_run(tmp_path / "run")])  # from 2.3 to 0.23, from 90% to 9%
    assert labels_of(loss.yaxis) == ["0.2", "0.5", "1", "2"]
    assert labels_of(error.yaxis) == ["10", "20", "50", "100"]


@pytest.mark.parametrize("highest, top", [(0.9, 1.0), (2.0, 2.6)])
def test_every_error_of_a_sweep_lies_within_the_axes_and_crosses_on_their_edge(highest, top):
    axes = Figure().subplots()
    curves.draw_grid(axes, {"2 epochs": [(0.1, highest), (0.3, 0.5), (0.9, None)]})
    assert axes.get_ylim()[0] < 0.5 and axes.get_ylim()[1] == pytest.approx(top)
    assert axes.lines[1].get_xydata().tolist() == [[2, axes.get_ylim()[1]]]


@pytest.mark.parametrize(
    "settings, title",
    [
        ({"batch": 128}, "SGD, CIFAR-10\nconv 32-64, dense 10, CPU (Some CPU)"),
        ({"name": "adam"}, "M = 512, CIFAR-10\nconv 32-64, dense 10, CPU (Some CPU)"),
        ({"network": LAYERS[:1]}, "SGD, M = 512, CIFAR-10\nCPU (Some CPU)"),
        ({"rate": 1.0}, "SGD, M = 512, CIFAR-10\nconv 32-64, dense 10, CPU (Some CPU)"),
        (
            {"processor": "A"},
            "SGD, M = 512, CIFAR-10\nconv 32-64, dense 10, CPU (Some CPU), CPU (A)",
        ),
    ],
)
def test_the_title_of_a_sweep_leaves_out_what_its_runs_differ_in(settings, title, tmp_path):
    settings = [{"name": "sgd"}, {"name": "sgd"} | settings]
    runs = [read_run(write_run(tmp_path / str(n), **own)) for n, own in enumerate(settings)]
    results = [(2.0, {"some.key": n}, 0.4) for n in range(2)]
    assert curves.draw_sweep(results, runs).get_suptitle() == title


def test_keys_of_a_sweep_are_told_apart(tmp_path):
    run = read_run(write_run(tmp_path / "run"))
    grid = {"network.0.std": 0.1, "network.fc10.std": 0.2, "optimizer.schedule.name": "cosine"}
    figure = curves.draw_sweep([(2.0, grid, 0.4)], [run])
    assert figure.axes[0].get_xlabel() == "0 std"
    assert " ".join(texts(figure)[0].split()) == "2 epochs, fc10 std 0.2, schedule cosine"


def saved(draw, out):
    """The Figure that `draw()` returns, as it is saved."""
    figures = []
    curves.save_figure(lambda: figures.append(draw()) or figures[0], out)
    return figures[0]


def assert_apart_and_inside(figure):
    """The legend is in the figure and beside the panels, which are at least an inch high."""
    legend = figure.legends[0].get_window_extent()
    assert legend.x0 >= 0 and legend.x1 <= figure.bbox.width
    assert legend.y0 >= 0 and legend.y1 <= figure.bbox.height
    for axes in figure.axes:
        assert not legend.overlaps(axes.get_tightbbox())
        assert min(axes.bbox.size) > figure.dpi


@pytest.mark.parametrize("processor", ["CPU", "Processor {} of a machine whose name is long"])
def test_the_legend_of_many_runs_is_in_a_taller_figure(processor, tmp_path):
    runs = [
        read_run(write_run(tmp_path / str(n), rows=3, rate=0.01 * n, processor=processor.format(n)))
        for n in range(1, 41)
    ]
    figure = saved(lambda: curves.draw_runs(runs), tmp_path / "curves.png")
    assert_apart_and_inside(figure)
    few = saved(lambda: curves.draw_runs(runs[:2]), tmp_path / "few.png")
    assert few.get_size_inches() == pytest.approx([7.2, 3.4])


def test_the_legend_of_a_large_sweep_is_in_a_larger_figure(tmp_path):
    run = read_run(write_run(tmp_path / "run"))
    decays = [f"{{conv1: {n}, conv2: {n}, conv3: {n}, fc10: {n}}}" for n in range(7)]
    results = [
        (epochs, {"optimizer.learning_rate": 0.1 * n, "optimizer.weight_decay": decay}, 0.5)
        for epochs in (2, 8, 30)
        for n in range(1, 5)
        for decay in decays
    ]
    figure = saved(lambda: curves.draw_sweep(results, [run]), tmp_path / "sweep.png")
    assert_apart_and_inside(figure)


@pytest.mark.parametrize("data", ["svhn", "w" * 300])
def test_a_long_title_is_broken_into_lines_within_the_figure(data, tmp_path):
    network = [{"layer": "conv", "filters": 384}] * 40
    runs = [
        read_run(
            write_run(
                tmp_path / str(n), data=data, network=network, processor=f"{n} of a long name" * 4
            )
        )
        for n in range(3)
    ]
    for figure in (
        saved(lambda: curves.draw_runs(runs, "updates"), tmp_path / "curves.png"),
        saved(lambda: curves.draw_sweep([(2.0, {"a": 1}, 0.4)], runs[:1]), tmp_path / "sweep.png"),
    ):
        box = figure.texts[0].get_window_extent()
        assert box.x0 >= 0 and box.x1 <= figure.bbox.width
        lines = figure.get_suptitle().splitlines()
        assert len(lines) > 1 and "".join(lines).count("384") == 40


def test_a_dollar_in_a_record_begins_no_formula(tmp_path):
    name = "x$1{$y"
    runs = [
        read_run(write_run(tmp_path / name / processor, data=name, processor=processor))
        for processor in ("$1{$", "other")
    ]
    figure = saved(lambda: curves.draw_runs(runs), tmp_path / "curves.png")
    assert title(figure).startswith(name) and "$1{$" in texts(figure)[0]
    results = [(2.0, {f"optimizer.max_norm.{name}": name, f"key.{name}": name}, 0.4)]
    figure = saved(lambda: curves.draw_sweep(results, runs), tmp_path / "sweep.png")
    assert name in texts(figure)[0] and name in figure.axes[0].get_xlabel()
    panel = curves.Panel(runs, "loss", title=name)
    saved(lambda: curves.draw_panels([panel]), tmp_path / "panel.png")


USES_MATPLOTLIB = """
import os, sys
from kfcnet.figures import curves
import matplotlib

def draw():
    figure = curves.Figure()
    figure.subplots().plot([1, 2])
    return figure

curves.save_figure(draw, sys.argv[1])
print(matplotlib.rcParams["backend"], os.environ["MPLBACKEND"])
"""


@pytest.mark.parametrize("backend, counts", [("no_such_backend", False), ("svg", True)])
def test_figures_do_not_depend_on_the_backend_that_a_notebook_asks_for(backend, counts, tmp_path):
    out = tmp_path / "empty.png"
    done = subprocess.run(
        [sys.executable, "-c", USES_MATPLOTLIB, out],
        env={**os.environ, "MPLBACKEND": backend},
        capture_output=True,
        text=True,
        check=True,
    )
    used, asked = done.stdout.split()
    assert asked == backend and (used == backend) == counts
    assert image.imread(out).ndim == 3


def test_modules_that_draw_can_be_imported_whatever_the_backend_is():
    modules = [
        ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts)
        for path in sorted(PACKAGE.rglob("*.py"))
        if re.search("^(from|import) matplotlib", path.read_text(encoding="utf-8"), re.M)
    ]
    assert len(modules) > 3
    environment = {**os.environ, "MPLBACKEND": "no_such_backend"}
    command = [sys.executable, "-c", f"import {', '.join(modules)}"]
    subprocess.run(command, env=environment, check=True)
