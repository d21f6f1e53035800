"""Diagnostics: each number against explicit matrices, and a run with the same bits as without."""

import math
import time

import matplotlib
import numpy as np
import pytest
from checks import assert_close
from networks import EVERY_LAYER, batches, optimizer
from runs import SGD, assert_same_run, small

from kfcnet.batches import Examples
from kfcnet.config import ConfigError
from kfcnet.config.optimizers import ConstantConfig
from kfcnet.curvature.structures import STRUCTURES
from kfcnet.figures import curves
from kfcnet.figures import diagnostics as diagnostic_figures
from kfcnet.network import build_network
from kfcnet.runs.files import RecordError
from kfcnet.runs.folder import RunFolder
from kfcnet.runs.metrics import COUNTS, DIAGNOSTICS, LAYER_DIAGNOSTICS, create_metrics, read_metrics
from kfcnet.runs.read import read_run
from kfcnet.training import diagnostics
from kfcnet.training.diagnostics import measure
from kfcnet.training.train import train
from kfcnet.training.trainer import Stopwatch

ON = "diagnostics.every=2"


@pytest.fixture
def no_figures(monkeypatch):
    """Figures take longer than these runs."""
    for owner, name in ((curves, "plot_runs"), (diagnostic_figures, "plot_diagnostics")):
        monkeypatch.setattr(owner, name, lambda _, out: out.write_text("a figure"))


class Killed(BaseException):
    """Ends a run as a kill would: nothing catches it."""


def looked_at(ops, rng, layers=EVERY_LAYER, **changes):
    """(optimizer after its third step, theta before that step, batch, row about it)."""
    opt = optimizer(ops, "kfc_pre", layers, **changes)
    first, *data = batches(ops, rng, 4)
    opt.prepare([first])
    for batch in data:
        before = opt.network.theta.copy()
        opt.step(batch)
    return opt, before, batch, measure(opt, before, batch)


def fisher_matrix(opt, theta, batch, m):
    """The exact Fisher matrix (n, n) on the first m examples, column by column of the Jacobian."""
    net = opt.network
    with net.using(theta):
        z = net.forward(batch.inputs, training=True, step=2)
        p = opt.loss.evaluate(z, batch.targets)[0][:m]
        jacobian = np.stack([net.tangent(unit, m) for unit in np.eye(len(theta))], axis=-1)
    F_R = np.stack([np.diag(q) - np.outer(q, q) for q in p])
    return np.einsum("mcn,mcd,mdk->nk", jacobian, F_R, jacobian) / m


def test_a_row_has_its_columns_in_their_order(ops64, rng):
    *_, row = looked_at(ops64, rng)
    layers = ("conv1", "conv2", "dense1", "dense2")
    assert tuple(row) == DIAGNOSTICS + tuple(f"{a}_{b}" for a in layers for b in LAYER_DIAGNOSTICS)
    assert (row["iteration"], row["examples"]) == (3, 24)
    assert np.isfinite(list(row.values())).all()


def test_nu_and_the_predicted_reduction_are_those_of_the_explicit_fisher_matrix(ops64, rng):
    opt, before, batch, row = looked_at(ops64, rng, weight_decay=0.05)
    v = -0.1 * opt.direction
    F = fisher_matrix(opt, before, batch, 2) + np.diag(opt.decay_vector)  # clip_fraction 1/4 of 8
    assert_close(row["nu"], v @ F @ v, 1e-9)
    ends = np.cumsum([0] + [math.prod(layer.weight_shape) for layer in opt.network.weighted])
    for layer, a, b in zip(opt.network.weighted, ends, ends[1:], strict=False):
        assert_close(row[f"{layer.name}_nu"], v[a:b] @ F[a:b, a:b] @ v[a:b], 1e-9)
    d = opt.network.theta - before
    F = fisher_matrix(opt, before, batch, 8) + np.diag(opt.decay_vector)
    slope = opt.network.gradient @ d  # as the step left it, weight decay included
    assert_close(row["predicted_reduction"], -slope - d @ F @ d / 2, 1e-9)


