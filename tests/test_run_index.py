"""What makes two runs the same, and where the index finds them."""

import re
from pathlib import Path

import pytest
from reproductions import do, rate, small_plan, write_run
from runs import small

from kfcnet.config import ConfigError
from kfcnet.reproduce.progress import progress_of
from kfcnet.runs.files import RecordError, read_json, write_json
from kfcnet.runs.identity import (
    changed_setting,
    devices,
    group_by_seed,
    identifying_settings,
    resumed_config,
    run_key,
    work_key,
)
from kfcnet.runs.index import RunIndex
from kfcnet.runs.read import Run
from kfcnet.training.train import train

ROOT = Path(__file__).parents[1]

pytestmark = pytest.mark.usefixtures("no_figures")


@pytest.fixture
def plan(tmp_path):
    return small_plan(tmp_path)


def test_settings_that_do_not_identify_a_run_are_left_out():
    settings = identifying_settings(small().model_dump(mode="json"))
    assert settings["optimizer.learning_rate"] == 0.01 and settings["evaluation.train_examples"]
    assert not settings.keys() & {"seed", "epochs", "data.path", "evaluation.every", "diagnostics"}


def test_the_first_setting_that_may_not_change_is_named():
    assert changed_setting(small(), small("epochs=9", "checkpoint_minutes=1")) is None
    assert changed_setting(small(), small("network.0.filters=4")) == ("network.0.filters", 3, 4)
    assert changed_setting(small(), small("evaluation.every=2"))[0] == "evaluation.every"


def test_a_run_is_known_by_what_decides_its_course(plan):
    curve = plan.curves["digits_sgd"]
    key = run_key(plan.configure(curve))
    free = plan._replace(
        overrides=(
            "evaluation.every=3",
            "evaluation.unit=updates",
            "checkpoint_minutes=1",
            "diagnostics.every=2",
        )
    )
    assert run_key(free.configure(curve, epochs=9)) == key
    for other in (rate(0.1), {"data.input_scale": 3.0}, {"ops.shards": 1}):
        assert run_key(plan.configure(curve, other)) != key
    assert run_key(plan.configure(curve, seed=1)) != key
    assert run_key(plan._replace(device="cuda").configure(curve)) != key


def test_updates_take_the_same_work_whatever_seed_and_learning_rate():
    assert work_key(small("optimizer.learning_rate=0.3", "seed=1")) == work_key(small())
    assert work_key(small("optimizer.batch_size=60")) != work_key(small())


def test_a_run_goes_on_with_its_own_settings_but_for_its_end_and_what_its_rows_do_not_show():
    changes = "epochs=9", "checkpoint_minutes=1", "data.path=elsewhere"
    now = small(*changes, "evaluation.every=2", "optimizer.learning_rate=0.3")
    assert resumed_config(small(), now) == small(*changes)
    assert changed_setting(small(), small(*changes)) is None


def test_the_devices_of_a_run_are_those_that_its_record_names():
    first, second = {"device": "cpu"}, {"device": "cuda"}
    record = {"device": first, "resumed": [{"iteration": 3}, {"iteration": 5, "device": second}]}
    assert devices(Run({}, {}, record)) == [first, second]


def test_seconds_of_other_numbers_of_processes_are_not_put_together():
    config = small().model_dump(mode="json")
    runs = [
        Run({}, {**config, "seed": seed}, {"device": {"device": "cpu", "processes": processes}})
        for seed, processes in enumerate((1, 1, 4))
    ]
    assert group_by_seed(runs) == [runs[:2], runs[2:]]
    assert group_by_seed(runs, timed=False) == [runs]


def test_the_name_of_a_pool_identifies_no_run_and_may_change():
    named, other = (
        small("network.2.name=pool1"),
        small("network.2={layer: avg_pool, size: 2, stride: 2}"),
    )
    assert run_key(named) == run_key(small()) != run_key(other)
    assert changed_setting(small(), named) is None
    assert changed_setting(small(), small("network.0.name=first"))[0] == "network.0.name"
    assert run_key(small("network.0.name=first")) != run_key(small())


