"""What a run that diverged, was cut or is still under way does to the evidence."""

import math
from pathlib import Path

import numpy as np
import pytest
from matplotlib.lines import Line2D
from reproductions import rate, small_plan, write_run

from kfcnet import reproduce
from kfcnet.config import load_config
from kfcnet.figures import curves, milestones
from kfcnet.reproduce import claims, costs, figures, report, scaling, starts, verdicts, work
from kfcnet.reproduce.plan import CLIP, FigurePlan, PanelPlan
from kfcnet.reproduce.plans import make_plan
from kfcnet.reproduce.progress import progress_of
from kfcnet.reproduce.rows import Evidence, compared_at_the_end, reached_row, speed_up
from kfcnet.reproduce.values import Value, middle
from kfcnet.reproduce.verdicts import FAILED, OPEN, REPRODUCED, Interval, ratio_bounds
from kfcnet.runs.files import read_json, write_json
from kfcnet.runs.identity import group_by_seed
from kfcnet.runs.index import RunIndex
from kfcnet.runs.metrics import COLUMNS, COUNTS, append_metrics, read_metrics
from kfcnet.runs.read import Run, read_run
from kfcnet.training.tuning import Stage

pytestmark = pytest.mark.usefixtures("no_figures")
NEVER = Value(math.inf)


@pytest.fixture
def plan(tmp_path):
    """Two curves of three seeds and one epoch, nothing to tune."""
    plan = small_plan(tmp_path)
    short = dict(rates=(), epochs=1.0, seeds=3)
    names = "digits_kfc", "digits_sgd"
    return plan._replace(
        curves={name: plan.curves[name]._replace(**short) for name in names}, measurements=()
    )


@pytest.fixture
def index(tmp_path):
    return RunIndex(tmp_path / "out")


def evidence_of(plan, index):
    """The Evidence of all final runs, as `draw` makes it."""
    progress = progress_of(plan, index)
    runs = {name: state.runs() for name, state in progress.items() if state.finals}
    unfinished = frozenset(name for name in runs if not progress[name].is_complete)
    return Evidence(plan, runs, {}, None, unfinished)


def write_seeds(index, plan, name, *errors, state="finished"):
    for seed, each in enumerate(errors):
        write_run(index, plan, name, {}, each, seed, state=state)


def sgd_over_kfc(plan, index, threshold=0.5):
    return speed_up(
        evidence_of(plan, index),
        "",
        Value(3.0),
        "digits_sgd",
        "digits_kfc",
        "train_error",
        threshold,
        "updates",
    )


PAPER = Path(__file__).parents[1] / "results" / "paper"


@pytest.fixture(scope="module")
def published():
    return progress_of(make_plan("cpu"), RunIndex(PAPER, to_go_on=False))


def test_the_published_tables_are_those_of_the_records(published, tmp_path):
    evidence = reproduce.evidence_in(make_plan("cpu"), published, PAPER)
    report.write_numbers(claims.rows(evidence), tmp_path / "numbers.csv")
    report.write_headline(claims.headline(evidence), tmp_path / "headline.md")
    for name in ("numbers.csv", "headline.md"):
        assert (tmp_path / name).read_bytes() == (PAPER / name).read_bytes(), name


@pytest.mark.parametrize("name", ["cifar_kfc", "cifar_sgd"])
def test_a_configuration_has_the_rate_that_its_tuning_chose(published, name):
    assert published[name].chosen == load_config(name).optimizer.learning_rate


def test_the_configuration_of_kfac_has_the_damping_that_its_tuning_chose(published):
    optimizer = load_config("cifar_kfac").optimizer
    assert published["cifar_kfac"].chosen == optimizer.damping == optimizer.min_damping


