"""KFC-pre's final objective for every learning rate and damping: what docs/settings.md shows.

Small networks on small data, trained for a while with the settings that `kfcnet.fit` chooses, but
for the rate, the damping and the clip. `measure` leaves rows, `draw` and `table` read them.
"""

import csv
import itertools
import json
import time
from collections import defaultdict
from collections.abc import Iterable, Mapping
from pathlib import Path
from statistics import mean, median
from types import MappingProxyType

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter

from kfcnet import data
from kfcnet.batches import Loader
from kfcnet.config import load_config, parse_config
from kfcnet.figures.curves import COLOURS, save_figure
from kfcnet.figures.paper import LEARNING_RATES
from kfcnet.ops.cpu.blas import one_blas_thread
from kfcnet.optimizers.base import NUMBERS_FAIL
from kfcnet.reproduce.places import placed
from kfcnet.runs.files import append_line, make_folder, markdown_table, write_csv
from kfcnet.training.build import build_for, build_ops, examples_of, resolved
from kfcnet.training.evaluation import evaluate
from kfcnet.training.fit import settings_for

DAMPINGS = ("auto", 0.001, 0.01, 0.1, 0.3)
CLIPS = (0.3, 0.003)  # as published, and counting momentum; `auto` goes with the first
SETS = {"digits": 15, "three": 20, "cifar": 12, "cifar_whole": 3, "svhn": 6}  # epochs
TITLES = {
    "digits": "UCI digits 8x8",
    "three": "three digits, enlarged to 28x28",
    "cifar": "CIFAR-10, 2,000 images",
    "cifar_whole": "CIFAR-10, 50,000 images",
    "svhn": "SVHN, 8,001 digits",
}
SVHN_DIGITS = 8001
SLOW = {"cifar_whole": 0.5, "svhn": 0.5}
"""The share of its first loss above which a run counts as failed, where training is too short for
a tenth.
"""
FIELDS = (
    "data", "rate", "damping", "clip", "seed", "start", "objective", "train_loss", "train_error",
    "test_error", "seconds",
)  # fmt: skip


def _conv(filters, kernel, **settings):
    return [{"layer": "conv", "filters": filters, "kernel": kernel, **settings}, {"layer": "relu"}]


NETWORKS = {
    "digits": [
        *_conv(16, 3, padding=1),
        {"layer": "max_pool", "size": 3, "stride": 2},
        *_conv(16, 3, padding=1),
        {"layer": "dense"},
    ],
    "three": [
        *_conv(8, 5, stride=2),
        {"layer": "max_pool", "size": 2, "stride": 2},
        *_conv(16, 3),
        {"layer": "dense"},
    ],
    "cifar": [
        *_conv(16, 5, stride=2, padding=2),
        {"layer": "max_pool", "size": 3, "stride": 2},
        *_conv(16, 3, padding=1),
        {"layer": "dense"},
    ],
}


NETWORKS["cifar_whole"] = NETWORKS["svhn"] = NETWORKS["cifar"]


def data_set(name: str, places: Mapping[str, Path] = MappingProxyType({})) -> data.Dataset:
    """One of SETS; places: {"cifar10" or "svhn": where its files are}.

    Raises DataError, also for another part of SVHN than that of the record.
    """
    if name == "svhn":
        whole = data.load(placed(load_config("svhn_kfc", ["data.extra=false"]).data, places))
        if len(whole.train_labels) != SVHN_DIGITS:
            raise data.DataError(
                f"svhn: the record is of {SVHN_DIGITS:,} training digits, the first of the "
                f"published test part; here are {len(whole.train_labels):,}"
            )
        return whole
    if name in ("cifar", "cifar_whole"):
        whole = data.load(placed(load_config("cifar_kfc").data, places))
        if name == "cifar_whole":
            return whole
        return data.from_arrays(
            whole.train_images[:2000],
            whole.train_labels[:2000],
            whole.test_images[:1000],
            whole.test_labels[:1000],
        )
    digits = data.load(load_config("digits_kfc").data)
    parts = [(digits.train_images, digits.train_labels), (digits.test_images, digits.test_labels)]
    if name == "three":
        parts = [_three_enlarged(*part) for part in parts]
    return data.from_arrays(*parts[0], *parts[1])


def _three_enlarged(images, labels):
    """The digits 0, 1 and 2, each pixel 4 x 4 of them, two rows at every border cut off."""
    images, labels = images[labels < 3], labels[labels < 3]
    return images.repeat(4, axis=1).repeat(4, axis=2)[:, 2:30, 2:30], labels