def test_a_run_from_before_a_layer_had_a_setting_is_one_with_what_the_layer_then_did():
    pool = "{layer: max_pool, size: 2, stride: 2, clipped: %s}"
    clipped, inside = (small(f"network.2={pool % word}") for word in ("true", "false"))
    assert run_key(clipped) == run_key(small("network.2={layer: max_pool, size: 2, stride: 2}"))
    assert run_key(inside) != run_key(clipped)
    before = clipped.model_dump(mode="json")
    del before["network"][2]["clipped"]
    assert identifying_settings(before) == identifying_settings(clipped.model_dump(mode="json"))
    assert changed_setting(clipped, inside) == ("network.2.clipped", None, False)


def test_the_names_of_our_own_runs_end_in_their_keys():
    for evidence in ("paper", "without_warm_up"):
        index = RunIndex(ROOT / "results" / evidence)
        keys = {folder: key for key, folders in index.folders.items() for folder in folders}
        named = [folder for folder in keys if folder.parent.name == "runs"]
        assert named and all(folder.name.endswith(f"_{keys[folder]}") for folder in named)


def test_runs_that_others_left_are_taken_in(plan, tmp_path):
    out = tmp_path / "out"
    config = plan.configure(plan.curves["digits_sgd"], rate(0.3), 0, 1.5)
    other = config.model_copy(update={"device": "auto", "checkpoint_minutes": 7.0})
    train(other, out / "by" / "hand")
    status = RunIndex(out).status(config)
    assert status.folder == out / "by" / "hand" and status.is_over(config)
    assert RunIndex(out).status(plan.configure(plan.curves["digits_kfc"], rate(0.3), 0, 1)) is None
    assert do(plan, out) == {}
    assert not list(out.glob(f"runs/*{run_key(config)}"))


def test_of_several_runs_the_shortest_that_is_long_enough_is_used(plan, tmp_path):
    index, curve = RunIndex(tmp_path / "out"), plan.curves["digits_sgd"]
    short = write_run(index, plan, "digits_sgd", rate(0.3), [0.9, 0.5, 0.4])
    short.rename(tmp_path / "out" / "swept")
    long = write_run(index, plan, "digits_sgd", rate(0.3), [0.9, 0.6, 0.3, 0.2])
    index = RunIndex(tmp_path / "out")
    for epochs, folder in ((0.5, tmp_path / "out" / "swept"), (1.5, long)):
        status = index.status(plan.configure(curve, rate(0.3), 0, epochs))
        assert status.folder == folder
    assert index.status(plan.configure(curve, rate(0.3), 0, 9)) is None  # no checkpoint
    (tmp_path / "out" / "swept" / "checkpoint.h5").write_text("")
    status = index.status(plan.configure(curve, rate(0.3), 0, 9))
    assert status.folder == tmp_path / "out" / "swept"
    (long / "checkpoint.h5").write_text("")
    assert index.status(plan.configure(curve, rate(0.3), 0, 9)).folder == long


def test_a_run_that_came_to_its_end_is_used_before_one_that_failed(plan, tmp_path):
    index, curve = RunIndex(tmp_path / "out"), plan.curves["digits_sgd"]
    failed = write_run(index, plan, "digits_sgd", rate(0.3), [0.9], state="failed")
    config = plan.configure(curve, rate(0.3), 0, 0.5)
    assert RunIndex(tmp_path / "out").status(config).has_diverged
    failed.rename(tmp_path / "out" / "by hand")
    folder = write_run(index, plan, "digits_sgd", rate(0.3), [0.9, 0.6, 0.3])
    assert RunIndex(tmp_path / "out").status(config).folder == folder


def test_a_run_that_was_killed_before_it_had_a_table_is_none_yet(plan, tmp_path):
    folder = write_run(RunIndex(tmp_path), plan, "digits_sgd", rate(0.3), [])
    (folder / "metrics.csv").unlink()
    config = plan.configure(plan.curves["digits_sgd"], rate(0.3), 0, 1)
    assert RunIndex(tmp_path, to_go_on=False).status(config) is None


def test_a_run_without_a_row_has_trained_nothing_yet(plan, tmp_path):
    write_run(RunIndex(tmp_path), plan, "digits_sgd", rate(0.3), [], state="failed")
    config = plan.configure(plan.curves["digits_sgd"], rate(0.3), 0, 1)
    status = RunIndex(tmp_path).status(config)
    assert status.epochs(config) == 0 and not status.has_diverged