def test_nu_is_that_of_the_step_that_was_made_while_the_rate_rises(ops64, rng):
    opt, before, batch, row = looked_at(ops64, rng, schedule=ConstantConfig(warm_up=100))
    v = -opt.previous_learning_rate * opt.direction
    F = fisher_matrix(opt, before, batch, 2) + np.diag(opt.decay_vector)
    assert opt.previous_learning_rate < 0.8 * opt.learning_rate
    assert_close(row["nu"], v @ F @ v, 1e-9)


def test_nu_is_what_the_clip_went_by(ops64, rng):
    opt, before, batch, row = looked_at(ops64, rng, clip=1e-3, weight_decay=0.05, momentum=0.0)
    shortened = opt.network.theta - before
    assert_close(shortened, -0.1 * opt.direction * math.sqrt(1e-3 / row["nu"]), 1e-9)


def test_the_actual_reduction_is_that_of_the_objective_with_the_masks_of_the_step(ops64, rng):
    opt, before, batch, row = looked_at(ops64, rng, weight_decay=0.05)
    values = []
    for theta in (before, opt.network.theta):
        with opt.network.using(theta):
            z = opt.network.forward(batch.inputs, training=True, step=2)
        nats = opt.loss.evaluate(z, batch.targets)[2][0]
        values.append(nats / 8 + theta @ (opt.decay_vector * theta) / 2)
    assert_close(row["actual_reduction"], values[0] - values[1], 1e-9)


def test_the_model_is_right_about_small_steps(ops64, rng):
    *_, row = looked_at(ops64, rng, learning_rate=1e-5, weight_decay=0.05)
    assert row["predicted_reduction"] > 0
    assert abs(row["actual_reduction"] / row["predicted_reduction"] - 1) < 1e-3


def test_cosines_are_those_of_gradient_and_natural_gradient(ops64, rng):
    opt, *_, row = looked_at(ops64, rng, weight_decay=0.05)
    pairs = zip(
        opt.network.weighted,
        opt.network.views(opt.network.gradient),
        opt.network.views(opt.direction),
        strict=True,
    )
    for layer, g, n in pairs:
        expected = (g * n).sum() / (np.linalg.norm(g) * np.linalg.norm(n))
        assert_close(row[f"{layer.name}_cosine"], expected, 1e-9)
        assert 0 < expected < 1  # the damped inverse is positive definite, and not the identity
    assert 0 < row["cosine"] < 1


def test_the_cosine_of_a_layer_without_a_gradient_is_zero(ops64, rng):
    layers = [*EVERY_LAYER, dict(layer="relu"), dict(layer="dense", units=3, std=0.4)]
    opt = optimizer(ops64, "kfc_pre", layers)
    opt.network.weighted[-2].weight[:, 0] = -1e3  # no unit is ever active
    (batch,) = batches(ops64, rng, 1)
    opt.prepare([batch])
    before = opt.network.theta.copy()
    opt.step(batch)
    row = measure(opt, before, batch)
    assert row["dense2_cosine"] == 0 < row["dense3_cosine"] <= 1


def test_eigenvalues_are_those_of_the_factors_that_an_inversion_would_start_from(ops64, rng):
    opt, *_, row = looked_at(ops64, rng, damping=0.02, weight_decay={"conv1": 0.03})
    opt._update_inverses()
    for block in opt.blocks:
        name = block.layer.name
        for factor, inverse in (("Omega", block.Omega_inv), ("Gamma", block.Gamma_inv)):
            values = 1 / np.linalg.eigvalsh(inverse)
            measured = [row[f"{name}_{factor}_{end}"] for end in ("max", "min")]
            assert_close(measured, values[[0, -1]], 1e-7)
        ratio = (
            np.trace(block.Omega) / len(block.Omega) / (np.trace(block.Gamma) / len(block.Gamma))
        )
        assert_close(row[f"{name}_pi"], math.sqrt(ratio))