def test_in_the_runs_of_figure_1_no_map_dies_as_the_referee_is_told(published):
    told = "no map is dead whenever they are counted, every 98 updates, and no update is clipped"
    assert told in (PAPER.parents[1] / "docs/referee.md").read_text(encoding="utf-8")
    finals = published["cifar_kfc"].finals
    assert len(finals) == 5
    for status in finals.values():
        table = read_metrics(status.folder / "diagnostics.csv", columns=COUNTS)
        assert not any(values.any() for name, values in table.items() if name.endswith("_dead"))
        assert set(np.diff(table["iteration"])) == {98}
        assert not read_run(status.folder).metrics["clipped"].any()


def test_on_svhn_every_update_is_clipped_as_the_referee_is_told(published):
    told = "from the second epoch on every update is still clipped, with a mean nu above 20"
    assert told in (PAPER.parents[1] / "docs/referee.md").read_text(encoding="utf-8")
    tried = [each.point.settings[CLIP] for each in published["svhn_kfc"].clip_tuning]
    assert published["svhn_kfc"].clip == max(tried) == 1
    for status in published["svhn_kfc"].finals.values():
        metrics = read_run(status.folder).metrics
        later = metrics["epoch"] > 2
        assert np.all(metrics["clipped"][later] == 1) and np.all(metrics["nu"][later] > 20)


# Diverged


def test_a_final_run_that_diverged_before_its_first_evaluation_stays_in(plan, index):
    write_seeds(index, plan, "digits_kfc", [0.9, 0.4, 0.35], [0.9, 0.4, 0.3])
    write_run(index, plan, "digits_kfc", {}, [0.9], 2, state="failed")
    write_seeds(index, plan, "digits_sgd", *3 * [[0.9, 0.5, 0.4]])
    state = progress_of(plan, index)["digits_kfc"]
    assert list(state.finals) == [0, 1, 2] and state.is_complete
    reproduce.draw(plan, index, index.root, {})
    page = (index.root / "README.md").read_text()
    assert "digits_kfc: seed 2 diverged after epoch 0" in page
    row = claims.stability._out_of_hand(evidence_of(plan, index), "", "", "digits_kfc", wanted=True)
    assert (row.here, row.verdict) == ("1 of 3", REPRODUCED)
    assert row.reason == "training errors at the end 3 seeds, 30.00% to 90.00%"


def test_a_diverged_run_never_reaches_anything(plan, index):
    write_run(index, plan, "digits_kfc", {}, [0.9, 0.8], 0, state="failed")
    write_run(index, plan, "digits_kfc", {}, [0.9, 0.8, 0.4], 1)
    write_run(index, plan, "digits_kfc", {}, [0.9, 0.8, 0.7, 0.4], 2)
    row = reached_row(
        evidence_of(plan, index), "", Value(9.0), "digits_kfc", "train_error", 0.5, "updates"
    )
    assert row.here == Value(18) and row.note == "3 seeds, 12 to never"
    assert middle([NEVER, NEVER, Value(3.0)]) == NEVER
    assert middle([NEVER, Value(9.0, True), Value(3.0)]) == Value(9.0, True)


@pytest.mark.parametrize(
    ("over", "under", "bounds"),
    [
        (Value(6.0), Value(3.0), (2, 2)),
        (Value(6.0, True), Value(3.0), (2, math.inf)),
        (Value(6.0), Value(3.0, True), (0, 2)),
        (NEVER, Value(3.0), (math.inf, math.inf)),
        (Value(6.0), NEVER, (0, 0)),
        (NEVER, NEVER, (0, math.inf)),
        (NEVER, Value(3.0, True), (0, math.inf)),
        (Value(6.0, True), NEVER, (0, math.inf)),
    ],
)
def test_the_ratio_of_what_was_not_reached_lies_within_bounds(over, under, bounds):
    assert ratio_bounds([(over, under)]).tolist() == [list(bounds)]