def test_images_are_told_apart_by_their_checksum_where_a_record_has_one(plan, tmp_path):
    folder = write_run(RunIndex(tmp_path), plan, "digits_sgd", rate(0.3), [0.9, 0.5])
    images = plan.configure(plan.curves["digits_sgd"]).data
    rescaled = images.model_copy(update={"input_scale": 3.0, "path": tmp_path})
    index = RunIndex(tmp_path)
    assert index.has_runs_on(rescaled) and index.why_not_with(rescaled, 64 * "f") is None
    assert "SHA-256 ffffffffffff, here 000000000000" in index.why_not_with(rescaled, 64 * "0")
    record = read_json(folder / "run.json")
    del record["data"]["sha256"]
    write_json(folder / "run.json", record)
    assert RunIndex(tmp_path).why_not_with(rescaled, 64 * "0") is None


def test_a_later_row_that_a_kill_cut_short_does_not_keep_earlier_ones_from_use(plan, tmp_path):
    index, curve = RunIndex(tmp_path / "out"), plan.curves["digits_sgd"]
    folder = write_run(index, plan, "digits_sgd", rate(0.3), [0.9, 0.5, 0.4], state="running")
    with (folder / "metrics.csv").open("a") as file:
        file.write("18,1.5,21")
    config = plan.configure(curve, rate(0.3), 0, 0.5)
    rows = RunIndex(tmp_path / "out").status(config).rows(config)
    assert rows["iteration"].tolist() == [0, 6]


def test_a_reproduction_in_a_folder_below_keeps_its_runs_to_itself(plan, tmp_path):
    below = tmp_path / "out" / "gpu"
    folder = write_run(RunIndex(below), plan, "digits_sgd", rate(0.3), [0.9, 0.5, 0.4])
    config = plan.configure(plan.curves["digits_sgd"], rate(0.3), 0, 1)
    assert RunIndex(below).status(config).folder == folder
    index = RunIndex(tmp_path / "out")
    assert index.status(config) is None and not index.devices


def test_an_unfinished_record_without_a_checkpoint_is_left_alone(plan, tmp_path):
    out = tmp_path / "out"
    config = plan.configure(plan.curves["digits_sgd"], rate(0.3), 0, 1.5)
    train(config.model_copy(update={"epochs": 0.5}), out / "committed")
    (out / "committed" / "checkpoint.h5").unlink()
    before = (out / "committed" / "metrics.csv").read_bytes()
    assert RunIndex(out).status(config) is None
    do(plan, out)
    assert RunIndex(out).status(config).folder == RunIndex(out).new_folder(config, "digits_sgd")
    assert (out / "committed" / "metrics.csv").read_bytes() == before


def test_a_run_begun_with_other_evaluations_goes_on_with_them(plan, tmp_path):
    out = tmp_path / "out"
    config = plan.configure(plan.curves["digits_kfc"], rate(0.3), 0, 0.25)
    train(
        config.model_copy(
            update={"evaluation": config.evaluation.model_copy(update={"every": 0.25})}
        ),
        out / "fine",
    )
    do(plan, out)
    assert len((out / "fine" / "metrics.csv").read_text().splitlines()) == 1 + 7
    assert RunIndex(out).status(config).folder == out / "fine"


@pytest.mark.parametrize(
    "name, content, error",
    [
        ("config.yaml", "data: [", ConfigError),
        ("config.yaml", "data: {}", ConfigError),
        ("config.yaml", b"\xff", ConfigError),
        ("run.json", "{", RecordError),
        ("run.json", "[]", RecordError),
        ("run.json", '{"device": {"device": "cpu"}}', RecordError),
        ("metrics.csv", "iteration\n", RecordError),
    ],
)
def test_an_unreadable_record_is_an_error_naming_the_file(name, content, error, plan, tmp_path):
    out = tmp_path / "out"
    folder = write_run(RunIndex(out), plan, "digits_sgd", rate(0.3), [0.9, 0.5])
    (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(error, match=re.escape(str(folder / name))):
        progress_of(plan, RunIndex(out))