@pytest.mark.parametrize("structure", STRUCTURES)
def test_every_structure_can_be_looked_at(ops64, rng, structure):
    layers = [EVERY_LAYER[1], dict(layer="batch_norm", affine=True), *EVERY_LAYER[2:]]
    opt, *_, row = looked_at(ops64, rng, layers, structure=structure)
    assert np.isfinite(list(row.values())).all()
    largest = np.linalg.eigvalsh(opt.blocks[1].matrix())[-1]
    assert_close(row["batch_norm1_affine_Omega_max"], largest + opt.config.damping)
    assert row["batch_norm1_affine_Gamma_min"] == row["batch_norm1_affine_pi"] == 1


def test_factors_that_are_not_finite_do_not_end_the_run(ops64, rng):
    opt, before, batch, _ = looked_at(ops64, rng)
    opt.blocks[0].Omega[0, 0] = np.inf
    assert np.isnan(measure(opt, before, batch)["conv1_Omega_max"])


def test_a_run_has_the_same_bits_with_diagnostics_and_without(tmp_path, no_figures):
    network = [
        "network.1={layer: dropout, keep: 0.8}",
        "network.2={layer: batch_norm, affine: true}",
    ]
    for name, settings in (("with", [*network, ON]), ("without", network)):
        train(small(*settings), tmp_path / name)
    assert_same_run(tmp_path / "with", tmp_path / "without")
    table = read_metrics(tmp_path / "with" / "diagnostics.csv", columns=DIAGNOSTICS)
    assert table["iteration"].tolist() == [2, 4, 6, 8, 10, 12]
    assert np.array_equal(table["examples"], 120 * table["iteration"])
    assert (tmp_path / "with" / "diagnostics.png").exists()
    assert not list((tmp_path / "without").glob("diagnostics*"))


def test_active_pixels_are_counted_on_the_same_images_however_few_are_evaluated(
    tmp_path, no_figures
):
    for name, examples in (("few", 8), ("many", 700)):
        train(small(ON, f"evaluation.train_examples={examples}"), tmp_path / name)
    few, many = ((tmp_path / name / "diagnostics.csv").read_text() for name in ("few", "many"))
    assert few == many


@pytest.mark.parametrize("before", [True, False], ids=["before its row", "after its row"])
def test_a_killed_run_goes_on_with_its_diagnostics(tmp_path, monkeypatch, no_figures, before):
    config = small(ON, "checkpoint_minutes=1e-9")
    train(config, tmp_path / "straight")
    append, rows = RunFolder.append_diagnostics, []

    def killing(folder, row):
        rows.append(row)
        if len(rows) == 3 and before:
            raise Killed
        append(folder, row)
        if len(rows) == 3:
            raise Killed

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(RunFolder, "append_diagnostics", killing)
        train(config, tmp_path / "killed")
    train(config, tmp_path / "killed", resume=True)
    straight, killed = (
        (tmp_path / name / "diagnostics.csv").read_bytes() for name in ("straight", "killed")
    )
    assert straight == killed and straight.count(b"\n") == 7


def test_a_run_that_is_replaced_takes_its_diagnostics_along(tmp_path, no_figures):
    train(small(ON), tmp_path / "run")
    train(small(), tmp_path / "run", overwrite=True)
    assert not list((tmp_path / "run").glob("diagnostics*"))


def test_diagnostics_are_not_training_time(tmp_path, monkeypatch, no_figures):
    def slow(*_):
        time.sleep(0.5)
        return {"iteration": 12, "examples": 0}

    monkeypatch.setattr(diagnostics, "measure", slow)
    began = time.perf_counter()
    train(small("diagnostics.every=12"), tmp_path / "run")
    elapsed = time.perf_counter() - began
    seconds = read_metrics(tmp_path / "run" / "metrics.csv")["seconds"][-1]
    assert 0 < seconds <= elapsed - 0.5


def test_the_watch_stands_still_while_it_is_stopped(ops64, monkeypatch):
    now = iter([10.0, 11.0, 50.0, 53.0])
    monkeypatch.setattr(time, "perf_counter", lambda: next(now))
    watch = Stopwatch(ops64)
    with watch:
        with watch.stopped():
            pass
    assert watch.seconds == 1 + 3