def test_a_method_that_diverges_has_lost(plan, index, tmp_path):
    write_seeds(index, plan, "digits_kfc", *3 * [[0.9, 0.8]], state="failed")
    write_seeds(index, plan, "digits_sgd", *3 * [[0.9, 0.6, 0.4]])
    row = sgd_over_kfc(plan, index)
    assert (row.here, row.verdict) == ("digits_kfc did not get there", FAILED)
    other = RunIndex(tmp_path / "other")
    write_seeds(other, plan, "digits_kfc", *3 * [[0.9, 0.6, 0.4]])
    write_seeds(other, plan, "digits_sgd", *3 * [[0.9, 0.8]], state="failed")
    row = sgd_over_kfc(plan, other)
    assert (row.here, row.verdict, row.ratio) == ("digits_sgd diverged", REPRODUCED, "")
    assert "epochs needed: digits_kfc 1, digits_sgd never" in row.reason
    assert str(Interval(math.inf, math.inf)) == "infinite"


def test_the_error_of_a_diverged_run_is_infinite_where_methods_are_compared(plan, index):
    write_run(index, plan, "digits_kfc", {}, [0.9, 0.5], 0, state="failed")
    for seed in (1, 2):
        write_run(index, plan, "digits_kfc", {}, [0.9, 0.5, 0.4], seed)
    write_seeds(index, plan, "digits_sgd", *3 * [[0.9, 0.7, 0.1]])
    row = compared_at_the_end(
        evidence_of(plan, index),
        "",
        "above 1",
        "digits_kfc",
        "digits_sgd",
        lambda ratios: verdicts.of_side(ratios, is_above=True),
    )
    assert row.here == Value(pytest.approx(4.0)) and row.verdict == REPRODUCED
    assert row.note == "after 1 epochs: 40.00% and 10.00%" and row.interval.high == math.inf
    assert row.reason == (
        f"{row.note} (latest parameters 1.00% and 1.00%), with 12 updates of digits_kfc and 12 "
        "updates of digits_sgd"
    )


def test_there_is_no_ratio_where_both_runs_of_a_seed_diverged(plan, index):
    for name in plan.curves:
        write_run(index, plan, name, {}, [0.9], 0, state="failed")
        for seed in (1, 2):
            write_run(index, plan, name, {}, [0.9, 0.5, 0.4], seed)
    row = compared_at_the_end(
        evidence_of(plan, index), "", "", *plan.curves, lambda ratios: REPRODUCED
    )
    note = "after 1 epochs: 40.00% and 40.00%"
    assert row[2:] == ("no ratio", "", "", note, "", "")


def test_the_last_error_of_a_curve_is_the_median_of_its_seeds(plan, index):
    write_seeds(index, plan, "digits_kfc", [0.9, 0.6, 0.55], [0.9, 0.6, 0.5], [0.9, 0.6, 0.41])
    write_seeds(index, plan, "digits_sgd", *3 * [[0.9, 0.6, 0.4]])
    assert sgd_over_kfc(plan, index, 0.4).reason.endswith("; digits_kfc ended at 50.00%")


# Under way


def test_a_curve_under_way_is_judged_only_where_its_end_cannot_change_it(plan, index, tmp_path):
    longer = {name: curve._replace(epochs=20.0) for name, curve in plan.curves.items()}
    whole = plan._replace(curves=longer)
    folder = write_run(index, whole, "digits_kfc", {}, [0.9, 0.5, 0.3], state="running")
    (folder / "checkpoint.h5").touch()
    evidence = evidence_of(whole, index)
    assert evidence.unfinished == {"digits_kfc"}
    row, *_ = claims.errors.error_rows(evidence)
    assert (str(row.here), row.verdict) == ("40", OPEN)  # not reproduced, if it ended here
    count = claims.stability._out_of_hand(evidence, "", "", "digits_kfc", wanted=False)
    assert (count.here, count.verdict) == ("0 of 1", OPEN)
    (run,) = evidence.runs["digits_kfc"]
    for losses, count in (([2.3, 2.0, 2.3], 1), ([2.3, 2.4, 2.0], 1), ([2.3, 2.3, 2.2], 0)):
        run.metrics["train_loss"] = np.array(losses)
        assert claims.stability._is_out_of_hand(run) == bool(count)
    write_seeds(other := RunIndex(tmp_path / "other"), plan, "digits_kfc", *3 * [[0.9, 0.5, 0.3]])
    row, *_ = claims.errors.error_rows(evidence_of(plan, other))
    assert row.verdict == FAILED


