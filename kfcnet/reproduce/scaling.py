"""Seconds to a training error over the number of processes: measured, and beyond that modelled.

Updates come from the runs of a plan, which are of one process each: R processes take the same steps
up to rounding. Seconds of an update are measured apart from the runs, on a CPU.
"""

import tempfile
import textwrap
from pathlib import Path
from statistics import median
from typing import NamedTuple

from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from kfcnet import data
from kfcnet.benchmarks import processes
from kfcnet.benchmarks.scaling import OwnWork, fitted
from kfcnet.config import ConfigError, dump_config
from kfcnet.figures import curves
from kfcnet.figures.layout import add_title
from kfcnet.ranks import RanksError, cores
from kfcnet.reproduce import costs
from kfcnet.reproduce.places import placed, say
from kfcnet.reproduce.values import Value, middle, reached
from kfcnet.runs.files import markdown_table, read_json, write_json
from kfcnet.runs.identity import machine_of, work_key
from kfcnet.runs.labels import data_set, method, network_and_device
from kfcnet.training.build import build_ops, check_shares

FILE = "scaling.json"
TURNS = 3
COUNTS = tuple(2**power for power in range(7))
"""Numbers of processes of the model."""

MEASURED = 1, 2
"""Numbers of processes that are started."""

ENOUGH = 0.9
"""Processes wait by polling: on a machine that does nothing else their cores work all the time."""

ASSUMPTIONS = (
    "every process has one core to itself and is as fast as the one that was measured, which does "
    "its share of the work alone",
    "all wait for the process that inverts the most expensive layer, and for nothing else",
    "a message takes as long between any two processes as between two of this machine: latency "
    "{latency:.3g} microseconds, {rate:.3g} GB/s, fitted to sums over two processes",
    "a sum over R processes takes the lesser of 2 (R - 1) (a + n b / R) and 2 ceil(log2 R) a + "
    "2 n b, for a latency a and n bytes at b seconds each; a broadcast, of inverses, the lesser of "
    "a tree's time and a ring's",
    "nothing is computed while messages are under way",
    "as many updates are needed as with one process: the steps of R processes are the same up to "
    "rounding",
)


class Method(NamedTuple):
    """What a curve of the figure is made of.

    run: one of the final runs; updates: to the error, a Value, a bound if it was not reached;
    measured, modelled: {number of processes: seconds of an update}; on_cores: the least share of
    the measured time in which each process had a core.
    """

    run: object
    updates: Value
    measured: dict
    modelled: dict
    on_cores: float


class Scaling(NamedTuple):
    """methods: {curve: Method}; error: as a fraction; cost: a MessageCost; missing: names of the
    methods that have runs but were not measured with their settings.
    """

    methods: dict
    error: float
    cost: object
    missing: tuple = ()


def obstacle(plan):
    """Why updates cannot be measured here, or None."""
    if plan.device != "cpu":
        return "updates that processes share are measured on a CPU only: --device cpu"
    if len(cores()) < max(MEASURED):
        return "two processes need two cores: they wait by polling"
    try:
        processes.mpiexec()
    except RanksError as error:
        return str(error)
    return None


def measure_missing(plan, progress, out, places):
    """Measure the updates of the figure's curves that have runs and are not in FILE yet, or are
    there with other settings; of all of them where FILE is of another machine.

    Writes FILE to the folder `out` after each curve; one of another machine is replaced by a whole
    one only. Nothing else should run on the machine.
    Returns {"scaling": reason} where it cannot be measured, else {}.
    """
    record = read(out)
    is_of_another = bool(record) and machine_of(record["device"]) != _this_machine(plan)
    there = {} if is_of_another else record.get("curves", {})
    configs = costs.configured(plan, progress, plan.shows("scaling"))
    done = costs.current(there, configs)
    configs = {name: config for name, config in configs.items() if name not in done}
    if not configs:
        return {}
    if reason := obstacle(plan):
        return {"scaling": reason}
    say(f"measuring updates of {', '.join(configs)} over processes; nothing else should run")
    for name, config in configs.items():
        try:
            there = {**there, name: {**measure(config, places), "work": work_key(config)}}
        except (data.DataError, RanksError, OSError) as error:  # OSError: of a temporary folder
            return {"scaling": str(error)}
        device = build_ops(config).describe()
        if not is_of_another or there.keys() >= configs.keys():
            write_json(out / FILE, {"device": device, "turns": TURNS, "curves": there})
    return {}


