"""What an epoch costs: measured for all curves in turns, and the same for every run of a curve.

Runs may share a machine, a machine is not equally fast at all hours, and one reproduction may have
runs of several. So its minutes are epochs times the cost of an epoch, and that is measured apart
from the runs, for all curves on one machine.
"""

from statistics import median

from kfcnet import data
from kfcnet.reproduce.places import placed, say
from kfcnet.runs.files import read_json, write_json
from kfcnet.runs.identity import work_key
from kfcnet.training.build import build_ops, whole_periods
from kfcnet.training.timed import TimedTraining

FILE = "costs.json"
TURNS = 7
EXAMPLES, EXAMPLES_OF_AN_ESTIMATE = 2560, 512
"""At least so many are trained on in a turn, and every kind of update takes its share of it."""


def measure_missing(plan, progress, out, places):
    """Measure the `timed` curves that have runs, all again if one is missing or has other settings
    by now.

    Writes FILE to the folder `out`. Nothing else should run on the machine. Returns {"costs":
    reason} where the data are missing, else {}.
    """
    configs = configured(plan, progress, timed(plan))
    if current(read(out), configs).keys() == configs.keys():
        return {}
    say(f"measuring what an epoch of {', '.join(configs)} costs; nothing else should run")
    try:
        costs = measure(configs, places)
    except data.DataError as error:
        return {"costs": str(error)}
    device = build_ops(next(iter(configs.values()))).describe()
    write_json(out / FILE, {"device": device, "turns": TURNS, "curves": costs})
    return {}


def timed(plan):
    """Names of the curves that a figure of the plan draws over time, and of the one with small
    mini-batches on CIFAR-10: footnote 3 gives its test error after five minutes.
    """
    drawn = (
        name
        for figure in plan.figures.values()
        for panel in figure.panels
        if panel.x == "seconds" and figure.kind == "runs"
        for name in panel.curves
    )
    small = {"cifar_kfc_small"} & plan.curves.keys()
    return list(dict.fromkeys([*drawn, *small]))


def measure(configs, places):
    """{name: {"seconds": of an epoch, one a turn; "phases": {phase: share of the time}; "work": the
    work_key of its Config}}.
    """
    datasets = {config.data: None for config in configs.values()}
    for each in datasets:
        datasets[each] = data.load(placed(each, places))
    contestants = {
        name: _Contestant(config, datasets[config.data]) for name, config in configs.items()
    }
    # What is compiled and captured in two turns is not timed.
    for _ in range(2):
        for contestant in contestants.values():
            contestant.turn()
    for contestant in contestants.values():
        contestant.begin()
    for _ in range(TURNS):
        for contestant in contestants.values():
            contestant.turn()
    return {
        name: {**contestant.result(), "work": work_key(configs[name])}
        for name, contestant in contestants.items()
    }


def configured(plan, progress, names):
    """{name: Config} of the final runs of curves, without those that have none."""
    return {
        name: plan.configure(progress[name].curve, progress[name].settings)
        for name in names
        if name in progress and progress[name].finals
    }


def current(records, configs):
    """Of records, {curve: what was measured of it}, those that were measured with its Config."""
    return {
        name: record
        for name, record in records.items()
        if name in configs and is_of(record, configs[name])
    }


def is_of(record, config):
    """Whether what was measured of a curve was measured with a Config; older records do not say."""
    return record.get("work", work_key(config)) == work_key(config)


def quick_cost(config, places):
    """Seconds of an epoch, from one turn of a few updates. Raises DataError."""
    dataset = data.load(placed(config.data, places))
    contestant = _Contestant(config, dataset, EXAMPLES_OF_AN_ESTIMATE)
    is_captured = contestant.training.ops.name == "cuda"  # in the second turn
    for _ in range(3 if is_captured else 2):
        contestant.turn()
    return contestant.seconds[-1] * contestant.turns_of_an_epoch


class _Contestant:
    """A training that takes `at_least` so many examples when it is its turn."""

    def __init__(self, config, dataset, at_least=EXAMPLES):
        self.training = TimedTraining(config, dataset)
        size = self.training.loader.size
        self.updates = whole_periods(config, at_least / size)
        self.turns_of_an_epoch = len(dataset.train_images) / (self.updates * size)
        self.seconds = []

    def begin(self):
        """Forget what has been measured so far."""
        self.seconds.clear()
        self.before = self.training.phases()

    def turn(self):
        self.seconds.append(self.training.take(self.updates))

    def result(self):
        after, whole = self.training.phases(), sum(self.seconds)
        return {
            "seconds": [each * self.turns_of_an_epoch for each in self.seconds],
            "phases": {name: (after[name] - self.before[name]) / whole for name in after},
        }


def read(out):
    """{curve: what `measure` found, and the "device"}; empty where nothing was measured. Raises
    RecordError.
    """
    path = out / FILE
    if not path.exists():
        return {}
    record = read_json(path)
    return {name: cost | {"device": record["device"]} for name, cost in record["curves"].items()}


def with_cost(run, cost):
    """A Run whose seconds are epochs times the median cost of an epoch, a value of `read`."""
    seconds = run.metrics["epoch"] * median(cost["seconds"])
    phases = {f"seconds_{name}": share * seconds for name, share in cost["phases"].items()}
    return run._replace(metrics={**run.metrics, "seconds": seconds, **phases}, clock=cost["device"])
