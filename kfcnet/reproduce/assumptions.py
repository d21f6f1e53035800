"""Measurements of the paper's assumptions (section 5.1, appendix D.1) in trained networks.

Each is made once and recorded in `assumptions/CURVE.h5`, an HDF5 file with a checksum: correlations
in every convolution layer, for a small layer also the distances of approximations from the exact
Fisher block, the configuration of the run, and the program, device and data.
"""

import json
from pathlib import Path

import numpy as np

from kfcnet import data
from kfcnet.config import dump_config, parse_config
from kfcnet.curvature.assumptions import correlations, distances, fisher_blocks
from kfcnet.reproduce.places import placed, say
from kfcnet.runs.checkpoint import load_checkpoint, save_checkpoint
from kfcnet.runs.files import WriteError, markdown_table
from kfcnet.runs.identity import run_key
from kfcnet.runs.provenance import describe_program
from kfcnet.training.evaluation import load_run

DERIVATIVES, ACTIVATIONS = "derivatives", "activations"


def measure_missing(plan, progress, out, places):
    """Make the Measurements of a Plan that have no record yet; {what: reason} of those that failed.

    progress: {name: CurveProgress}. The network is that of the first seed whose run is complete and
    has its checkpoint: where only records are kept, that is a later seed. Raises WriteError.
    """
    failures = {}
    for measurement in plan.measurements:
        ready = [
            (config, status)
            for config, status in _finals(plan, progress, measurement)
            if status.is_over(config) and status.can_go_on() and not status.failed
        ]
        if not ready or read(plan, progress, out, measurement):
            continue
        config, status = ready[0]
        say(f"{measurement.curve}: correlations on {measurement.images} images")
        try:
            record = measure(plan, measurement, status, config, places)
            save_checkpoint(record_path(out, measurement), record)
        except WriteError:
            raise
        except Exception as error:
            failures[f"correlations of {measurement.curve}"] = f"{type(error).__name__}: {error}"
    return failures


def measure(plan, measurement, status, config, places):
    """The record of a Measurement in the trained network of a run with a RunStatus and a Config."""
    run = load_run(status.folder, plan.device)
    dataset = data.load(placed(config.data, places))
    run.check_data(dataset)
    examples = run.examples(dataset.train_images, dataset.train_labels)
    inputs = examples.batch(np.arange(measurement.images)).inputs
    found = correlations(run.network, run.loss, inputs, measurement.radius)
    record = {
        "config": dump_config(config),
        "steps": status.iteration,
        "images": len(inputs),
        "data_sha256": dataset.provenance["sha256"],
        "device": json.dumps(run.network.ops.describe()),
        "program": json.dumps(describe_program()),
        "correlations": {
            layer: {name: np.float32(array) for name, array in values._asdict().items()}
            for layer, values in found.items()
        },
    }
    if measurement.layer:
        blocks = fisher_blocks(run.network, run.loss, inputs, measurement.layer)
        record["distances"] = distances(blocks)
    return record


def read(plan, progress, out, measurement):
    """The record of a Measurement; None without one of the run's present last update.

    Raises CheckpointError for a damaged record.
    """
    path = record_path(out, measurement)
    if not path.exists():
        return None
    record = load_checkpoint(path)
    current = [
        (run_key(config), status.iteration)
        for config, status in _finals(plan, progress, measurement)
    ]
    return record if (key_of(record), record["steps"]) in current else None


def key_of(record):
    """The run_key of the run that a record belongs to."""
    return run_key(parse_config(record["config"]))


def record_path(out, measurement):
    return Path(out) / "assumptions" / f"{measurement.curve}.h5"


def _finals(plan, progress, measurement):
    """[(Config, RunStatus), ...] of the final runs of a Measurement's curve, by seed."""
    curve = plan.curves.get(measurement.curve)
    if curve is None:
        return []
    epochs, state = plan.final_epochs(curve), progress[curve.name]
    return [
        (plan.configure(curve, state.settings, seed, epochs), status)
        for seed, status in state.finals.items()
    ]


def by_distance(spatial):
    """Mean |correlation| (R + 1,) of two locations 0 to R pixels apart in a row or a column.

    spatial: correlations by offset, (maps, 2R + 1, 2R + 1).
    """
    R = spatial.shape[1] // 2
    lines = np.abs(np.concatenate([spatial[:, R, R:], spatial[:, R:, R]]))
    return np.array([_mean(sizes) for sizes in lines.T])


def page(records):
    """What stands below the figure, in Markdown: how weak the correlations are in every layer.

    records: pairs of a Measurement and its record.
    """
    header = ["network", "layer", DERIVATIVES, ACTIVATIONS, "ratio"]
    lines = [header, ["---", "---", "---:", "---:", "---:"]]
    for measurement, record in records:
        for layer, sizes in neighbours_in(record).items():
            here, there = sizes[DERIVATIVES], sizes[ACTIVATIONS]
            numbers = [f"{value:.2f}" for value in (here, there, here / there)]
            lines.append([measurement.title, layer, *numbers])
    return (
        "KFC takes derivatives at two locations to be uncorrelated (SUD). How far that holds in a "
        "layer: the mean absolute correlation of neighbours, of the derivatives with respect to "
        "pre-activations and of the activations that the layer takes in, which for the first layer "
        "are the images. *Ratio* is the first over the second. The pictures by offset end at "
        f"{max(measurement.radius for measurement, _ in records)} pixels, or at half of the "
        "image's side where that is less.\n\n" + markdown_table(lines)
    )


def neighbours(record):
    """{"derivatives": mean |correlation| of neighbours in all layers, "activations": likewise}."""
    layers = neighbours_in(record).values()
    return {
        what: _mean(np.array([sizes[what] for sizes in layers]))
        for what in (DERIVATIVES, ACTIVATIONS)
    }


def neighbours_in(record):
    """{layer: {"derivatives": mean |correlation| of neighbours, "activations": likewise}}."""
    return {
        layer: {what: by_distance(values[what])[1] for what in (DERIVATIVES, ACTIVATIONS)}
        for layer, values in record["correlations"].items()
    }


def _mean(values):
    """The mean of the finite values; NaN without any."""
    finite = values[np.isfinite(values)]
    return float(finite.mean()) if finite.size else np.nan
