"""What several processes gain: a training step shared among them, and the sums that it needs.

The parent starts mpiexec, in turns with one process of as many threads, on synthetic images; each
process it starts runs this module again, as `worker`.
"""

import json
import shutil
import statistics
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

from kfcnet.batches import Batch
from kfcnet.benchmarks.cpu import INPUT_SHAPE, example_batch
from kfcnet.config import load_config
from kfcnet.ops import get_ops
from kfcnet.ranks import Ranks, RanksError, world
from kfcnet.runs.files import markdown_table
from kfcnet.training.build import build, whole_periods

STEPS = {"SGD": "cifar_sgd", "KFC-pre": "cifar_kfc"}
SIZES = tuple(4**power for power in range(11))  # floats of a sum that is timed: up to 4 MB
REPEATS = 30


class TimedRanks(Ranks):
    """Other ranks, and what is spent in what they do together: `seconds`, and `cpu`, those of this
    process's processors, which a wait takes too.
    """

    def __init__(self, ranks):
        self._ranks, self.rank, self.count = ranks, ranks.rank, ranks.count
        self.restart()

    def restart(self):
        """Let both times start again."""
        self.seconds = self.cpu = 0.0

    def _timed(self, method, *arguments):
        began, cpu = time.perf_counter(), time.process_time()
        try:
            return method(*arguments)
        finally:
            self.seconds += time.perf_counter() - began
            self.cpu += time.process_time() - cpu

    def sum(self, *arrays):
        return self._timed(self._ranks.sum, *arrays)

    def broadcast(self, owner, *arrays):
        return self._timed(self._ranks.broadcast, owner, *arrays)

    def max(self, *numbers):
        return self._timed(self._ranks.max, *numbers)

    def allgather(self, value):
        return self._timed(self._ranks.allgather, value)

    def abort(self, status):
        self._ranks.abort(status)

    def _from_first(self, value):
        return self._timed(self._ranks._from_first, value)


def benchmark_processes(count=2, rounds=3, native="auto", configs=None):
    """{"device", "processes", "steps": [row], "sums": [[floats, seconds], ...]}.

    A row compares, for one kind of step, `count` processes of one thread with one process of
    `count` threads: medians over rounds of milliseconds a step, by the clock and of all processors.
    The latter, without those in sums, hold on a machine that does other work too. Raises RanksError
    without mpiexec.

    configs: {kind of step: configuration}, STEPS by default.
    """
    configs = configs or STEPS
    settings = {"native": native, "shards": count, "configs": configs}
    alone, shared = [], []
    for _ in range(rounds):
        alone.append(started(1, settings))
        shared.append(started(count, {**settings, "shards": 1}))
    rows = []
    for name in configs:
        threads, processes = ([run["steps"][name] for run in runs] for runs in (alone, shared))
        row = {
            "step": name,
            "batch": threads[0]["batch"],
            "threads": _median(threads, "milliseconds"),
            "processes": _median(processes, "milliseconds"),
            "sums": _median(processes, "sums"),
            "threads_cpu": _median(threads, "cpu"),
            "processes_cpu": _median(processes, "cpu"),
            "sums_cpu": _median(processes, "sums_cpu"),
        }
        rows.append({**row, "ratio": row["processes"] / row["threads"]})
    sums = [
        [size, statistics.median(run["sums"][index][1] for run in shared)]
        for index, size in enumerate(SIZES)
    ]
    return {"device": alone[0]["device"], "processes": count, "steps": rows, "sums": sums}


def _median(rows, key):
    return statistics.median(row[key] for row in rows)


def started(count, settings):
    """What the first of `count` processes measured: see `worker`. Raises RanksError."""
    command = [sys.executable, "-m", "kfcnet.benchmarks.processes", json.dumps(settings)]
    if count > 1:
        command = [mpiexec(), "-n", str(count), *command]
    result = subprocess.run(command, capture_output=True, encoding="utf-8", errors="replace")
    if result.returncode:
        raise RanksError(f"{count} processes did not come to an end: {result.stderr.strip()}")
    return json.loads(result.stdout)


