"""KFC-pre beside SGD on the embedded digits, in seconds: what the project is about, seen once."""

import io
import sys
from pathlib import Path

from kfcnet.config import load_config, read_config
from kfcnet.data.digits import TRAIN_EXAMPLES
from kfcnet.figures import curves
from kfcnet.runs.folder import RunFolderError
from kfcnet.runs.identity import run_key
from kfcnet.runs.metrics import first_crossing
from kfcnet.runs.read import read_run
from kfcnet.training.train import train

BATCH = 720
"""Half of the training set: with large mini-batches second-order updates pay most (section 5.3)."""

METHODS = {
    "KFC-pre": (
        "digits_kfc",
        30,  # updates
        (
            "optimizer.learning_rate=0.3",
            "optimizer.statistics_period=1",
            "optimizer.inverse_period=1",
        ),
    ),
    "SGD": ("digits_sgd", 120, ("optimizer.learning_rate=0.03",)),
}
"""Each at the best rate out of 0.3, 0.1, 0.03 and 0.01 for the training error."""

ERROR = 0.01  # training error at which the two are compared


def demo(out):
    """Train both in the folder `out`, draw `demo.png` there; the text of what was seen.

    Raises what `train` raises, RunFolderError where a folder holds a run of other settings.
    """
    out, runs = Path(out), {}
    for name, (config, updates, settings) in METHODS.items():
        print(f"{name} on the digits, {updates} updates", file=sys.stderr)
        folder = out / name.lower()
        settings = [
            *settings,
            f"optimizer.batch_size={BATCH}",
            f"epochs={updates * BATCH / TRAIN_EXAMPLES}",
            "evaluation={every: 1, unit: updates}",
            "device=cpu",
        ]
        _train_anew(load_config(config, settings), folder)
        runs[name] = read_run(folder)
    panels = [
        curves.Panel(list(runs.values()), "error", x, f"over {words}")
        for x, words in (("updates", "updates"), ("seconds", "training time"))
    ]
    curves.save_figure(lambda: curves.draw_panels(panels), out / "demo.png")
    return "\n".join([*seen(runs), "", "next: kfcnet reproduce fig1 --quick"])


def _train_anew(config, folder):
    """Train in a folder, in place of an earlier demonstration there, but of no other run."""
    record = folder / "config.yaml"
    if record.exists() and run_key(read_config(record)) != run_key(config):
        raise RunFolderError(
            f"{folder} holds a run of other settings: choose another folder with --out"
        )
    train(config, folder, overwrite=True, rows=io.StringIO())


def seen(runs):
    """Three sentences about the runs {method: Run}."""
    kfc, sgd = (first_crossing(run.metrics, "train_error", ERROR) for run in runs.values())
    lines = [_got(name, crossing) for name, crossing in zip(runs, (kfc, sgd), strict=True)]
    if kfc and sgd:
        lines.append(
            f"SGD takes {sgd.updates / kfc.updates:.1f} times the updates and "
            f"{sgd.seconds / kfc.seconds:.1f} times the time."
        )
    ends = ", ".join(f"{name} {run.metrics['test_error'][-1]:.1%}" for name, run in runs.items())
    return [*lines, f"Test error at the end: {ends}."]


def _got(name, crossing):
    if crossing is None:
        return f"{name} did not get to {ERROR:.0%} training error."
    return (
        f"{name} is at {ERROR:.0%} training error after {crossing.updates} updates, "
        f"{crossing.seconds:.1f} s."
    )