def test_the_autoencoder_is_compared_at_an_epoch_that_both_have_reached(plan, index):
    names = "autoencoder_kfac", "autoencoder_sgd"
    both = zip(names, plan.curves.values(), strict=True)
    plan = plan._replace(curves={name: curve._replace(name=name) for name, curve in both})
    for seed in range(3):
        write_run(index, plan, names[0], {}, [0.9, 0.5, 0.4], seed)
        folder = write_run(index, plan, names[1], {}, [0.9, 0.45], seed, state="interrupted")
        (folder / "checkpoint.h5").touch()
    row, on_test = claims.methods.autoencoder_rows(evidence_of(plan, index))
    assert row.here == Value(pytest.approx(0.5 / 0.45)) and row.verdict == OPEN
    assert row.claim.startswith("UCI digits, dense autoencoder: ") and "0.5 and 0.45" in row.note
    assert on_test.claim.endswith("test loss, K-FAC over SGD") and on_test.verdict == ""


def test_what_is_drawn_does_not_depend_on_checkpoints(plan, index, tmp_path):
    write_seeds(index, plan, "digits_kfc", [0.9, 0.5, 0.3], [0.9, 0.5, 0.3])
    folder = write_run(index, plan, "digits_kfc", {}, [0.9, 0.5], 2, state="interrupted")
    drawn = RunIndex(index.root, to_go_on=False)
    assert list(progress_of(plan, drawn)["digits_kfc"].finals) == [0, 1, 2]
    to_train = progress_of(plan, index)["digits_kfc"]
    assert list(to_train.finals) == [0, 1]  # it cannot go on
    (folder / "checkpoint.h5").touch()
    assert list(progress_of(plan, index)["digits_kfc"].finals) == [0, 1, 2]
    assert reproduce.reproduce("fig1", tmp_path / "none", "cpu", quick=True, only_draw=True) == {}


def test_a_line_that_a_kill_cut_short_stops_no_reproduction(plan, index):
    plan = plan._replace(
        curves={name: curve._replace(epochs=2.0) for name, curve in plan.curves.items()}
    )
    folder = write_run(index, plan, "digits_kfc", {}, [0.9, 0.5, 0.3], state="running")
    (folder / "checkpoint.h5").touch()
    with (folder / "metrics.csv").open("a") as file:
        file.write("18,1.5,21")
    now = progress_of(plan, index)
    assert "digits_kfc: 5 epochs" in work.Forecast().plan(now)
    (run,) = now["digits_kfc"].runs()
    assert run.metrics["iteration"].tolist() == [0, 6, 12]


# Tuning


def test_the_final_run_does_not_decide_whether_the_clip_is_tuned(plan, index):
    """The run at the best rate is clipped from the end of its tuning on only."""
    curve = plan.curves["digits_kfc"]._replace(
        config="digits_kfc",
        overrides=(),
        rates=(0.003, 0.3, 0.03),
        clips=(0.1, 0.3),
        stages=(Stage(1.0, None), Stage(2.0, 2)),
        epochs=4.0,
        seeds=2,
    )
    plan = plan._replace(curves={"digits_kfc": curve})
    size = load_config("digits_kfc").optimizer.batch_size

    def write(value, epochs, error, seed=0, clipped=0.0):
        folder = write_run(index, plan, "digits_kfc", rate(value), [0.9], seed)
        (folder / "metrics.csv").write_text(",".join(COLUMNS) + "\n")
        for row in range(2 * epochs + 1):
            updates = math.ceil(720 * row / size)
            here = {
                "iteration": updates,
                "examples": updates * size,
                "epoch": updates * size / 1440,
                "train_error": error,
                "train_loss": error,
                "clipped": clipped if row > 4 else 0.0,
            }
            append_metrics(folder / "metrics.csv", dict.fromkeys(COLUMNS, 0.01) | here)

    write(0.3, 1, 0.8)
    write(0.03, 2, 0.4)
    write(0.003, 4, 0.3, clipped=1.0)
    write(0.003, 4, 0.3, seed=1, clipped=1.0)
    state = progress_of(plan, index)["digits_kfc"]
    assert state.settings == rate(0.003) and list(state.finals) == [0, 1] and not state.pending


