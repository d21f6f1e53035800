"""How far each curve of a plan has come, read from the folders of its runs."""

import math
from typing import NamedTuple

import numpy as np

from kfcnet.reproduce.plan import CLIP, RATE
from kfcnet.runs.metrics import read_metrics
from kfcnet.runs.read import read_run
from kfcnet.training.tuning import Point, Tuning, find_task

FINAL = "final run"
"""What a Task is for that no more is tuned with."""

CLIPPED_AFTER, CLIPPED_SHARE = 2.0, 0.5
"""The clip is the step size where, after so many epochs of tuning, more than this share is clipped;
after half of them where the tuning is shorter than twice that."""


class CurveProgress(NamedTuple):
    """How far a curve's tuning and final runs have come.

    tuning: Results of the complete stages of the learning rates, or of the dampings, best first
    within each; clip_tuning: likewise of the clips at the best rate, empty where that is not
    clipped; settings: {key: value} of the best run at a rate that is not one of the curve's `lost`,
    None before the tuning is complete or if every run diverged; finals: {seed: RunStatus} of the
    final runs; under_way: the seeds whose final run is not at its planned end; pending: Tasks that
    can be done now; epochs_left: an estimate of the epochs that are still to be trained.
    """

    curve: object
    tuning: list
    clip_tuning: list
    settings: dict | None
    finals: dict
    under_way: set
    pending: list
    epochs_left: float

    def runs(self):
        """The final Runs, read from their records, in the order of their seeds."""
        return [read_run(status.folder) for status in self.finals.values()]

    @property
    def is_complete(self):
        """Whether all final runs are at their ends."""
        return bool(self.finals) and not self.pending

    @property
    def final_stage(self):
        """The Results of the final stage of `tuning`; [] before it is complete."""
        number = len(self.curve.stages)
        return [result for result in self.tuning if result.stage == number]

    @property
    def chosen(self):
        """The learning rate, or the damping, that was chosen; None without one."""
        return (self.settings or {}).get(self.curve.tuned_key)

    @property
    def edge(self):
        """What `edge_of` says of the chosen one."""
        return edge_of(self.chosen, self.tuning, self.curve.tuned_key)

    @property
    def clip(self):
        """The clip that was chosen; None where none was tuned."""
        return (self.settings or {}).get(CLIP)


def tried_values(results, key):
    """The values of a setting among Results, from the least on."""
    return sorted({result.point.settings[key] for result in results})


def latest_stage(results):
    """Those of some Results, of complete stages, that are of the latest one."""
    return [result for result in results if result.stage == results[-1].stage]


def edge_of(chosen, results, key):
    """ "lowest" where a value is that of the last stage of Results, below which nothing was trained
    as far; "highest" where it is that of all; else "".
    """
    if chosen is None or not results:
        return ""
    if chosen == tried_values(results, key)[-1]:
        return "highest"
    return "lowest" if chosen == tried_values(latest_stage(results), key)[0] else ""


def progress_of(plan, index):
    """{name: CurveProgress} of the curves of a Plan."""
    done = {}
    for curve in sorted(plan.curves.values(), key=lambda curve: bool(curve.rate_of)):
        done[curve.name] = _progress(plan, curve, index, done.get(curve.rate_of))
    return {name: done[name] for name in plan.curves}


def _progress(plan, curve, index, tuned):
    """tuned: the CurveProgress of the curve whose learning rate this one takes; or None."""
    results, clips, settings, pending = [], [], tuned.settings if tuned else {}, []
    epochs_left = 0
    if curve.tuned_values:
        results, settings, pending = _tune_values(plan, curve, index)
        epochs_left = _epochs_of_tuning_left(curve, results, pending, len(curve.tuned_values))
        if settings and curve.clips and _is_clipped(results, settings):
            clips, settings, of_clips = _tune_clips(plan, curve, index, settings)
            epochs_left += _epochs_of_tuning_left(curve, clips, of_clips, len(curve.clips))
            pending = pending or of_clips
    epochs, finals = plan.final_epochs(curve), {}
    if settings is None:
        tuning_ends = curve.stages[-1].epochs if curve.tuned_values else 0
        is_lost = not pending and not tuned  # every run diverged
        epochs_left += 0 if is_lost else max(0, curve.seeds * epochs - tuning_ends)
        return CurveProgress(curve, results, clips, None, {}, set(), pending, epochs_left)
    is_tuned, under_way = not pending, set()
    for seed in range(curve.seeds):
        task = _task(plan, curve, index, settings, seed, epochs, FINAL)
        if not task.is_over:
            under_way.add(seed)
        if not task.is_over and is_tuned:
            pending.append(task)
            epochs_left += task.epochs_to_go
        if task.status and (task.status.iteration > 0 or task.status.has_diverged):
            finals[seed] = task.status
    return CurveProgress(curve, results, clips, settings, finals, under_way, pending, epochs_left)


