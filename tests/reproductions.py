"""A small plan on the digits, and its runs, that tests of a reproduction share."""

from kfcnet.reproduce import work
from kfcnet.reproduce.plan import Curve, Errors, FigurePlan, Measurement, PanelPlan, Plan
from kfcnet.runs.files import write_json
from kfcnet.runs.folder import portable_config
from kfcnet.runs.index import RunIndex
from kfcnet.runs.metrics import COLUMNS, PHASES, append_metrics
from kfcnet.training.tuning import Stage

CONFIG = """
data: {name: digits, input_scale: 16}
network: [{layer: conv, filters: 2, kernel: 3}, {layer: relu}, {layer: dense, units: 10}]
optimizer: {name: sgd, learning_rate: 0.05, batch_size: 120, averaging_timescale: 500}
evaluation: {every: 0.5}
epochs: 1
ops: {native: "off"}
"""


def small_plan(folder):
    """Two curves of twelve updates an epoch, one that takes the other's learning rate, no more."""
    (folder / "config.yaml").write_text(CONFIG)
    config = str(folder / "config.yaml")
    tuned = dict(rates=(0.003, 0.3, 0.03), stages=(Stage(0.5, None), Stage(1, 2)), epochs=1.5)
    curves = [
        Curve("digits_kfc", config, **tuned, seeds=2),
        Curve("digits_sgd", config, ("optimizer.momentum=0.5",), **tuned, seeds=2),
        Curve("tiny_max", config, ("data.input_scale=8",), rate_of="digits_sgd", seeds=1),
    ]
    panels = (PanelPlan("a", "loss", ("digits_kfc", "digits_sgd")),)
    return Plan(
        {curve.name: curve for curve in curves},
        {
            "fig1": FigurePlan("Curves", panels),
            "sensitivity": FigurePlan("Rates", panels, "tuning"),
            "assumptions": FigurePlan("Assumptions", kind="assumptions"),
        },
        (Measurement("tiny_max", "digits", "max", 50, 2),),
        "digits",
        "UCI digits",
        Errors(0.5, 0.5, 0.5),
        "cpu",
    )


def do(plan, out, figure="fig1", places=()):
    """Work at a figure, as `reproduce` does; the failures."""
    return work.train_missing(plan, figure, RunIndex(out), dict(places))


def write_run(
    index, plan, name, settings, errors, seed=0, pace=60.0, state="finished", clipped=None
):
    """A run of a curve that nobody trained, a row every half epoch with one of `errors`.

    clipped: {row: share of clipped updates}.
    """
    config = plan.configure(plan.curves[name], settings, seed, 1.0)
    folder = index.new_folder(config, name)
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(portable_config(config))
    write_json(
        folder / "run.json",
        {
            "device": {"device": "cpu"},
            "outcome": {"state": state},
            "commit": "0123456789ab-dirty",
            "data": {
                "train_examples": 1440,
                "test_examples": 357,
                "sha256": 64 * "f",
                "files": [{"name": "digits.bin", "published": False}],
            },
        },
    )
    (folder / "metrics.csv").write_text(",".join(COLUMNS) + "\n")
    for row, error in enumerate(errors):
        append_metrics(
            folder / "metrics.csv",
            dict.fromkeys(COLUMNS, 0.01)
            | {
                "iteration": 6 * row,
                "examples": 720 * row,
                "epoch": row / 2,
                "seconds": pace * row,
                **{f"seconds_{phase}": 0.0 for phase in PHASES},
                "seconds_gradient": pace * row / 2,
                "train_error": error,
                "test_error": error + 0.1,
                "train_loss": error,
                "test_loss": error,
                **({"clipped": clipped[row]} if clipped else {}),
            },
        )
    index.add(folder)
    return folder


def rate(value):
    return {"optimizer.learning_rate": value}
