"""What a machine with a GPU shows: its tests, its speed, and that it learns.

`verify` runs all of it and leaves `<device>.json` and a figure of the primitives against what the
device could do.
"""

import hashlib
import math
import os
import platform
import re
import subprocess
import sys
import tempfile
import time
from collections import Counter
from functools import partial
from pathlib import Path

from kfcnet.benchmarks.cuda import (
    Unfinished,
    add_part,
    empty_report,
    failures_of_parts,
    forget_failures,
    measured,
    needed,
    parts,
)
from kfcnet.benchmarks.reference import step_errors
from kfcnet.config import load_config
from kfcnet.data import DataError, load
from kfcnet.figures.curves import Figure, save_figure
from kfcnet.ops import get_ops
from kfcnet.ops.errors import DeviceError
from kfcnet.runs.files import make_folder, read_json, write_json
from kfcnet.runs.metrics import read_metrics
from kfcnet.training.train import train

ROOT = Path(__file__).resolve().parents[2]
TRAININGS = {  # short
    "SGD": ("cifar_sgd", ["epochs=2"]),
    "KFC-pre": ("cifar_kfc", ["epochs=2"]),
}
RESULTS = ("epoch", "seconds", "train_loss", "train_error", "test_loss", "test_error")


MINUTES_OF_A_PART = 9
LEAST_MINUTES = 2  # for a file of tests: with less it would be cut short, and seem to hang
NOT_DONE = "not done within"
BEGINNINGS = 2  # of a part that is cut short every time, which may be its own doing
TESTS = "tests in "  # and the name of a file: a part
SOURCES = {".py", ".cu", ".cuh", ".h", ".c"}
FIRST_FAILURE = re.MULTILINE | re.DOTALL
NO_TESTS = 5  # pytest's exit status where a file has none that were asked for


class VerificationFailed(RuntimeError):
    """Parts or tests fail; the rest was measured all the same, and is in the report."""


def verify(out, data=None, path=None, minutes=math.inf, say=None):
    """Check, test, time and train on the GPU; returns the JSON file written into the folder `out`.

    In parts of a few minutes each: the file is there after every part, and a later call goes on
    with those that are left. None begins once `minutes` have passed, and tests are cut short then.
    A part that a call did not see the end of comes last in the next one, and has failed when that
    does not either. After a failure that takes the device away, the next call goes on; what failed
    is done again where sources have changed since. What tests said is in `<device>-tests.txt`.
    data, path: the data set of the short trainings and where it lies; by default CIFAR-10, and
    synthetic images where that is not found. Raises DeviceError without a GPU, Unfinished where
    parts are left, and at the end VerificationFailed with what tests said where some failed.
    """
    begun, ops = time.monotonic(), get_ops("cuda")
    say = say or partial(print, flush=True)  # a call that is killed has said what it did
    name = re.sub(r"[^A-Za-z0-9]+", "-", ops.describe()["processor"]).strip("-").lower()
    make_folder(out)
    target = out / f"{name}.json"
    report = (
        read_json(target)
        if target.exists()
        else {"python": platform.python_version(), **empty_report(), "begun": {}, "done": []}
    )
    if report.get("sources") != (sources := _sources()):
        _do_again(report)
        report["sources"] = sources
    end = begun + 60 * minutes
    log = target.with_name(f"{name}-tests.txt")
    todo = verification_parts(ops, data, path, say, lambda: end - time.monotonic(), log)
    times = report["begun"] = Counter(report["begun"])  # that each part has begun

    def rank(part):  # behind what it looks for
        return max(times[each] for each in (part, *needed(part, todo)))

    left = [part for part in todo if part not in report["done"]]
    for part in sorted(left, key=rank):
        remaining = (end - time.monotonic()) / 60
        if remaining < 0:
            break
        if part.startswith(TESTS) and remaining < LEAST_MINUTES:
            continue
        say(f"{part} ...")
        function = todo[part] if times[part] < BEGINNINGS else _give_up
        times[part] += 1
        write_json(target, report)
        add_part(report, part, function)
        write_json(target, report)
        if said := _failure_of(report, part):
            say(said)
        _check_device(ops, part)
    if count := sum(part not in report["done"] for part in todo):
        raise Unfinished(f"{count} of {len(todo)} parts are left: the same command goes on")
    if _has_ceilings(report):
        save_figure(lambda: ceiling_figure(report), target.with_suffix(".png"))
    if failed := failures(report):
        raise VerificationFailed("\n".join(f"{key}: {said}" for key, said in failed.items()))
    return target


