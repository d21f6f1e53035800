"""The command line: `kfcnet COMMAND ...`; COMMANDS has the list.

Every command is a function of its arguments that returns the exit status: 0 for success, 1 for
a run that failed, 2 for input that cannot be used (one or two lines on standard error say what,
where, and what to do), 128 + n for a run that signal n interrupted.
"""

import argparse
import sys
from importlib import metadata
from pathlib import Path

try:
    from kfcnet import ranks
    from kfcnet.cli.arguments import Parser
    from kfcnet.cli.command import command
    from kfcnet.config import config_names, config_summary, dump_config, load_config
except ModuleNotFoundError as error:
    if (error.name or "kfcnet").partition(".")[0] == "kfcnet":
        raise
    raise SystemExit(
        f"error: the package {error.name} is not installed for {sys.executable}; in the folder of "
        "kfcnet, `python3 -m venv .venv && .venv/bin/pip install -e .` installs what it needs, and "
        ".venv/bin/python runs it"
    ) from None

MOST_CLASSES_SHOWN = 10


def main(argv=None):
    """Run `kfcnet COMMAND ...`; returns the exit status."""
    parser = Parser(
        prog="kfcnet",
        description="Train convolutional networks with Kronecker-factored curvature (KFC).",
        epilog="`kfcnet COMMAND --help` lists the options of a command.",
    )
    parser.add_argument("--version", action="version", version=f"kfcnet {_version()}")
    parser.add_argument(
        "command", choices=COMMANDS, nargs="?", metavar="COMMAND", help=", ".join(COMMANDS)
    )
    parser.add_argument("arguments", nargs=argparse.REMAINDER, help="of the command")
    options = parser.parse_args(argv)
    if options.command is None:
        parser.error(f"a command is missing; there are {', '.join(COMMANDS)}")
    return COMMANDS[options.command](options.arguments, f"kfcnet {options.command}")


@command
def train(argv=None, prog=None):
    """Train a network as a configuration says; leaves a run folder."""
    parser = Parser(prog=prog, description=train.__doc__)
    _add_config_options(parser)
    parser.add_argument(
        "--print-config",
        action="store_true",
        help="print the configuration with all defaults, and stop",
    )
    parser.add_argument(
        "--out",
        type=Path,
        metavar="DIR",
        help="folder of the run (default: results/NAME of the configuration)",
    )
    existing = parser.add_mutually_exclusive_group()
    existing.add_argument(
        "--resume",
        action="store_true",
        help="go on with the run in the folder; start it if there is none",
    )
    existing.add_argument("--overwrite", action="store_true", help="replace the run in the folder")
    parser.add_argument(
        "--pick-periods",
        type=float,
        nargs="?",
        const=2.0,
        metavar="MULTIPLE",
        help="time the parts of KFC-pre's update and take the shortest periods of "
        "statistics and inverses by which an epoch costs less than MULTIPLE "
        "(default: 2) times SGD's; a run that goes on keeps its own",
    )
    parser.add_argument(
        "--sgd-batch-size",
        type=int,
        metavar="M",
        help="of the SGD that --pick-periods compares with (default: 128)",
    )
    options = parser.parse_args(argv)
    if options.pick_periods is not None and not options.pick_periods > 0:
        parser.error(f"--pick-periods {options.pick_periods}: the multiple must be above 0")
    if options.sgd_batch_size is not None and options.sgd_batch_size < 1:
        parser.error(f"--sgd-batch-size {options.sgd_batch_size}: at least one is needed")
    if options.sgd_batch_size and options.pick_periods is None:
        parser.error("--sgd-batch-size: there is an SGD to compare with only under --pick-periods")
    processes = ranks.world()
    if options.pick_periods is not None and processes.count > 1:
        parser.error("--pick-periods: the periods are timed in one process, without mpiexec")
    config = processes.agreed(lambda: load_config(options.config, _overrides(options)))
    out = options.out or Path("results", Path(options.config).stem)
    if options.pick_periods is not None:
        from kfcnet.training import periods

        limits = options.pick_periods, options.sgd_batch_size or 128
        config = (
            periods.pick(config, *limits)
            if options.print_config
            else periods.settle(config, out, options.resume, options.overwrite, *limits)
        )
    if options.print_config:
        print(dump_config(config), end="")
        return
    from kfcnet.training import train as training

    training.train(config, out, resume=options.resume, overwrite=options.overwrite, ranks=processes)
    if processes.is_first:
        print(f"{out}: metrics.csv, curves.png, checkpoint.h5", file=sys.stderr)