def _this_machine(plan):
    config = plan.configure(next(iter(plan.curves.values())))
    return machine_of(build_ops(config, "cpu").describe())


def measure(config, places):
    """What FILE has of a curve: {"batch", "sums": of two processes, [floats, seconds] pairs,
    "measured": {R: seconds of an update}, "on cores": {R: share of that time in which each had a
    core}, "local": {R: {"seconds": of what one of R computes, "messages": [kind, bytes, how
    many]}}}.

    Raises DataError, and RanksError where processes cannot be started.
    """
    shape = data.load(placed(config.data, places)).mean.shape
    config = _at_rest(config)
    counts = [count for count in COUNTS if _is_shared(config, count)]
    # What processes cannot do is known before the long part.
    started = {count: _started(count, config, shape) for count in MEASURED}
    local = {count: OwnWork(config, count, shape) for count in counts}
    for turn in range(1 + TURNS):
        for work in local.values():
            work.turn()
            if not turn:
                work.seconds.clear()  # of the first one
    steps = {count: [run["steps"]["update"] for run in runs] for count, runs in started.items()}
    return {
        "batch": config.optimizer.batch_size,
        "sums": [
            [floats, median(run["sums"][place][1] for run in started[2])]
            for place, floats in enumerate(processes.SIZES)
        ],
        "measured": {
            count: median(each["milliseconds"] for each in steps[count]) / 1e3 for count in steps
        },
        "on cores": {
            count: median(each["cpu"] / (count * each["milliseconds"]) for each in steps[count])
            for count in steps
        },
        "local": {
            count: {"seconds": median(work.seconds), "messages": work.messages()}
            for count, work in local.items()
        },
    }


def _at_rest(config):
    """The Config with steps so short that random images cannot make them diverge; an update costs
    the same.
    """
    optimizer = config.optimizer.model_copy(update={"learning_rate": 1e-9})
    return config.model_copy(update={"optimizer": optimizer})


def _is_shared(config, count):
    """Whether so many processes can share a mini-batch of a configuration."""
    try:
        check_shares(config.optimizer, count)
    except ConfigError:
        return False
    return True


