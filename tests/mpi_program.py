"""What tests/test_mpi.py starts under mpiexec: commands of kfcnet, with a fault in one process.

    mpiexec -n 2 python mpi_program.py FAULT ARGUMENTS... ++ FAULT ARGUMENTS...

FAULT is the name of a function below, or "none". The first process prints the exit status of each
command on a line of standard error, `== 0`.
"""

import os
import sys
import time

import fake_cupy
import numpy as np
from pytest import MonkeyPatch

from kfcnet import cli, data, ranks
from kfcnet.curvature.block import KroneckerBlock
from kfcnet.ops.cuda import runtime
from kfcnet.ops.errors import DeviceError
from kfcnet.runs import folder
from kfcnet.runs.files import WriteError
from kfcnet.training import train, trainer


def before_step(patch, number, function):
    """Let a Trainer call function(trainer) before its step of that number, counted from 0."""
    original = trainer.Trainer._step

    def step(self):
        if self.optimizer.steps == number:
            function(self)
        return original(self)

    patch.setattr(trainer.Trainer, "_step", step)


def on(rank, function):
    """function(*arguments), on one of the processes only."""
    return lambda *arguments: function(*arguments) if ranks.world().rank == rank else None


def exception(patch):
    def fail(_):
        raise ZeroDivisionError("a fault of the second process")

    before_step(patch, 7, on(1, fail))


def exit_of_one(patch):
    before_step(patch, 7, on(1, lambda _: sys.exit(3)))


def drift(patch):
    def move(run):
        run.network.theta[0] += 1e-12

    before_step(patch, 7, on(1, move))


def average_of_one(patch):
    """Of the second process alone the averaged parameters are not finite."""

    def spoil(run):
        run.optimizer.average[0] = np.nan

    before_step(patch, 7, on(1, spoil))


def failure_of_one(patch):
    """What ends a run where all processes have it, in the second one alone."""
    original = trainer.Trainer._step

    def fail():
        raise np.linalg.LinAlgError("a fault of the second process")

    def step(self):
        if self.optimizer.steps == 7 and self.ranks.rank == 1:
            self.take_step = fail
        return original(self)

    patch.setattr(trainer.Trainer, "_step", step)


def inversion(patch):
    """From the seventh step on every inversion of the second process fails, and what would be said
    of it too.
    """

    def fail(*arguments):
        raise np.linalg.LinAlgError("planted")

    def plant(_):
        for name in ("invert", "_damping_floor"):
            patch.setattr(KroneckerBlock, name, fail)

    before_step(patch, 7, on(1, plant))


def other_data(patch):
    original = data.load

    def load(config):
        dataset = original(config)
        if ranks.world().rank == 1:
            dataset.provenance["sha256"] = "0" * 64
        return dataset

    patch.setattr(data, "load", load)


def other_arguments(patch):
    """The second process is to show its configuration, and not to train."""
    train = cli.COMMANDS["train"]

    def start(argv, prog):
        return train([*argv, *["--print-config"] * ranks.world().rank], prog)

    patch.setitem(cli.COMMANDS, "train", start)


def no_data(patch):
    """The second process finds no data."""
    original = data.load

    def load(config):
        if ranks.world().rank == 1:
            raise data.DataError("no data set here")
        return original(config)

    patch.setattr(data, "load", load)


def no_gpu(patch):
    """The second process finds no GPU; the first one does, and comes to no use of it."""

    def cupy():
        if ranks.world().rank == 1:
            raise DeviceError("no GPU here")
        return fake_cupy.modules()["cupy"]

    patch.setattr(runtime, "_cupy", cupy)


def device_of_before(patch):
    """The run that the processes go on with was begun on another device."""
    original = folder.load_checkpoint

    def load(path):
        state = original(path)
        state["origin"]["device"] = "cuda"
        return state

    patch.setattr(folder, "load_checkpoint", load)


def full_disk(patch):
    def fail(path, state):
        raise WriteError(f"cannot write {path.name}: no space left")

    patch.setattr(folder, "save_checkpoint", fail)


def slow(patch):
    """Steps that take a while, and the numbers of the processes on standard output."""
    original = trainer.Trainer._step

    def step(self):
        time.sleep(0.1)
        return original(self)

    patch.setattr(trainer.Trainer, "_step", step)
    os.write(1, f"rank {ranks.world().rank} is {os.getpid()}\n".encode())


def commands(words):
    """[[FAULT, ARGUMENTS...], ...] of words with ++ between them."""
    result = [[]]
    for word in words:
        if word == "++":
            result.append([])
        else:
            result[-1].append(word)
    return result


def run(fault, *arguments):
    """The exit status of a command."""
    with MonkeyPatch.context() as patch:
        # Figures have tests of their own; to import what draws them takes longer than these runs.
        patch.setattr(train, "_draw", lambda path: (path / "curves.png").write_text("a figure"))
        if fault != "none":
            globals()[fault](patch)
        try:
            return cli.main(list(arguments))
        except SystemExit as end:  # of wrong arguments
            return end.code


if __name__ == "__main__":
    for command in commands(sys.argv[1:]):
        status = run(*command)
        if ranks.world().is_first:
            print(f"\n== {status}", file=sys.stderr, flush=True)
    sys.exit(status)