@command
def evaluate(argv=None, prog=None):
    """Print the test loss and error of a run's averaged parameters, and of its named classes."""
    parser = Parser(prog=prog, description=evaluate.__doc__)
    parser.add_argument("run", type=Path, metavar="RUN", help="folder of a run")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    parser.add_argument("--data", type=Path, metavar="PATH", help="where the data set lies")
    parser.add_argument("--train", action="store_true", help="measure on the training set too")
    options = parser.parse_args(argv)
    from kfcnet import data
    from kfcnet.ops import which_device
    from kfcnet.training.evaluation import load_run

    run = load_run(options.run, options.device)
    if options.device == "auto":
        print(which_device(run.network.ops), file=sys.stderr)
    dataset = data.load(run.config.data.model_copy(update={"path": options.data}))
    run.check_data(dataset)
    for part in ("train", "test") if options.train else ("test",):
        images, labels = (getattr(dataset, f"{part}_{what}") for what in ("images", "labels"))
        loss, error = run.evaluate(images, labels)
        print(
            f"{part} loss {loss:.4f} nats, error {error:.2%} ({len(labels)} images, "
            f"after update {run.steps})"
        )
        if errors := run.class_errors(images, labels):
            shown = [f"{name} {error:.2%}" for name, error in errors.items()]
            more = ["..."] if len(shown) > MOST_CLASSES_SHOWN else []
            print(f"error by class: {', '.join(shown[:MOST_CLASSES_SHOWN] + more)}")


@command
def plot(argv=None, prog=None):
    """Draw the losses and errors of runs side by side: training dashed, test solid."""
    from kfcnet.figures import curves

    parser = Parser(prog=prog, description=plot.__doc__)
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="folder of a run")
    parser.add_argument("--x", choices=curves.X_AXES, default="seconds", help="horizontal axis")
    parser.add_argument(
        "--out",
        type=Path,
        metavar="FILE",
        default=Path("curves.png"),
        help="the figure, .png, .svg or .pdf (default: curves.png)",
    )
    options = parser.parse_args(argv)
    if options.out.suffix.lstrip(".").lower() not in curves.DATELESS:
        parser.error(f"--out {options.out}: a figure is a .png, .svg or .pdf file")
    curves.plot_runs(options.runs, options.out, options.x)
    print(options.out, file=sys.stderr)


@command
def compare(argv=None, prog=None):
    """Draw runs against time and against updates, and table when each reached which errors.

    The first run is the one that the others' updates and seconds are divided by.
    """
    parser = Parser(prog=prog, description=compare.__doc__)
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="folder of a run")
    parser.add_argument(
        "--out",
        type=Path,
        metavar="DIR",
        default=Path("results/comparison"),
        help="folder of the figures and tables (default: results/comparison)",
    )
    parser.add_argument(
        "--by",
        choices=("updates", "seconds", "both"),
        default="both",
        help="seconds only of runs that had the machine to themselves (default: both)",
    )
    options = parser.parse_args(argv)
    from kfcnet.figures import milestones

    by = milestones.BY if options.by == "both" else (options.by,)
    rows = milestones.compare(options.runs, options.out, by=by)
    print((options.out / "runs.md").read_text(encoding="utf-8"))
    if rows:
        print(milestones.markdown(rows), end="")
    print(options.out / "report.html", file=sys.stderr)