def test_a_phase_within_another_is_counted_once(ops64, monkeypatch):
    moments = iter([1.0, 3.0, 7.0, 15.0])
    monkeypatch.setattr(ops64, "event", lambda: next(moments))
    watch = Stopwatch(ops64)
    with watch.phase("gradient"):
        with watch.phase("clip"):
            pass
    watch.count()
    watch.count()
    assert watch.phases["gradient"] == 2 + 8 and watch.phases["clip"] == 4


def test_a_recorded_step_is_measured_whole(cuda):
    watch, runs = Stopwatch(cuda), []

    def step(x):
        runs.append(x)
        with watch.phase("clip"):
            y = cuda.relu(x)
        yield host
        return y

    def host():
        with watch.phase("inverses"):
            pass

    program = cuda.captured(step)
    for _ in range(3):
        with watch.phase("gradient"):
            program(cuda.zeros(4))
    cuda.runtime.synchronize()
    watch.count()
    assert watch.phases["clip"] == 0 and len(runs) == 2
    assert watch.phases["gradient"] > 0 and watch.phases["inverses"] > 0


ACTIVE_OR_NOT = [
    dict(layer="relu"),
    dict(layer="conv", filters=3, kernel=3, padding=1, std=0.5),
    dict(layer="max_pool", size=2, stride=2),
    dict(layer="relu"),
    dict(layer="dense", units=4, std=0.5),
    dict(layer="batch_norm", affine=True),
    dict(layer="relu"),
    dict(layer="batch_norm"),
    dict(layer="relu"),
    dict(layer="dense", units=3),
]


def test_activity_is_the_share_of_positive_pixels_and_counts_the_maps_with_hardly_any(ops64, rng):
    images = rng.integers(0, 256, (300, 4, 6, 2), np.uint8)  # more than an evaluation's mini-batch
    mean = images.mean(axis=0)
    examples = Examples(ops64, images, np.zeros(300, np.int32), mean, 64.0)
    net = build_network(ACTIVE_OR_NOT, (4, 6, 2), ops64)
    conv = net.weighted[0]
    conv.weight[1, 0] = -1e3  # never active
    net.measure_statistics(examples.batch(np.arange(300)).inputs)
    chosen = np.arange(3, 290)
    row = diagnostics.activity(net, examples, chosen)
    x = np.maximum((images[chosen] - mean) / 64, 0)
    assert_close(row["relu1_active"], (x > 0).mean())  # it rectifies the input itself
    net.forward((images[chosen] - mean) / 64)
    pooled, units, again = (net.layers[index].saved for index in (3, 7, 9))
    assert_close(row["conv1_active"], (pooled > 0).mean())
    assert_close(row["dense1_active"], (units > 0).mean())
    assert_close(row["relu4_active"], (again > 0).mean())  # dense1 has been rectified before
    assert abs(row["relu4_active"] - row["dense1_active"]) > 1e-3
    assert [row[f"{name}_dead"] for name in ("relu1", "conv1", "dense1", "relu4")] == [0, 1, 0, 0]


@pytest.mark.parametrize(("positive", "dead"), [(3, 1), (4, 0)])
def test_a_unit_is_dead_below_one_in_a_hundred(ops64, positive, dead):
    images = np.zeros((400, 1, 1, 1), np.uint8)
    images[:positive] = 2
    examples = Examples(ops64, images, np.zeros(400, np.int32), np.ones((1, 1, 1)), 1.0)
    layers = [dict(layer="dense", units=1, std=1.0), dict(layer="relu"), ACTIVE_OR_NOT[-1]]
    net = build_network(layers, (1, 1, 1), ops64)
    net.weighted[0].weight[:] = [0.0, 1.0]
    row = diagnostics.activity(net, examples, np.arange(400))
    assert row == {"dense1_active": positive / 400, "dense1_dead": dead}