def _sources():
    """The SHA-256 of what is verified."""
    digest = hashlib.sha256()
    for folder in ("kfcnet", "kernels", "tests"):
        for file in sorted((ROOT / folder).rglob("*")):
            if file.suffix in SOURCES:
                digest.update(file.relative_to(ROOT).as_posix().encode() + file.read_bytes())
    return digest.hexdigest()


def _do_again(report):
    """Forget what failed, and that it was begun."""
    forget_failures(report)
    tests = report.get("tests", {})
    for file in [file for file, (outcomes, _) in tests.items() if _fails(outcomes)]:
        del tests[file]
        report["done"].remove(TESTS + file)
    report["begun"] = {part: n for part, n in report["begun"].items() if part in report["done"]}


def _failure_of(report, part):
    """What a part said that failed just now, or ""."""
    outcomes, said = report.get("tests", {}).get(part.removeprefix(TESTS), ({}, ""))
    return report.get("failed", {}).get(part, said if _fails(outcomes) else "")


def _fails(outcomes):
    return bool(set(outcomes) - {"passed", "skipped", "deselected"})


def _give_up(report):
    raise RuntimeError(f"begun {BEGINNINGS} times, and the call ended first")


def _check_device(ops, part):
    """Raise Unfinished where the device answers no more: it does to another process."""
    try:
        ops.runtime.synchronize()
    except DeviceError as error:
        raise Unfinished(
            f"{part} took the device away ({error}): the same command goes on behind it"
        ) from error


def _has_ceilings(report):
    """Whether there is what `ceiling_figure` draws."""
    rows = measured(report["primitives"])
    return "ceilings" in report and any(row["step"].startswith("KFC-pre") for row in rows)


def _data_at_hand(path, say):
    """ "cifar10" where its files are, else "synthetic", which is said; nothing is downloaded."""
    try:
        load(load_config("cifar_kfc").data.model_copy(update={"path": path}), download=False)
    except DataError:
        say("CIFAR-10 is not at hand: the short trainings are on synthetic images")
        return "synthetic"
    return "cifar10"


def failures(report):
    """{what failed: what it said}: parts, primitives, tests, and tests if none has passed."""
    tests = report.get("tests", {})
    failed = {file: said for file, (outcomes, said) in tests.items() if _fails(outcomes)}
    if not any("passed" in outcomes for outcomes, _ in tests.values()):
        failed["tests"] = "none has passed"  # that all are skipped shows nothing
    return failures_of_parts(report) | failed


def verification_parts(ops, data, path, say, left, log):
    """{name: function(report) -> what it adds}, the quickest answers first.

    left: gives the seconds that tests may still take; log: a file for all that they say.
    """
    found = parts(ops)
    first = {name: found.pop(name) for name in ("device", "compilation")}
    first["real step"] = lambda report: {"real_step": step_errors(ops)}
    tests = {
        TESTS + file.name: partial(_tests_part, file, left, log) for file in _files_with_tests()
    }
    trainings = {
        f"training of {name}": partial(_training_part, name, data, path, say) for name in TRAININGS
    }
    return first | tests | found | trainings