@command
def sweep(argv=None, prog=None):
    """Train a grid of variations of a configuration in stages, the best ones further."""
    from kfcnet.training import sweep as sweeps

    parser = Parser(
        prog=prog,
        description=sweep.__doc__,
        epilog="The paper's learning rates, in the stages of docs/rules.md: "
        "--grid optimizer.learning_rate=0.3,0.1,0.03,0.01,0.003,0.001,0.0003 "
        "--stage 2:all --stage 8:3 --stage 20:2",
    )
    _add_config_options(parser)
    parser.add_argument(
        "--grid",
        action="append",
        required=True,
        metavar="KEY=VALUE,VALUE,...",
        help="values of one setting; given again, all combinations are run",
    )
    parser.add_argument(
        "--stage",
        action="append",
        default=[],
        metavar="EPOCHS:KEEP",
        help="train the best KEEP runs so far up to EPOCHS; the first stage is EPOCHS:all",
    )
    parser.add_argument("--workers", type=int, default=1, help="runs at a time")
    parser.add_argument(
        "--out", type=Path, metavar="DIR", help="folder of the runs (default: results/sweep_NAME)"
    )
    options = parser.parse_args(argv)
    out = options.out or Path("results", f"sweep_{Path(options.config).stem}")
    try:
        grid, stages = sweeps.parse_grid(options.grid), sweeps.parse_stages(options.stage)
        sweeps.grid_points(grid, out)
    except ValueError as error:
        parser.error(str(error))
    if options.workers < 1:
        parser.error(f"--workers {options.workers}: at least one is needed")
    results = sweeps.sweep(options.config, grid, stages, out, _overrides(options), options.workers)
    print((out / "sweep.md").read_text(encoding="utf-8"), end="")
    return 1 if any(result.failure for result in results) else 0


@command
def benchmark(argv=None, prog=None):
    """Time training steps of the CIFAR-10 network, beside PyTorch if it is there."""
    parser = Parser(prog=prog, description=benchmark.__doc__)
    parser.add_argument(
        "--device",
        choices=("cpu", "cuda"),
        default="cpu",
        help="cuda: every primitive too, against the GPU's ceilings (default: cpu)",
    )
    parser.add_argument("--rounds", type=int, help="on the CPU: turns of four steps (default: 5)")
    parser.add_argument("--shards", type=int, help="on the CPU: threads (default: 2)")
    parser.add_argument(
        "--native",
        choices=("auto", "on", "off"),
        help="on the CPU: use of the C extension (default: auto)",
    )
    parser.add_argument(
        "--processes",
        type=int,
        metavar="R",
        help="on the CPU: R processes that share each step, under mpiexec, against R threads",
    )
    parser.add_argument(
        "--json",
        type=Path,
        metavar="FILE",
        help="write the report there too; on the CPU also its table (.md)",
    )
    options = parser.parse_args(argv)
    chosen = {
        key: value
        for key in ("rounds", "shards", "native", "processes")
        if (value := getattr(options, key)) is not None
    }
    if options.json and options.json.suffix == ".md":
        parser.error(f"--json {options.json}: the table gets that name; take one in .json")
    if min(chosen.get("rounds", 1), chosen.get("shards", 1)) < 1:
        parser.error("--rounds and --shards: at least one is needed")
    if chosen and options.device == "cuda":
        parser.error(f"--{next(iter(chosen))} is for --device cpu")
    count = chosen.pop("processes", None)
    if count is not None and (count < 2 or "shards" in chosen):
        parser.error("--processes: at least two, of one thread each, without --shards")
    from kfcnet.benchmarks import cpu as cpu_benchmark
    from kfcnet.benchmarks import processes as processes_benchmark
    from kfcnet.runs.files import make_folder, write_json, write_text

    if options.device == "cuda":
        from kfcnet.benchmarks import cuda as cuda_benchmark
        from kfcnet.ops import get_ops

        report = cuda_benchmark.benchmark_cuda(get_ops("cuda"))
        print(cuda_benchmark.format_report(report))
    elif count is not None:
        report = processes_benchmark.benchmark_processes(count, **chosen)
        print(processes_benchmark.format_report(report))
    else:
        report = cpu_benchmark.benchmark_cpu(**chosen)
        print(cpu_benchmark.format_report(report))
    if options.json:
        make_folder(options.json.parent)
        write_json(options.json, report)
        if options.device == "cpu":
            table = cpu_benchmark if count is None else processes_benchmark
            write_text(options.json.with_suffix(".md"), table.markdown(report))