def test_an_optimizer_without_factors_shows_its_activity(tmp_path):
    train(small(ON, text=SGD), tmp_path)
    table = read_metrics(tmp_path / "diagnostics.csv", columns=COUNTS)
    assert list(table) == ["iteration", "examples", "conv1_active", "conv1_dead"]
    assert (0 < table["conv1_active"]).all() and (table["conv1_active"] < 1).all()
    figure = diagnostic_figures.draw_diagnostics(table, read_run(tmp_path))
    assert [panel.get_title() for panel in figure.axes] == [
        "share of active pixels",
        "maps active on less than 1% of them",
    ]
    assert (tmp_path / "diagnostics.png").exists()


def test_diagnostics_with_nothing_to_look_at_are_refused():
    with pytest.raises(ConfigError, match="sgd has no Kronecker factors to look at, and the netw"):
        small(ON, "network.3={layer: dropout, keep: 0.5}", text=SGD)
    with pytest.raises(ConfigError, match="diagnostics.every: must be at least 1, got 0"):
        small("diagnostics.every=0")


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "run"
    train(small("diagnostics.every=1"), out)
    return out


def test_the_figure_has_eight_panels_with_every_layer_in_them(finished):
    table = read_metrics(finished / "diagnostics.csv", columns=DIAGNOSTICS)
    figure = diagnostic_figures.draw_diagnostics(table, read_run(finished))
    assert [len(panel.lines) for panel in figure.axes] == [4, 4, 2, 1, 4, 3, 3, 1]
    legend = [text.get_text() for text in figure.legends[0].get_texts()]
    clip = small().optimizer.clip
    assert legend == ["conv1", "dense1", "all layers", f"clip, {clip:g}"]
    for panel, line, column in (
        (0, 0, "conv1_Omega_max"),
        (1, 2, "dense1_Gamma_max"),
        (3, 0, "conv1_active"),
        (4, 0, "conv1_nu"),
        (6, 0, "predicted_reduction"),
        (7, 0, "conv1_dead"),
    ):
        drawn = figure.axes[panel].lines[line]
        assert drawn.get_ydata().tolist() == table[column].tolist() and drawn.get_linestyle() == "-"
    actual = figure.axes[6].lines[1]
    assert actual.get_ydata().tolist() == table["actual_reduction"].tolist()
    assert (actual.get_linestyle(), actual.get_marker()) == ("None", "o")
    assert figure.axes[6].get_legend_handles_labels()[1] == ["predicted", "actual"]
    smallest = figure.axes[1].lines[3]
    assert smallest.get_ydata().tolist() == table["dense1_Gamma_min"].tolist()
    assert smallest.get_linestyle() == "--"
    assert figure.axes[4].lines[3].get_ydata() == [clip, clip]
    assert "KFC-pre" in figure.texts[0].get_text()


def test_the_title_says_that_the_network_is_normalised(finished):
    run = read_run(finished)
    run.config["network"] = [*run.config["network"], {"layer": "batch_norm"}]
    table = read_metrics(finished / "diagnostics.csv", columns=COUNTS)
    title = diagnostic_figures.draw_diagnostics(table, run).get_suptitle()
    assert "batch norm" in title and "batch 120" not in title and "M = 120" in title


def test_every_layer_has_a_look_of_its_own(finished):
    rows = np.arange(1.0, 4.0)
    table = {"iteration": rows} | {f"conv{n}_active": rows for n in range(13)}
    table |= {f"conv{n}_dead": rows for n in range(13)}
    figure = diagnostic_figures.draw_diagnostics(table, read_run(finished))
    looks = {(line.get_color(), line.get_marker()) for line in figure.axes[0].lines}
    assert len(looks) == 13 and "#000000" not in dict(looks)


@pytest.mark.parametrize("most, top", [(3, 10.5), (40, 42)])
def test_any_number_of_dead_maps_is_within_the_panel_and_a_few_are_low_in_it(finished, most, top):
    table = {
        "iteration": np.arange(3.0),
        **{f"conv{n}_active": np.full(3, 0.4) for n in range(2)},
        "conv0_dead": np.array([0.0, 1.0, 2.0]),
        "conv1_dead": np.array([1.0, most, 2.0]),
    }
    figure = diagnostic_figures.draw_diagnostics(table, read_run(finished))
    assert figure.axes[1].get_ylim() == (0, pytest.approx(top))


