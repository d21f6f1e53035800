"""The first command: what it says and draws, and the pages' examples on the runs that it leaves."""

import contextlib
import io
import re
from pathlib import Path

import numpy as np
import pytest
from pages import blocks
from runs import small

from kfcnet import cli
from kfcnet.reproduce import demo
from kfcnet.runs.folder import RunFolderError
from kfcnet.runs.read import Run
from kfcnet.training.train import train


@pytest.fixture(scope="module")
def shown(tmp_path_factory):
    """(folder, standard output, standard error) of the command; the runs are in results/demo."""
    folder = tmp_path_factory.mktemp("demo")
    out, err = io.StringIO(), io.StringIO()
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            assert cli.main(["demo"]) == 0
    return folder, out.getvalue(), err.getvalue()


@pytest.mark.slow
def test_the_demo_trains_both_methods_and_says_what_was_seen(shown):
    folder, out, err = shown
    kfc, sgd, ratio, ends, _, following = out.splitlines()
    updates = [
        int(re.search(r"at 1% training error after (\d+) updates", line)[1]) for line in (kfc, sgd)
    ]
    assert 3 * updates[0] < updates[1]
    assert f"SGD takes {updates[1] / updates[0]:.1f} times the updates" in ratio
    assert re.fullmatch(r"Test error at the end: KFC-pre \d\.\d%, SGD \d\.\d%\.", ends)
    assert following == "next: kfcnet reproduce fig1 --quick"
    assert (folder / "results/demo/demo.png").stat().st_size > 10_000
    assert Path(err.splitlines()[-1]) == Path("results/demo/demo.png")


@pytest.mark.slow
def test_the_examples_of_the_pages_run_on_what_the_demo_leaves(shown, monkeypatch, capsys):
    monkeypatch.chdir(shown[0])
    for example in blocks("example"):
        exec(example, {})
    printed = re.findall(r"[-+.\de]+", capsys.readouterr().out)
    largest, estimated = np.sort(np.array(printed, float).reshape(2, 3))
    assert (0.1 < estimated / largest).all() and (estimated / largest < 10).all()


def test_the_demo_leaves_a_run_of_other_settings_alone(tmp_path, monkeypatch):
    train(small("epochs=0.1"), tmp_path / "sgd")
    record = (tmp_path / "sgd" / "run.json").read_bytes()
    short = {"SGD": ("digits_sgd", 1, ())}
    monkeypatch.setattr(demo, "METHODS", short)
    with pytest.raises(RunFolderError, match="sgd holds a run of other settings: choose another"):
        demo.demo(tmp_path)
    assert (tmp_path / "sgd" / "run.json").read_bytes() == record


def test_the_demo_says_where_a_method_did_not_get_there():
    kfc = Run({"train_error": np.array([0.5, 0.01]), "test_error": np.array([0.5, 0.02]),
               "iteration": np.array([0, 4]), "epoch": np.array([0, 1.0]),
               "seconds": np.array([0, 2.0])}, {}, {})  # fmt: skip
    sgd = kfc._replace(metrics={**kfc.metrics, "train_error": np.array([0.5, 0.4])})
    assert demo.seen({"KFC-pre": kfc, "SGD": sgd}) == [
        "KFC-pre is at 1% training error after 4 updates, 2.0 s.",
        "SGD did not get to 1% training error.",
        "Test error at the end: KFC-pre 2.0%, SGD 2.0%.",
    ]