@command
def reproduce(argv=None, prog=None):
    """Train what the paper's figures and numbers need, where it is not there yet, and draw them.

    Leaves figures/, numbers.csv, README.md and report.html in the folder. The same command goes on
    after a stop.
    """
    from kfcnet import reproduce as reproduction
    from kfcnet.reproduce.places import places_of

    parser = Parser(prog=prog, description=reproduce.__doc__)
    parser.add_argument(
        "figure",
        metavar="FIGURE",
        choices=reproduction.FIGURES,
        help=", ".join(reproduction.FIGURES),
    )
    parser.add_argument(
        "--quick", action="store_true", help="the same on the embedded digits, in minutes"
    )
    parser.add_argument(
        "--device",
        choices=("auto", "cpu", "cuda"),
        default="auto",
        help="on a CPU the plan is shorter (default: auto)",
    )
    parser.add_argument(
        "--out",
        type=Path,
        metavar="DIR",
        help="where runs are looked for and left (default: results/reproduction, or results/quick)",
    )
    parser.add_argument("--seeds", type=int, metavar="N", help="seeds of every curve")
    parser.add_argument(
        "--data",
        action="extend",
        nargs="+",
        default=[],
        metavar="NAME=PATH",
        help="where data lie: cifar10=... svhn=... (default: as in training)",
    )
    parser.add_argument(
        "--set",
        dest="overrides",
        action="extend",
        nargs="+",
        default=[],
        metavar="KEY=VALUE",
        help="override settings of every run",
    )
    parser.add_argument("--workers", type=int, default=1, help="runs at a time (default: 1)")
    parser.add_argument(
        "--draw", action="store_true", help="train nothing: draw what there are records for"
    )
    options = parser.parse_args(argv)
    try:
        places = places_of(options.data)
    except ValueError as error:
        parser.error(f"--data: {error}")
    if options.seeds is not None and options.seeds < 1:
        parser.error(f"--seeds {options.seeds}: at least one is needed")
    if options.workers < 1:
        parser.error(f"--workers {options.workers}: at least one is needed")
    for setting in options.overrides:
        key = setting.partition("=")[0].strip()
        if key in reproduction.DECIDED:
            parser.error(f"--set {key}: the plan decides it; see --seeds, --device and --data")
    out = options.out or Path("results", "quick" if options.quick else "reproduction")
    failures = reproduction.reproduce(
        options.figure,
        out,
        options.device,
        quick=options.quick,
        seeds=options.seeds,
        places=places,
        overrides=options.overrides,
        only_draw=options.draw,
        at_a_time=options.workers,
    )
    for reason in dict.fromkeys(failures.values()):
        names = [name for name, why in failures.items() if why == reason]
        print(f"failed: {', '.join(names)}: {reason}", file=sys.stderr)
    print(out / "README.md", out / "report.html", sep="\n", file=sys.stderr)
    return 1 if failures else 0


@command
def configs(argv=None, prog=None):
    """List the configurations that come with the package."""
    Parser(prog=prog, description=configs.__doc__).parse_args(argv)
    width = max(map(len, config_names()))
    for name in config_names():
        print(f"{name:<{width}}  {config_summary(name)}")


@command
def demo(argv=None, prog=None):
    """Train KFC-pre and SGD on the embedded digits, and draw both over updates and over time."""
    parser = Parser(prog=prog, description=demo.__doc__)
    parser.add_argument(
        "--out",
        type=Path,
        metavar="DIR",
        default=Path("results/demo"),
        help="folder of the runs and of demo.png (default: results/demo)",
    )
    options = parser.parse_args(argv)
    from kfcnet.reproduce import demo as demonstration

    print(demonstration.demo(options.out))
    print(options.out / "demo.png", file=sys.stderr)


COMMANDS = {
    "demo": demo,
    "configs": configs,
    "train": train,
    "evaluate": evaluate,
    "plot": plot,
    "compare": compare,
    "sweep": sweep,
    "benchmark": benchmark,
    "reproduce": reproduce,
}


def _add_config_options(parser):
    parser.require(
        "--config", metavar="NAME", help=f"a path, or one of {', '.join(config_names())}"
    )
    parser.add_argument(
        "--set",
        dest="overrides",
        action="extend",
        nargs="+",
        default=[],
        metavar="KEY=VALUE",
        help="override settings: optimizer.learning_rate=0.03 network.conv1.std=he",
    )
    parser.add_argument(
        "--device",
        choices=("auto", "cpu", "cuda"),
        help="auto takes a GPU if there is one (default: as configured)",
    )


def _overrides(options):
    return options.overrides + ([f"device={options.device}"] if options.device else [])


def _version():
    try:
        return metadata.version("kfcnet")
    except metadata.PackageNotFoundError:
        return "(not installed)"