@one_blas_thread
def train_once(dataset, name, rate, damping, clip, seed) -> dict:
    """A row of FIELDS; the objective is that of the averaged parameters, NaN where a run failed."""
    examples = len(dataset.train_labels)
    given = {"name": "kfc_pre", "learning_rate": rate, "damping": damping, "clip": clip}
    document = {
        "data": {"name": "arrays"},
        "network": NETWORKS[name],
        "optimizer": settings_for(given, examples),
        "epochs": SETS[name],
        "seed": seed,
        "device": "cpu",
        "ops": {"shards": 1},
    }
    config = resolved(parse_config(json.dumps(document)), dataset)
    ops = build_ops(config)
    optimizer = build_for(dataset, config, ops)
    network, loss, batch_size = optimizer.network, optimizer.loss, config.optimizer.batch_size
    train, test = (examples_of(dataset, part, config, ops) for part in ("train", "test"))
    start, _ = evaluate(network, loss, train)
    loader, steps = Loader(train, batch_size, seed), SETS[name] * examples // batch_size
    row = dict.fromkeys(FIELDS, float("nan"))
    row |= dict(data=name, rate=rate, damping=damping, clip=clip, seed=seed, start=start)
    begun = time.process_time()
    try:
        with np.errstate(all="ignore"):
            optimizer.prepare(loader.batch(step) for step in range(-(-examples // batch_size)))
            for step in range(steps):
                optimizer.step(loader.batch(step))
            row["seconds"] = time.process_time() - begun
            with network.using(optimizer.average):
                row["train_loss"], row["train_error"] = evaluate(network, loss, train)
                _, row["test_error"] = evaluate(network, loss, test)
            row["objective"] = row["train_loss"] + optimizer.penalty(optimizer.average)
    except NUMBERS_FAIL:
        pass
    return row


def measure(
    path: Path,
    sets: Iterable[str] = SETS,
    seeds: Iterable[int] = (0, 1, 2),
    dampings: Iterable = DAMPINGS,
    clips: Iterable[float] = CLIPS,
    rates: Iterable[float] = LEARNING_RATES,
    places: Mapping[str, Path] = MappingProxyType({}),
) -> None:
    """Train what `path`, a CSV file of FIELDS, does not have yet, and add its rows.

    places: as for `data_set`. A row that a kill has cut short is trained again. Raises WriteError
    where it cannot be written.
    """
    rows = read(path) if path.exists() else []
    done = {_key(row) for row in rows}
    make_folder(path.parent)
    write_csv(path, [FIELDS, *(_shown(row) for row in rows)])
    for name in sets:
        dataset = data_set(name, places)
        for seed, damping, clip, rate in _points(seeds, dampings, clips, rates):
            if _key(dict(data=name, rate=rate, damping=damping, clip=clip, seed=seed)) not in done:
                row = train_once(dataset, name, rate, damping, clip, seed)
                append_line(path, ",".join(_shown(row)))


def _points(seeds, dampings, clips, rates):
    for seed, damping, clip, rate in itertools.product(seeds, dampings, clips, rates):
        if damping != "auto" or clip == CLIPS[0]:
            yield seed, damping, clip, rate


def _key(row):
    numbers = (float(row[key]) for key in ("rate", "clip", "seed"))
    return row["data"], str(row["damping"]), *numbers


def read(path: Path) -> list[dict]:
    """The whole rows of a file of results; all but data, candidate and damping are numbers."""
    words = ("data", "candidate", "damping")
    with open(path, newline="", encoding="utf-8") as file:
        whole = [line for line in file if line.endswith("\n")]
    rows = csv.DictReader(whole)
    return [{key: row[key] if key in words else float(row[key]) for key in row} for row in rows]


def _shown(row):
    """The cells of a row."""
    values = (row[key] for key in FIELDS)
    return [f"{value:.6g}" if type(value) is float else str(value) for value in values]


def worst(rows: list[dict]) -> dict[tuple, dict[float, float]]:
    """{(data, damping, clip): {rate: the highest objective of all seeds, infinite where one
    failed}}.
    """
    found: dict[tuple, dict[float, float]] = defaultdict(dict)
    for row in rows:
        objective = row["objective"] if np.isfinite(row["objective"]) else np.inf
        line = found[row["data"], row["damping"], row["clip"]]
        line[row["rate"]] = max(objective, line.get(row["rate"], 0.0))
    return dict(found)


def failures(rows: Iterable[dict]) -> tuple[int, int]:
    """(runs that are not finite or end above a share of their first loss, runs): rates >= 0.003.

    At lower rates a run may be slow without being wrong.
    """
    fast = [row for row in rows if row["rate"] >= 0.003]
    ends = ((row["train_loss"], SLOW.get(row["data"], 0.1) * row["start"]) for row in fast)
    return sum(not end < most for end, most in ends), len(fast)


def best_fixed(rows: list[dict], quantity: str) -> dict | None:
    """{rate, damping, clip, quantity}, the median over seeds, of the fixed settings whose runs are
    all finite and whose median is lowest; None where no setting has only such runs.
    """
    values = defaultdict(list)
    for row in rows:
        if row["damping"] != "auto":
            values[row["rate"], row["damping"], row["clip"]].append(row[quantity])
    medians = {key: median(found) for key, found in values.items() if np.isfinite(found).all()}
    if not medians:
        return None
    key = min(medians, key=medians.get)
    return dict(zip(("rate", "damping", "clip"), key, strict=True)) | {quantity: medians[key]}


def table(rows: list[dict], rate: float = 0.03) -> str:
    """Markdown: `damping: auto` at one rate beside the best fixed settings of each data set."""
    auto_at = f"`damping: auto`, rate {rate:g}"
    lines = [
        ["data", "at the end", auto_at, "best fixed", "its rate, damping, clip"],
        ["---", "---", "---:", "---:", "---:"],
    ]
    for name in SETS:
        own = [row for row in rows if row["data"] == name]
        auto = [row for row in own if row["damping"] == "auto" and row["rate"] == rate]
        for quantity, title in (("train_loss", "training loss"), ("objective", "objective")):
            if auto and (best := best_fixed(own, quantity)):
                numbers = (median(row[quantity] for row in auto), best[quantity])
                where = f"{best['rate']:g}, {best['damping']}, {best['clip']:g}"
                shown = (f"{number:.3g}" for number in numbers)
                lines.append([TITLES[name], title, *shown, where])
    return markdown_table(lines)


def failure_table(rows: list[dict]) -> str:
    """Markdown: how many runs fail with each damping and clip on each data set."""
    groups = defaultdict(list)
    for row in rows:
        clip = "" if row["damping"] == "auto" else f", {row['clip']:g}"
        groups[row["damping"] + clip, row["data"]].append(row)
    names = [name for name in SETS if any(row["data"] == name for row in rows)]
    lines = [
        ["damping, clip", *(TITLES[name] for name in names)],
        ["---", *("---:" for _ in names)],
    ]
    for setting in sorted({setting for setting, _ in groups}):
        counts = [failures(groups[setting, name]) for name in names]
        cells = [f"{failed} of {count}" if count else "not run" for failed, count in counts]
        lines.append([setting, *cells])
    return markdown_table(lines)


def candidate_table(rows: list[dict], rate: float = 0.03, seeds: tuple = (0, 1)) -> str:
    """Markdown: what was tried for `auto`, the mean over the same seeds on the small sets.

    rows: of candidates.csv. A candidate is left out where one of the sets or seeds is missing.
    """
    names = [name for name in SETS if name not in SLOW]
    values = {}
    for row in rows:
        if row["rate"] == rate and row["seed"] in seeds:
            setting = row["candidate"], row["damping"]
            values.setdefault(setting, {})[row["data"], row["seed"]] = row
    titles = [f"{TITLES[name]}: training loss, objective" for name in names]
    lines = [["candidate", "damping", *titles], ["---", *("---:" for _ in range(1 + len(titles)))]]
    for (candidate, damping), found in sorted(values.items()):
        if all((name, seed) in found for name in names for seed in seeds):
            cells = []
            for own in ([found[name, seed] for seed in seeds] for name in names):
                means = (mean(row[key] for row in own) for key in ("train_loss", "objective"))
                cells.append(", ".join(f"{value:.3g}" for value in means))
            lines.append([candidate, damping, *cells])
    return markdown_table(lines)


def draw(rows: list[dict], out: Path) -> None:
    """A panel for each data set: the worst objective of all seeds against the learning rate."""
    save_figure(lambda: _panels(rows), out)


def _panels(rows):
    names = [name for name in SETS if any(row["data"] == name for row in rows)]
    columns = min(3, len(names))
    lines_of_panels = -(-len(names) // columns)
    figure = Figure(figsize=(4 * columns, 3.5 * lines_of_panels), layout="constrained")
    lines, top = worst(rows), 10.0
    colours = dict(zip(map(str, DAMPINGS), ("black", *COLOURS), strict=False))
    for number, name in enumerate(names, 1):
        axes = figure.add_subplot(lines_of_panels, columns, number)
        for (data_name, damping, clip), line in sorted(lines.items(), key=str):
            if data_name != name:
                continue
            rates = sorted(line)
            label = "auto" if damping == "auto" else f"{damping}, clip {clip:g}"
            axes.loglog(
                rates,
                [min(line[rate], top) for rate in rates],
                color=colours[damping],
                linestyle="-" if clip == CLIPS[0] else ":",
                linewidth=3 if damping == "auto" else 1,
                marker="." if damping == "auto" else None,
                label=label,
            )
        axes.set(title=TITLES[name], xlabel="learning rate", ylim=(None, top * 1.2))
        axes.yaxis.set_minor_formatter(NullFormatter())
        if number % columns == 1 % columns:
            axes.set_ylabel("objective at the end,\nhighest of all seeds")
    figure.legend(*figure.axes[0].get_legend_handles_labels(), loc="outside right", title="damping")
    return figure