def test_a_clip_is_tuned_where_the_second_half_of_a_short_tuning_is_clipped(plan, index):
    curve = plan.curves["digits_kfc"]._replace(
        rates=(0.3, 0.03), clips=(0.1, 0.3), stages=(Stage(1.0, None),)
    )
    plan = plan._replace(curves={"digits_kfc": curve})
    for value, error in ((0.3, 0.5), (0.03, 0.2)):
        shares = [0.0, 0.0, 0.9]
        write_run(index, plan, "digits_kfc", rate(value), [0.9, 0.5, error], clipped=shares)
    _, settings, _ = reproduce.progress._tune_values(plan, curve, index)
    results, *_ = reproduce.progress._tune_values(plan, curve, index)
    assert settings == rate(0.03) and reproduce.progress._is_clipped(results, settings)


def test_no_start_is_chosen_before_every_seed_has_been_looked_into(plan, index):
    """A run that another figure recorded, without diagnostics, is no seed of a start."""
    config = plan.curves["digits_kfc"].config
    plan = plan._replace(
        curves={
            name: curve._replace(config=config, words=words, seeds=2)
            for (name, curve), words in zip(plan.curves.items(), "AB", strict=True)
        },
        figures={"starts": plan.figures["fig1"]._replace(kind="starts")},
    )

    def write(name, error, seed, is_diagnosed=True):
        folder = write_run(index, plan, name, {}, [0.9, 0.5, error], seed)
        if is_diagnosed:
            lines = ["iteration,examples,c_active,c_dead", "6,720,0.5,0", "9,1080,0.5,1"]
            (folder / "diagnostics.csv").write_text("\n".join([*lines, ""]))

    for seed in range(2):
        write("digits_kfc", 0.1 + 0.4 * seed, seed, is_diagnosed=not seed)
        write("digits_sgd", 0.2, seed)
    progress = progress_of(plan, index)
    found, missing = starts.measure(plan, progress), starts.missing(plan, progress)
    assert missing == ["digits_kfc"]
    text = starts.page(found, missing)
    assert "nothing is chosen yet, for want of runs of digits_kfc" in text
    assert "the choice is" not in text and "counted at epoch 0.75" in text
    assert "the choice is: A" in starts.page(found)


# Which run, which machine


def test_a_reason_is_that_of_the_run_whose_number_stands_before_it(plan, index):
    write_seeds(index, plan, "digits_kfc", [0.9, 0.2, 0.1], [0.9, 0.5, 0.4], [0.9, 0.3, 0.35])
    row, *_ = claims.errors.error_rows(evidence_of(plan, index))
    assert str(row.here) == "40"  # of the third run: the test error is 10 points above
    assert row.reason == "the training error was 30.00% then, after 0.5 of 1 epochs"
    two = evidence_of(plan, index)
    row, *_ = claims.errors.error_rows(
        two._replace(runs={"digits_kfc": two.runs["digits_kfc"][::2]})
    )
    # Between both runs lies neither of them: the better one is told of.
    assert str(row.here) == "30" and row.reason.startswith("the training error was 10.00% then")


def test_only_runs_with_the_same_seed_and_images_are_pairs(plan, index):
    write_run(index, plan, "digits_kfc", {}, [0.9, 0.4, 0.4], 1)
    write_run(index, plan, "digits_sgd", {}, [0.9, 0.6, 0.4], 0)
    assert sgd_over_kfc(plan, index).here == "no seed in common"
    folder = write_run(index, plan, "digits_sgd", {}, [0.9, 0.6, 0.4], 1)
    assert sgd_over_kfc(plan, index).here == Value(2)
    record = read_json(folder / "run.json")
    record["data"]["sha256"] = 64 * "a"
    write_json(folder / "run.json", record)
    assert sgd_over_kfc(plan, index).here == "no seed in common"