def test_every_layer_is_in_the_legend_whatever_its_name_is(finished, tmp_path):
    rows = np.arange(1.0, 4.0)
    names = ["_hidden", "$1{$", *(f"conv{n}" for n in range(60))]
    table = {"iteration": rows}
    table |= {f"{name}_{column}": rows for name in names for column in ("active", "dead")}
    figures = []

    def draw():
        figures.append(diagnostic_figures.draw_diagnostics(table, read_run(finished)))
        return figures[0]

    curves.save_figure(draw, tmp_path / "diagnostics.png")
    (legend,) = figures[0].legends
    assert [text.get_text() for text in legend.get_texts()] == names
    box = legend.get_window_extent()
    assert box.y0 >= 0 and not any(box.overlaps(axes.get_tightbbox()) for axes in figures[0].axes)


def test_no_tick_of_the_reductions_runs_into_that_of_zero(finished):
    table = read_metrics(finished / "diagnostics.csv", columns=DIAGNOSTICS)
    table["predicted_reduction"] = np.linspace(-0.27, 0.3, len(table["iteration"]))
    figure = diagnostic_figures.draw_diagnostics(table, read_run(finished))
    figure.canvas.draw()
    panel = figure.axes[6]
    places = np.sort(panel.transData.transform([(0, y) for y in panel.get_yticks()])[:, 1])
    assert len(places) > 3 and np.diff(places).min() > 15  # pixels; the labels are 12 high


@pytest.mark.parametrize(
    "predicted, actual",
    [([0.1, 0.2], [0.3, 0.1]), ([0.1, 0.2], [-0.3, 0.1]), ([-0.3, 0.2], [0.3, 0.1]),
     ([0.1, 0.2], [-0.3, np.nan])],
)  # fmt: skip
def test_reductions_are_shown_from_zero_unless_one_is_below_it(finished, predicted, actual):
    table = read_metrics(finished / "diagnostics.csv", columns=DIAGNOSTICS)
    table["predicted_reduction"][:2], table["actual_reduction"][:2] = predicted, actual
    table = {name: values[:2] for name, values in table.items()}
    bottom, _ = diagnostic_figures.draw_diagnostics(table, read_run(finished)).axes[6].get_ylim()
    assert bottom < -0.3 if -0.3 in [*predicted, *actual] else bottom == 0


def test_the_figure_drawn_twice_is_the_same_bytes(finished, tmp_path):
    with matplotlib.rc_context({"lines.linewidth": 9}):  # a user's own settings
        diagnostic_figures.plot_diagnostics(finished, tmp_path / "again.png")
    assert (tmp_path / "again.png").read_bytes() == (finished / "diagnostics.png").read_bytes()


def test_diagnostics_without_a_row_are_an_error_naming_the_file(tmp_path):
    create_metrics(tmp_path / "diagnostics.csv", columns=COUNTS)
    with pytest.raises(RecordError, match="nothing to draw yet in .*diagnostics.csv"):
        diagnostic_figures.plot_diagnostics(tmp_path, tmp_path / "diagnostics.png")


def test_a_row_is_the_same_on_every_device(ops, ops64):
    """One step of the same optimizer; reductions are differences of rounded losses."""
    rows = []
    for device in (ops, ops64):
        opt = optimizer(device, "kfc_pre", EVERY_LAYER[1:4] + EVERY_LAYER[-1:], damping=0.1)
        first, batch = batches(device, np.random.default_rng(7), 2)
        opt.prepare([first])
        before = device.copy(opt.network.theta)
        opt.step(batch)
        rows.append(measure(opt, before, batch))
    for name, expected in rows[1].items():
        assert abs(rows[0][name] - expected) <= 1e-3 * abs(expected) + 1e-6, name