def _started(count, config, shape):
    """What `count` processes of one thread measure, a dictionary a turn."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "update.yaml")
        path.write_text(dump_config(config), encoding="utf-8")
        settings = {
            "native": config.ops.native,
            "shards": 1,
            "configs": {"update": str(path)},
            "input_shape": list(shape),
        }
        return [processes.started(count, settings) for _ in range(TURNS)]


def read(out):
    """The contents of FILE; {} where nothing was measured. Raises RecordError."""
    path = out / FILE
    return read_json(path) if path.exists() else {}


def found(plan, progress, out):
    """The Scaling of the curves that have runs and were measured with the settings of these; None
    without any.
    """
    record, methods, missing = read(out), {}, []
    if not record:
        return None
    configs = costs.configured(plan, progress, plan.shows("scaling"))
    measured = costs.current(record["curves"], configs)
    cost = fitted([pair for curve in record["curves"].values() for pair in curve["sums"]])
    for name in configs:
        runs = progress[name].runs()
        if name not in measured:
            missing.append(method(runs[0]))
            continue
        curve = measured[name]
        # A run under way has no number of updates yet, only a bound.
        under_way = progress[name].under_way
        ended = [run for run in runs if run.config["seed"] not in under_way] or runs
        updates = [reached(run, "train_error", plan.errors.updates, "updates") for run in ended]
        methods[name] = Method(
            runs[0]._replace(clock=record["device"]),
            middle(updates),
            {int(count): seconds for count, seconds in curve["measured"].items()},
            {
                int(count): each["seconds"] + cost.of(each["messages"], int(count))
                for count, each in curve["local"].items()
            },
            min(curve["on cores"].values()),
        )
    return Scaling(methods, plan.errors.updates, cost, tuple(missing)) if methods else None


def draw(scaling):
    """A Figure of a Scaling: what was measured on the left, the model on the right."""
    figure = Figure(figsize=(7.2, 4.6))
    panels = figure.subplots(1, 2, sharey=True, width_ratios=(1, 2.4))
    for number, each in enumerate(scaling.methods.values()):
        if not each.updates.is_known:
            continue
        look = curves.look_of(number)
        for axes, seconds, line in (
            (panels[0], each.measured, dict(linestyle="-")),
            (panels[1], each.modelled, dict(linestyle="--", markerfacecolor="white")),
        ):
            times = [each.updates.number * value for value in seconds.values()]
            label = method(each.run) if axes is panels[0] else "_"
            axes.plot(list(seconds), times, label=label, **look, **line)
    for axes, title, counts in zip(
        panels, ("(a) measured", "(b) modelled"), (MEASURED, COUNTS), strict=True
    ):
        axes.set(title=title, xlabel="processes of one thread", xscale="log", yscale="log")
        axes.xaxis.set_major_locator(FixedLocator(counts))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.set_xlim(counts[0] / 1.2, counts[-1] * 1.2)
    panels[0].set_ylabel(f"seconds to {scaling.error:.0%} training error")
    if panels[0].lines:
        panels[1].legend(handles=panels[0].lines, loc="upper right")
    run = next(iter(scaling.methods.values())).run
    add_title(figure, f"{data_set(run)}, {network_and_device(run)}")
    notes = [*_notes(scaling), "The model assumes:"]
    notes += [f"- {text}" for text in _assumptions(scaling)]
    figure.supxlabel("\n".join(_wrapped(notes)), fontsize=6, ha="left", x=0.02)
    return figure


def _wrapped(lines, width=140):
    return [part for line in lines for part in textwrap.wrap(line, width, subsequent_indent="  ")]


def _assumptions(scaling):
    numbers = {"latency": 1e6 * scaling.cost.latency}
    numbers["rate"] = 1e-9 / scaling.cost.per_byte if scaling.cost.per_byte else float("inf")
    return [text.format(**numbers) if "{latency" in text else text for text in ASSUMPTIONS]


def _notes(scaling):
    """Sentences on methods that are not drawn, ends of curves, and a busy machine."""
    methods = scaling.methods.values()
    notes = [
        f"{method(each.run)} {_short_of(each.updates, scaling.error)} and is not drawn."
        for each in methods
        if not each.updates.is_known
    ]
    notes += [f"{name} is not measured yet and is not drawn." for name in scaling.missing]
    if any(max(each.modelled) < COUNTS[-1] for each in methods if each.updates.is_known):
        notes.append(
            "A curve ends where its mini-batch, or the part of it for statistics or the clip, "
            "cannot be shared equally."
        )
    if (share := min(each.on_cores for each in methods)) < ENOUGH:
        notes.append(
            f"The processes had their cores in {share:.0%} of the measured time only: something "
            "else ran, and the times of (a) are too long."
        )
    return notes


def _short_of(updates, error):
    if updates.is_bound:
        return f"did not come to {error:.0%} training error within {updates.number:.0f} updates"
    return f"diverged before it came to {error:.0%} training error"


def page(scaling):
    """What stands below the figure, in Markdown."""
    lines = [
        [
            "method",
            f"updates to {scaling.error:.0%}",
            *(f"ms an update, {count} measured" for count in MEASURED),
            "modelled over measured, 2",
            *(f"seconds, {count} modelled" for count in (1, 8, 64)),
            "gain at best, modelled",
        ],
        ["---", *["---:"] * 8],
    ]
    for each in scaling.methods.values():
        is_there = each.updates.is_known
        fastest = min(each.modelled, key=each.modelled.get)
        gain = Value(each.modelled[1] / each.modelled[fastest])
        lines.append(
            [
                method(each.run),
                str(each.updates),
                *(_number(each.measured, count, 1e3) for count in MEASURED),
                _number(each.modelled, 2, 1 / each.measured[2]) if 2 in each.measured else "",
                *(
                    _number(each.modelled, count, each.updates.number) if is_there else ""
                    for count in (1, 8, 64)
                ),
                f"{gain} on {fastest}",
            ]
        )
    return "\n\n".join(
        [
            "Processes of one thread each share every mini-batch (`docs/scaling.md`). What is "
            "measured and what is modelled stand apart.",
            *_notes(scaling),
            "The model assumes:\n\n"
            + ";\n".join(f"- {text}" for text in _assumptions(scaling))
            + ".",
            markdown_table(lines),
        ]
    )


def _number(seconds, count, factor):
    """{count: seconds}[count] times a factor as a text; "" where the count is not there."""
    return str(Value(factor * seconds[count])) if count in seconds else ""