def test_a_run_that_went_on_elsewhere_is_a_curve_of_its_own_over_time(plan, index):
    there = {"device": "cpu", "processor": "fast", "native": True}
    for seed in (0, 1):
        folder = write_run(index, plan, "digits_kfc", {}, [0.9, 0.5, 0.3], seed)
        record = {**read_json(folder / "run.json"), "device": there}
        if seed:
            again = {"iteration": 6, "device": there | {"processor": "slow"}, "commit": "fedc"}
            record["resumed"] = [again]
        write_json(folder / "run.json", record)
    state = progress_of(plan, index)["digits_kfc"]
    assert [len(group) for group in group_by_seed(state.runs())] == [1, 1]
    assert [len(group) for group in group_by_seed(state.runs(), timed=False)] == [2]
    two = write_run(index, plan, "digits_kfc", {}, [0.9, 0.5, 0.3], 2)
    write_json(
        two / "run.json", {**read_json(two / "run.json"), "device": there | {"processes": 2}}
    )
    runs = [*state.runs(), read_run(two)]
    assert [len(group) for group in group_by_seed(runs)] == [1, 1, 1]
    page = report._provenance({"digits_kfc": state}, index.root)
    assert "| CPU (fast), then CPU (slow) | 0123456789 with changes, fedc |" in page


def test_milestones_in_updates_have_one_column_whatever_the_processors(plan, index, tmp_path):
    folders = []
    for seed in range(3):
        folder = write_run(index, plan, "digits_kfc", {}, [0.9, 0.5, 0.3], seed)
        there = {"device": "cpu", "processor": "slow" if seed == 1 else "fast"}
        write_json(folder / "run.json", {**read_json(folder / "run.json"), "device": there})
        folders.append(folder)
    milestones.compare(folders, tmp_path / "by_updates", by=("updates",))
    assert "3 runs" in (tmp_path / "by_updates" / "medians.md").read_text()
    figure = curves.draw_runs([read_run(folder) for folder in folders], "updates")
    assert "CPU (fast), CPU (slow)" in figure.get_suptitle()


def test_the_seconds_of_other_settings_are_measured_again_and_not_drawn(plan, index, monkeypatch):
    write_seeds(index, plan, "digits_kfc", [0.9, 0.5, 0.3])
    curve = plan.curves["digits_kfc"]
    config = plan.configure(curve)
    record = {"seconds": [1.0], "phases": {}, "work": costs.work_key(config)}
    content = {"device": {"device": "cpu"}, "turns": 7, "curves": {"digits_kfc": record}}
    write_json(index.root / costs.FILE, content)
    measured = []
    monkeypatch.setattr(costs, "measure", lambda *_: measured.append(1) or {})
    assert costs.measure_missing(plan, progress_of(plan, index), index.root, {}) == {}
    assert not measured
    assert costs.is_of(record, plan.configure(curve, rate(0.7), seed=2))
    smaller = plan._replace(overrides=("optimizer.batch_size=60",))
    write_seeds(index, smaller, "digits_kfc", [0.9, 0.5, 0.3, 0.3, 0.3])
    for present, timed, seconds in ((plan, {"digits_kfc"}, 1.0), (smaller, set(), 4 * 60.0)):
        found = reproduce.evidence_in(present, progress_of(present, index), index.root)
        (run,) = found.runs["digits_kfc"]
        assert set(found.costs) == timed and run.metrics["seconds"][-1] == seconds
    reproduce.draw(smaller, index, index.root, {})
    assert "(a) over epochs in place of time" in (index.root / "README.md").read_text()
    costs.measure_missing(smaller, progress_of(smaller, index), index.root, {})
    assert measured and not costs.is_of(record, smaller.configure(curve))