def _files_with_tests():
    """The files that have tests for a GPU, as pytest collects them."""
    asked = [sys.executable, "-m", "pytest", "--collect-only", "-q", "-m", "gpu", "tests"]
    done = subprocess.run(asked, cwd=ROOT, capture_output=True, encoding="utf-8", errors="replace")
    # Those that cannot be collected say so themselves.
    found = r"^(?:ERROR )?tests/(test_\w+\.py)(?:::| - |$)"
    names = re.findall(found, done.stdout, flags=re.MULTILINE)
    every = sorted((ROOT / "tests").glob("test_*.py"))
    return [file for file in every if file.name in names or not names]


def _tests_part(file, left, log, report):
    longest = 60 * MINUTES_OF_A_PART
    seconds = min(longest, max(1, left()))
    outcomes, said = run_tests(file, seconds, log)
    is_first = report["begun"][TESTS + file.name] < BEGINNINGS
    if seconds < longest and is_first and said.startswith(NOT_DONE):
        raise Unfinished(f"{file.name} was cut short: the same command goes on")
    return {"tests": {file.name: (outcomes, said)}}


def _training_part(name, data, path, say, report):
    data = data or _data_at_hand(path, say)
    return {"trainings": [short_training(name, data, path)]}


def run_tests(file="tests", seconds=60 * MINUTES_OF_A_PART, log=os.devnull):
    """({outcome: number of tests}, the first failure and the end of what pytest said).

    All of that is added to the file `log`: after an error that takes the device away, all tests
    behind it fail too.
    """
    try:
        done = subprocess.run(
            [sys.executable, "-m", "pytest", "-v", "--tb=short", "-m", "gpu", str(file)],
            cwd=ROOT,
            env={**os.environ, "COLUMNS": "200"},
            capture_output=True,
            encoding="utf-8",
            errors="replace",
            timeout=seconds,
        )
    except subprocess.TimeoutExpired as late:
        said = late.stdout or ""
        said = said.decode(errors="replace") if isinstance(said, bytes) else said
        _append(log, said)
        return {"error": 1}, f"{NOT_DONE} {seconds / 60:.3g} minutes\n{said[-2000:]}".rstrip()
    _append(log, done.stdout + done.stderr)
    lines = done.stdout.strip().splitlines() or [""]
    counts = re.findall(r"(\d+) (passed|failed|skipped|error|deselected)", lines[-1])
    outcomes = {outcome: int(number) for number, outcome in counts}
    if done.returncode not in (0, NO_TESTS) and not outcomes.keys() & {"failed", "error"}:
        outcomes["error"] = 1  # pytest itself
    first = re.search(r"^_{3,} .+? _{3,}$.*?(?=^_{3,} .+? _{3,}$|^=)", done.stdout, FIRST_FAILURE)
    said = "\n".join(lines[-30:]) + done.stderr[-2000:]
    return outcomes, f"{first[0][:3000].rstrip()}\n...\n{said}" if first else said


def _append(log, text):
    with open(log, "a", encoding="utf-8") as file:
        file.write(text + "\n")


def short_training(name, data, path):
    """The last row of a short run's metrics, and what was trained on."""
    source, overrides = TRAININGS[name]
    overrides = [*overrides, "device=cuda", f"data.name={data}"]
    overrides += [f"data.path={path}"] if path and data == "cifar10" else []
    with tempfile.TemporaryDirectory() as folder:
        train(load_config(source, overrides), Path(folder) / "run")
        metrics = read_metrics(Path(folder) / "run" / "metrics.csv")
    return {"training": name, "data": data, **{key: float(metrics[key][-1]) for key in RESULTS}}


def ceiling_figure(report):
    """Each primitive's share of the device's own ceiling: memory or arithmetic, the nearer one.

    Those of the first KFC-pre step, which has them all.
    """
    rows = measured(report["primitives"])
    step = next(row["step"] for row in rows if row["step"].startswith("KFC-pre"))
    rows = sorted((row for row in rows if row["step"] == step), key=lambda row: row["microseconds"])
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