def mpiexec():
    """The path of mpiexec, first of all the one beside this Python. Raises RanksError."""
    found = shutil.which("mpiexec", path=str(Path(sys.executable).parent)) or shutil.which(
        "mpiexec"
    )
    if found is None:
        raise RanksError(
            "there is no mpiexec: pip install -e '.[mpi]' in the checkout of kfcnet brings one"
        )
    return found


def worker(settings):
    """Time the steps and the sums in one of the processes: a dictionary for JSON.

    settings: "shards", the threads of each process; "native"; "configs", {kind of step:
    configuration}; "input_shape", CIFAR's by default.
    """
    ranks = TimedRanks(world())
    ops = get_ops("cpu", "float32", settings["shards"], settings["native"], ranks=ranks)
    shape = settings.get("input_shape", INPUT_SHAPE)
    steps = {
        name: _time_steps(load_config(config), ops, shape)
        for name, config in settings["configs"].items()
    }
    sums = [[size, _time_sum(ranks, size)] for size in SIZES] if ranks.count > 1 else []
    return {"device": ops.describe(), "steps": steps, "sums": sums}


def _time_steps(config, ops, input_shape):
    """Means over whole periods: {"batch", "milliseconds", "sums": of these in collectives, "cpu",
    "sums_cpu": the same of the processors of all processes}.
    """
    M, ranks = config.optimizer.batch_size, ops.ranks
    whole = example_batch(ops, M, input_shape=input_shape)
    batch = Batch(*(np.ascontiguousarray(ranks.share(array)) for array in whole))
    optimizer = build(config, ops, input_shape)
    optimizer.prepare([batch])
    steps = whole_periods(config, 10)
    for count in (2, steps):
        ranks.restart()
        began, cpu = time.perf_counter(), time.process_time()
        for _ in range(count):
            optimizer.step(batch)
        seconds, cpu = time.perf_counter() - began, time.process_time() - cpu
    spent = {"milliseconds": seconds, "sums": ranks.seconds}
    processors = np.sum(ranks.allgather([cpu, ranks.cpu]), axis=0)
    spent |= dict(zip(("cpu", "sums_cpu"), processors.tolist(), strict=True))
    return {"batch": M, **{name: 1e3 * value / steps for name, value in spent.items()}}


def _time_sum(ranks, size):
    """Seconds of a sum of so many floats, the median of some."""
    array, seconds = np.zeros(size, np.float32), []
    for _ in range(REPEATS):
        before = ranks.seconds
        ranks.sum(array)
        seconds.append(ranks.seconds - before)
    return statistics.median(seconds)


def markdown(report):
    """The rows as a table in Markdown."""
    count = report["processes"]
    lines = [
        [
            "step",
            "batch",
            f"1 process of {count} threads, ms",
            f"{count} processes of 1 thread, ms",
            "of these in sums, ms",
            "ratio",
            "of processors, ms: threads",
            "processes",
            "of these in sums",
        ],
        ["---", *["---:"] * 8],
    ]
    lines += [
        [
            row["step"],
            str(row["batch"]),
            *(f"{row[key]:.1f}" for key in ("threads", "processes", "sums")),
            f"{row['ratio']:.2f}",
            *(f"{row[key]:.1f}" for key in ("threads_cpu", "processes_cpu", "sums_cpu")),
        ]
        for row in report["steps"]
    ]
    return markdown_table(lines)


def format_report(report):
    """The report as a text."""
    lines = [f"{key}: {value}" for key, value in report["device"].items()]
    lines += ["", markdown(report), "sum of floats, microseconds:"]
    lines += [f"  {size:>9}{1e6 * seconds:>12.1f}" for size, seconds in report["sums"]]
    return "\n".join(lines)


if __name__ == "__main__":
    measured = worker(json.loads(sys.argv[1]))
    if world().is_first:
        print(json.dumps(measured))