def _tune_values(plan, curve, index):
    """(Results of the complete stages, settings of the best run or None, Tasks of the next).

    The values of a curve that `grows` get a neighbour as long as the best one is the highest of
    them. As long as it is the lowest one of the last stage, the next lower value joins that stage:
    what learns slowly is dropped early, and may be the best in the end.
    """
    values, joining, before = list(curve.tuned_values), [], None
    while True:
        found = results, settings, pending = _tune_among(
            plan,
            curve,
            index,
            [curve.tuned_settings(value) for value in values],
            "tuning",
            [curve.tuned_settings(value) for value in joining],
        )
        if pending and before:  # meanwhile the best one of those that have got there is shown
            return *before, pending
        if not curve.grows or pending or settings is None:
            return found
        best, before = settings[curve.tuned_key], (results, settings)
        if best == max(values):
            values.append(next_value(best, up=True))
        elif best == tried_values(latest_stage(results), curve.tuned_key)[0]:
            lower = [value for value in values if value < best]
            joining.append(max(lower, default=next_value(best, up=False)))
        else:
            return found


def _is_clipped(results, chosen):
    """Whether the run with the chosen settings was clipped so often that the clip is its step size.

    The updates before CLIPPED_AFTER do not count: at first every step is clipped. Nor do those of
    the final run, which may have gone on in the same folder.
    """
    last = next(result for result in reversed(results) if result.point.settings == chosen)
    metrics = read_metrics(last.point.folder / "metrics.csv", cut_short=True)
    tuned = metrics["iteration"] <= last.row["iteration"]
    epoch, clipped = (metrics[name][tuned] for name in ("epoch", "clipped"))
    is_counted = epoch[:-1] >= min(CLIPPED_AFTER, epoch[-1] / 2)
    updates = np.diff(metrics["iteration"][tuned]) * is_counted
    return bool(updates @ clipped[1:] > CLIPPED_SHARE * updates.sum())


def _tune_clips(plan, curve, index, best):
    """The same as `_tune_values` for the clips of a curve, at the best rate."""
    settings = [{**best, CLIP: clip} for clip in curve.clips]
    return _tune_among(plan, curve, index, settings, "tuning of the clip")


def next_value(value, up):
    """The neighbour of a value among ..., 0.03, 0.1, 0.3, 1, 3, ..."""
    exponent = math.floor(math.log10(value) + 1e-9)
    is_one = value < 2 * 10**exponent
    if up:
        return float(f"{3 if is_one else 1}e{exponent if is_one else exponent + 1}")
    return float(f"{3 if is_one else 1}e{exponent - 1 if is_one else exponent}")


def _tune_among(plan, curve, index, settings, purpose, joining=()):
    points, joining = ([Point(each, None) for each in group] for group in (settings, joining))
    tuning = Tuning(points, curve.stages, joining)
    while tuning.stage:
        stage = f"{purpose} {tuning.number} of {len(curve.stages)}"
        tasks = [
            _task(plan, curve, index, point.settings, 0, tuning.stage.epochs, stage)
            for point in tuning.points
        ]
        if pending := [task for task in tasks if not task.is_over]:
            return tuning.results, None, pending
        tuning.complete(tasks)
    best = (each.settings for each in tuning.points if each.settings.get(RATE) not in curve.lost)
    return tuning.results, next(best, None), []


def _task(plan, curve, index, settings, seed, epochs, purpose):
    config = plan.configure(curve, settings, seed, epochs)
    return find_task(index, config, index.new_folder(config, curve.name), curve.name, purpose)


def _epochs_of_tuning_left(curve, results, pending, count):
    """Epochs left in the current stage and in those after it; `count` points are tuned in all."""
    if not pending:
        return 0
    under_way = results[-1].stage + 1 if results else 1
    left = sum(task.epochs_to_go for task in pending)
    for before, stage in zip(curve.stages[under_way - 1 :], curve.stages[under_way:], strict=False):
        left += min(stage.keep or count, count) * (stage.epochs - before.epochs)
    return left