def test_times_of_another_machine_are_kept_until_there_are_new_ones_of_all(
    plan, index, monkeypatch
):
    panel = PanelPlan("a", "error", ("digits_kfc", "digits_sgd"))
    plan = plan._replace(figures={"scaling": FigurePlan("S", (panel,), "scaling")})
    for name in plan.curves:
        write_seeds(index, plan, name, [0.9, 0.5, 0.3])
    elsewhere = {"device": "cpu", "processor": "another", "native": False}
    before = {"device": elsewhere, "turns": 3, "curves": dict.fromkeys(plan.curves, {"old": 1})}
    write_json(index.root / scaling.FILE, before)
    results = [{"new": 1}, OSError("full"), {"new": 1}, {"new": 2}]

    def measure(*_):
        if isinstance(result := results.pop(0), OSError):
            raise result
        return result

    monkeypatch.setattr(scaling, "measure", measure)
    monkeypatch.setattr(scaling, "obstacle", lambda plan: None)
    progress = progress_of(plan, index)
    assert scaling.measure_missing(plan, progress, index.root, {}) == {"scaling": "full"}
    assert scaling.read(index.root) == before
    assert scaling.measure_missing(plan, progress, index.root, {}) == {}
    assert [each["new"] for each in scaling.read(index.root)["curves"].values()] == [1, 2]


def test_every_curve_of_a_figure_has_a_look_of_its_own():
    looks = [tuple(curves.look_of(number).values()) for number in range(20)]
    assert len(set(looks)) == len(looks)
    plan = make_plan("cpu")
    names = plan.figures["methods"].panels[0].curves

    def run(name):
        config = plan.configure(plan.curves[name]).model_dump(mode="json")
        rows = {column: np.linspace(0.9, 0.1, 5) for column in COLUMNS}
        rows |= {column: np.arange(5) for column in ("iteration", "epoch", "seconds")}
        record = {
            "device": {"device": "cpu"},
            "data": {"train_examples": 50000, "test_examples": 10000},
        }
        return Run(rows, config, record)

    words = {name: plan.curves[name].words for name in names if plan.curves[name].words}
    drawn = figures.draw_figure(
        plan.figures["methods"], {name: [run(name)] for name in names}, words
    )
    handles = drawn.legends[0].legend_handles[: len(names)]
    for look in (Line2D.get_color, Line2D.get_marker):
        assert len(set(map(look, handles))) == len(names) == 8


def test_no_figure_has_more_curves_than_colours():
    for plan in (make_plan("cpu"), make_plan("cuda"), make_plan("cpu", quick=True)):
        for figure in plan.figures.values():
            drawn = {name for panel in figure.panels for name in panel.curves}
            assert figure.kind != "runs" or len(drawn) <= len(curves.COLOURS), figure.title


def test_averaging_has_a_gain_where_an_evaluation_found_no_error(plan, index):
    write_seeds(index, plan, "digits_kfc", *3 * [[0.9, 0.5, 0.02, 0.0, 0.01]])
    evidence = evidence_of(plan, index)
    assert np.isfinite(claims.errors._gain_of_averaging(evidence.runs["digits_kfc"][0]))


def test_decoupled_decay_over_sgd_says_how_much_less_an_update_takes_of_a_weight(plan, index):
    """SGD's momentum of 0.5 doubles 0.05 of the decay; Adam's update takes 0.01 of it."""
    adam = "optimizer={name: adam, learning_rate: 0.01, batch_size: 120, decoupled_decay: true}"
    curves = dict(plan.curves)
    curves["digits_adamw"] = curves["digits_sgd"]._replace(name="digits_adamw", overrides=(adam,))
    plan = plan._replace(curves=curves)
    for name in ("digits_sgd", "digits_adamw"):
        write_seeds(index, plan, name, *3 * [[0.9, 0.5, 0.2]])
    (row,) = [
        row
        for row in claims.methods.other_methods(evidence_of(plan, index))
        if row.claim.endswith("Adam with decoupled weight decay over SGD")
    ]
    assert "the same decay, decoupled, takes 0.1 of what SGD's takes of a weight" in row.note
