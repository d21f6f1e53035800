"""What a machine with a GPU shows: its tests, its speed, and that it learns.

`verify` runs all of it and leaves `<device>.json` and a figure of the primitives against what the
device could do.
"""

import platform
import re
import subprocess
import sys
import tempfile
from pathlib import Path

from kfcnet.benchmarks.cuda import benchmark_cuda
from kfcnet.config import load_config
from kfcnet.figures.curves import Figure, save_figure
from kfcnet.ops import get_ops
from kfcnet.runs.files import write_json
from kfcnet.runs.metrics import read_metrics
from kfcnet.training.trainer import train

ROOT = Path(__file__).resolve().parents[2]
TRAININGS = {  # short
    "SGD": ("cifar_sgd", ["epochs=2"]),
    "KFC-pre": ("cifar_kfc", ["epochs=2"]),
}
RESULTS = ("epoch", "seconds", "train_loss", "train_error", "test_loss", "test_error")


class VerificationFailed(RuntimeError):
    """Tests on the GPU fail; the rest was measured all the same, and is in the report."""


def verify(out, data="cifar10", path=None):
    """Test, time and train on the GPU; returns the JSON file written into the folder `out`.

    The file is there after every part, so that none is lost where a later one fails. data, path:
    the data set of the short trainings and where it lies. Raises DeviceError without a GPU, and
    at the end VerificationFailed with the last lines of pytest's where tests failed.
    """
    ops = get_ops("cuda")
    name = re.sub(r"[^A-Za-z0-9]+", "-", ops.describe()["processor"]).strip("-").lower()
    out.mkdir(parents=True, exist_ok=True)
    target, report = out / f"{name}.json", {"python": platform.python_version()}

    def add(part):
        report.update(part)
        write_json(target, report)

    outcomes, said = run_tests()
    add({"tests": outcomes})
    add(benchmark_cuda(ops))
    save_figure(lambda: ceiling_figure(report), target.with_suffix(".png"))
    add({"trainings": [short_training(training, data, path) for training in TRAININGS]})
    if set(outcomes) - {"passed", "skipped"} or "passed" not in outcomes:  # skipped shows nothing
        raise VerificationFailed(said)
    return target


def run_tests():
    """({outcome: number of tests}, the end of what pytest said)."""
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-m", "gpu", "tests"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    lines = done.stdout.strip().splitlines() or [""]
    counts = re.findall(r"(\d+) (passed|failed|skipped|error)", lines[-1])
    outcomes = {outcome: int(number) for number, outcome in counts}
    if done.returncode and not outcomes.keys() & {"failed", "error"}:
        outcomes["error"] = 1  # pytest itself
    return outcomes, "\n".join(lines[-30:]) + done.stderr[-2000:]


def short_training(name, data, path):
    """The last row of a short run's metrics, and what was trained on."""
    source, overrides = TRAININGS[name]
    overrides = [*overrides, "device=cuda", f"data.name={data}"]
    overrides += [f"data.path={path}"] if path else []
    with tempfile.TemporaryDirectory() as folder:
        train(load_config(source, overrides), Path(folder) / "run")
        metrics = read_metrics(Path(folder) / "run" / "metrics.csv")
    return {"training": name, "data": data, **{key: float(metrics[key][-1]) for key in RESULTS}}


def ceiling_figure(report):
    """Each primitive's share of the device's own ceiling: memory or arithmetic, the nearer one.

    Those of the first KFC-pre step, which has them all.
    """
    step = next(row["step"] for row in report["primitives"] if row["step"].startswith("KFC-pre"))
    rows = sorted(
        (row for row in report["primitives"] if row["step"] == step),
        key=lambda row: row["microseconds"],
    )
    figure = Figure(figsize=(9, 0.28 * len(rows) + 1.5), layout="constrained")
    axes = figure.subplots()
    shares = [share(row, report["ceilings"]) for row in rows]
    axes.barh([f"{row['call'][:60]}  {row['microseconds']:.0f} us" for row in rows], shares)
    axes.axvline(1, color="black", linewidth=0.8)
    axes.set_xlabel("share of the ceiling measured in the same run")
    axes.set_title(f"{report['device']['processor']}: {step}")
    return figure


def share(row, ceilings):
    """The largest of a primitive's rates over the ceiling of that rate."""
    return max(
        row["GB_s"] / ceilings["copy_GB_s"],
        row["TFLOP_s"] / ceilings[f"{row['precision']}_TFLOP_s"],
    )
