"""The paper's look at its assumptions (section 5.1, appendix D.1): measured once, and recorded.

A record is a checked HDF5 file, `assumptions/CURVE.h5`: the correlations of every convolution
layer, of small layers also the distances from the exact Fisher block, the configuration of the run
they belong to, and what they were computed with.
"""

import json
from pathlib import Path

import numpy as np

from kfcnet import data
from kfcnet.config import dump_config, parse_config
from kfcnet.curvature.assumptions import correlations, distances, fisher_blocks
from kfcnet.reproduce.work import placed, say
from kfcnet.runs.checkpoint import load_checkpoint, save_checkpoint
from kfcnet.runs.files import WriteError
from kfcnet.runs.identity import run_key
from kfcnet.runs.provenance import describe_program
from kfcnet.training.evaluation import load_run

DERIVATIVES, ACTIVATIONS = "derivatives", "activations"


def measure_networks(plan, steps, out, places):
    """Measure the trained networks of a Plan that have no record yet; {network: why} it failed.

    steps: {name: Progress}. A network is measured in the first seed that has come to its end and
    whose parameters are still there: where only records are kept, that is a later one.
    """
    failures = {}
    for network in plan.networks:
        ready = [
            (config, status)
            for config, status in _finals(plan, steps, network)
            if status.is_over(config) and status.can_go_on() and not status.failed
        ]
        if not ready or read(plan, steps, out, network):
            continue
        config, status = ready[0]
        say(f"{network.curve}: correlations on {network.images} images")
        try:
            record = measure(plan, network, status, config, places)
            save_checkpoint(record_path(out, network), record)
        except WriteError:
            raise
        except Exception as error:
            failures[f"correlations of {network.curve}"] = f"{type(error).__name__}: {error}"
    return failures


def measure(plan, network, status, config, places):
    """The record of the network that a run in a folder ended with."""
    run = load_run(status.folder, plan.device)
    dataset = data.load(placed(config.data, places))
    run.check_data(dataset)
    examples = run.examples(dataset.train_images, dataset.train_labels)
    inputs = examples.batch(np.arange(network.images)).inputs
    found = correlations(run.network, run.loss, inputs, network.radius)
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
    if network.layer:
        blocks = fisher_blocks(run.network, run.loss, inputs, network.layer)
        record["distances"] = distances(blocks)
    return record


def read(plan, steps, out, network):
    """The record of a network as its run stands; None if there is none.

    Raises CheckpointError for a damaged record.
    """
    path = record_path(out, network)
    if not path.exists():
        return None
    record = load_checkpoint(path)
    current = [
        (run_key(config), status.iteration) for config, status in _finals(plan, steps, network)
    ]
    return record if (key_of(record), record["steps"]) in current else None


def key_of(record):
    """The run_key of the run that a record belongs to, with the defaults of today."""
    return run_key(parse_config(record["config"]))


def record_path(out, network):
    return Path(out) / "assumptions" / f"{network.curve}.h5"


def _finals(plan, steps, network):
    """[(Config, RunStatus), ...] of the final runs that there are of a network's curve, by seed."""
    curve = plan.curves.get(network.curve)
    if curve is None:
        return []
    epochs, step = plan.final_epochs(curve), steps[curve.name]
    return [
        (plan.configure(curve, step.settings, seed, epochs), status)
        for seed, status in step.finals.items()
    ]


def by_distance(spatial):
    """Mean size (R + 1,) of the correlations of two locations that are 0 to R pixels apart, along
    rows and along columns; spatial: (maps, 2R + 1, 2R + 1).
    """
    R = spatial.shape[1] // 2
    lines = np.abs(np.concatenate([spatial[:, R, R:], spatial[:, R:, R]]))
    return np.array([_mean(sizes) for sizes in lines.T])


def neighbours(record):
    """{"derivatives": mean |correlation| of neighbours in all layers, "activations": likewise}."""
    layers = record["correlations"].values()
    return {
        what: _mean(np.array([by_distance(layer[what])[1] for layer in layers]))
        for what in (DERIVATIVES, ACTIVATIONS)
    }


def _mean(values):
    """Of those that there are; NaN without any."""
    finite = values[np.isfinite(values)]
    return float(finite.mean()) if finite.size else np.nan
