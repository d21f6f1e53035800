"""Several processes that share every mini-batch take the steps of one; here they are threads."""

import contextlib
import itertools
import math
import re
import signal
import sys

import numpy as np
import pytest
from networks import EVERY_LAYER, INPUT_SHAPE, network
from runs import SGD, assert_same_bits, small
from thread_ranks import ThreadRanks, on_ranks

from kfcnet import data, philox
from kfcnet.batches import Batch
from kfcnet.config import ConfigError
from kfcnet.config.schema import (
    AdagradConfig,
    AdamConfig,
    HessianFreeConfig,
    KfacConfig,
    KfcPreConfig,
    RmspropConfig,
    SgdConfig,
    StepConfig,
)
from kfcnet.curvature import block
from kfcnet.curvature.structures import STRUCTURES
from kfcnet.losses import LOSSES
from kfcnet.ops.cpu import CpuOps
from kfcnet.optimizers import build_optimizer
from kfcnet.optimizers.kronecker import KroneckerOptimizer
from kfcnet.ranks import Alone, RanksError, balanced, is_of_all, process_of, traceback_of, world
from kfcnet.runs.checkpoint import CheckpointError, load_checkpoint, save_checkpoint
from kfcnet.runs.files import read_json
from kfcnet.runs.folder import RunFolderError
from kfcnet.training import trainer
from kfcnet.training.build import check_shares
from kfcnet.training.errors import TrainingFailed, TrainingInterrupted
from kfcnet.training.train import train
from kfcnet.training.trainer import Trainer

M, UPDATES = 16, 40
NORMALISED = [
    dict(layer="conv", name="conv1", filters=3, kernel=3, padding=1, std=0.5),
    dict(layer="batch_norm", name="norm1", affine=True),
    dict(layer="relu"),
    dict(layer="dropout", keep=0.7),
    dict(layer="max_pool", size=3, stride=2),
    dict(layer="conv", name="conv2", filters=4, kernel=2, stride=2, padding=1, std=0.5),
    dict(layer="batch_norm", name="norm2"),
    dict(layer="relu"),
    dict(layer="dense", name="dense", units=3, std=0.4),
]
KFC = dict(
    name="kfc_pre",
    learning_rate=0.02,
    batch_size=M,
    statistics_period=2,
    statistics_fraction=0.5,
    inverse_period=4,
    weight_decay=1e-3,
    clip=1e-3,
    clip_fraction=0.25,
    statistics_timescale=100.0,
)
SECOND = dict(batch_size=M, statistics_fraction=0.5, fisher_fraction=0.5, statistics_timescale=100)
OPTIMIZERS = {
    "sgd": SgdConfig(learning_rate=0.05, weight_decay=1e-3),
    "sgd with a limit on norms": SgdConfig(learning_rate=0.05, max_norm=0.9, nesterov=True),
    "adagrad": AdagradConfig(learning_rate=0.05),
    "rmsprop": RmspropConfig(learning_rate=0.01),
    "adam": AdamConfig(learning_rate=0.01),
    "adam with decoupled decay": AdamConfig(
        learning_rate=0.01, weight_decay=0.1, decoupled_decay=True, max_norm=0.9
    ),
    "kfc_pre": KfcPreConfig(**KFC),
    "kfc_pre with damping auto": KfcPreConfig(**KFC | dict(learning_rate=3.0), damping="auto"),
    "kfc_pre with a delay": KfcPreConfig(**KFC, inverse_delay=3),
    "kfc_pre in a thread of the host": KfcPreConfig(**KFC, inverse_delay=2, inverse_on="host"),
    **{
        f"kfc_pre {structure}": KfcPreConfig(**KFC, structure=structure)
        for structure in STRUCTURES
        if structure != "kfc"
    },
    "kfc_pre with bounded steps": KfcPreConfig(
        # With so much momentum the bound is below every step, and they stay short.
        **{**KFC, "learning_rate": 0.1, "clip": None},
        damping="auto",
        momentum=0.99,
    ),
    "kfc_pre with exact damping": KfcPreConfig(**KFC, tikhonov="exact"),
    "kfc_pre with a delay, exact damping and a limit on norms": KfcPreConfig(
        **KFC, tikhonov="exact", inverse_delay=3, max_norm=0.9
    ),
    "kfac": KfacConfig(**SECOND, inverse_period=4),
    "kfac with exact damping": KfacConfig(**SECOND, tikhonov="exact", damping_period=3),
    # With less damping conjugate gradients make 1e-7 of a rounding error within forty updates, of
    # one between shards of a single process too.
    "hessian_free": HessianFreeConfig(**SECOND, cg_iterations=4, damping=10.0, min_damping=5.0),
    "hessian_free alone": HessianFreeConfig(
        **SECOND, cg_iterations=4, damping=10.0, min_damping=5.0, preconditioner="none"
    ),
}


FEATURES = {
    "a limit on norms": dict(max_norm=0.9),
    "weight decay by layer": dict(weight_decay={"conv1": 1e-2, "conv2": 1e-3}),
    "no weight decay": dict(weight_decay=0.0),
    "a rate that changes": dict(schedule=StepConfig(warm_up=100, at=(400,), factor=0.5)),
    "Nesterov's momentum": dict(nesterov=True),
    "decoupled decay": dict(decoupled_decay=True),
    "no clip": dict(clip=None),
    "all examples": dict(statistics_fraction=1.0, clip_fraction=1.0, fisher_fraction=1.0),
    "fresh factors": dict(statistics_period=1, inverse_period=1),
    "delayed inverses": dict(inverse_delay=3),
    "exact damping": dict(tikhonov="exact"),
}
"""Settings that are changed where an optimizer has them."""
KINDS = "sgd", "adagrad", "rmsprop", "adam", "kfc_pre", "kfc_pre ekfac", "kfac", "hessian_free"


QUICK = "sgd", "kfc_pre", "kfc_pre ekfac", "kfac"


def combinations():
    """(name of an optimizer, its configuration with one feature) of all that are allowed."""
    for name, (feature, changes) in itertools.product(KINDS, FEATURES.items()):
        settings = OPTIMIZERS[name].model_dump()
        if changes := {key: value for key, value in changes.items() if key in settings}:
            with contextlib.suppress(ConfigError):
                config = type(OPTIMIZERS[name])(**settings | changes)
                yield pytest.param(name, config, id=f"{name}, {feature}")


def batches(ops, count, loss="softmax_cross_entropy"):
    """This process's shares of the same mini-batches of M examples."""
    rng, ranks = np.random.default_rng(8), ops.ranks
    for _ in range(count):
        inputs = rng.standard_normal((M, *INPUT_SHAPE))
        targets = np.ascontiguousarray(ranks.share(rng.integers(0, 3, M).astype(np.int32)))
        if loss == "squared_error":
            targets = ops.asarray(ranks.share(rng.standard_normal((M, 3))))
        yield Batch(ops.asarray(ranks.share(inputs)), targets)


def trained(ranks, config, layers, updates=UPDATES, loss="softmax_cross_entropy", state=None):
    """An optimizer after so many updates, from the start or from a state."""
    ops = CpuOps("float64", shards=1, native="off", ranks=ranks)
    optimizer = build_optimizer(config, network(ops, layers), LOSSES[loss](ops, 3))
    stream = list(batches(ops, UPDATES, loss))
    if state is None:
        optimizer.prepare(stream[:2])
    else:
        optimizer.load_state(state)
    for step in range(optimizer.steps, updates):
        optimizer.step(stream[step])
    return optimizer


def assert_close(state, expected):
    assert state.keys() == expected.keys()
    for name, value in expected.items():
        if isinstance(value, dict):
            assert_close(state[name], value)
        else:
            assert np.isfinite(value).all(), name
            scale = np.abs(value).max() if np.size(value) else 1
            np.testing.assert_allclose(state[name], value, rtol=0, atol=1e-12 * max(scale, 1))


def check(config, layers, count, **changes):
    expected = trained(Alone(), config, layers, **changes)
    moved = np.abs(expected.network.theta - network(expected.ops, layers).theta).max()
    assert moved > 1e-3
    first, *others = on_ranks(count, lambda ranks: trained(ranks, config, layers, **changes))
    for other in others:
        assert_same_bits(other.state(), first.state())
    vectors = ("theta", "velocity", "average")
    state, wanted = first.state(), expected.state()
    assert_close({name: state[name] for name in vectors}, {name: wanted[name] for name in vectors})
    np.testing.assert_allclose(
        first.running_sums.read()[:4], expected.running_sums.read()[:4], rtol=1e-11
    )
    assert first.examples == expected.examples == M * UPDATES


@pytest.mark.parametrize("count", [2, pytest.param(4, marks=pytest.mark.slow)])
@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=pytest.mark.slow if name == "hessian_free alone" else ())
        for name in OPTIMIZERS
    ],
)
def test_forty_updates_of_several_processes_are_those_of_one(name, count):
    check(OPTIMIZERS[name], EVERY_LAYER, count)


@pytest.mark.parametrize("name", ["kfac", "hessian_free"])
def test_the_objective_that_adapts_the_damping_is_that_of_all_examples(name):
    def objective(ranks):
        optimizer = trained(ranks, OPTIMIZERS[name], EVERY_LAYER, updates=1)
        (batch,) = batches(optimizer.ops, 1)
        return optimizer._objective_after(batch, optimizer.steps)

    found = on_ranks(2, objective)
    np.testing.assert_allclose(found, [objective(Alone())] * 2, rtol=1e-12)


@pytest.mark.slow
@pytest.mark.parametrize("count", [2, 4])
@pytest.mark.parametrize("name, config", list(combinations()))
def test_every_setting_of_every_optimizer_gives_several_processes_the_steps_of_one(
    name, config, count
):
    check(config, EVERY_LAYER, count)


@pytest.mark.parametrize(
    "count, summed",
    [(2, "[(3, 19), (4, 13)]"), pytest.param(4, "[(4, 13)]", marks=pytest.mark.slow)],
)
@pytest.mark.parametrize("name", ["kfc_pre", "kfac"])
def test_processes_share_the_preconditioning_of_wide_layers_by_rows(
    monkeypatch, name, count, summed
):
    monkeypatch.setattr(block, "WIDE", 17)  # conv1 has 3 rows: four processes cannot share them
    check(OPTIMIZERS[name], EVERY_LAYER, count)

    def calls(ranks):
        trained(ranks, OPTIMIZERS[name], EVERY_LAYER, updates=2)
        return ranks.calls

    assert on_ranks(count, calls)[0].count(f"sum of {summed}") == 2


def test_rows_of_processes_are_all_rows_once():
    for rows, count in ((5, 2), (4, 4), (7, 3)):
        parts = on_ranks(count, lambda ranks, rows=rows: ranks.rows(rows))
        assert [parts[0][0], *(end for _, end in parts)] == [0, *(b for b, _ in parts[1:]), rows]
        sizes = [end - begin for begin, end in parts]
        assert max(sizes) - min(sizes) <= 1 <= min(sizes)


@pytest.mark.parametrize("count", [2, pytest.param(4, marks=pytest.mark.slow)])
@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=() if name in QUICK else pytest.mark.slow) for name in OPTIMIZERS],
)
def test_batch_normalisation_is_over_the_examples_of_all_processes(name, count):
    config = OPTIMIZERS[name]
    if hasattr(config, "epsilon"):
        # A bias before batch normalisation has a gradient of rounding alone: they divide it by
        # epsilon, which the default 1e-8 would make 1e-9.
        config = config.model_copy(update=dict(epsilon=1e-2))
    check(config, NORMALISED, count)


@pytest.mark.parametrize(
    "name",
    ["kfc_pre", *(pytest.param(n, marks=pytest.mark.slow) for n in ("kfac", "hessian_free"))],
)
def test_with_squared_error_both_draw_the_targets_of_one(name):
    check(OPTIMIZERS[name], EVERY_LAYER, 2, loss="squared_error")


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=() if name == "kfc_pre with a delay" else pytest.mark.slow)
        for name in OPTIMIZERS
    ],
)
def test_a_state_of_two_goes_on_with_two_bit_for_bit_and_with_one_or_four_to_rounding(name):
    def state(ranks, **more):
        return trained(ranks, OPTIMIZERS[name], EVERY_LAYER, **more).state()

    begun = on_ranks(2, lambda ranks: state(ranks, updates=17))[1]  # an inversion is under way
    assert bool(begun.get("begun")) == bool(getattr(OPTIMIZERS[name], "inverse_delay", 0))
    whole, again = (
        on_ranks(2, lambda ranks, state_=state_: state(ranks, state=state_))[0]
        for state_ in (None, begun)
    )
    assert_same_bits(again, whole)
    for other in (state(Alone(), state=begun), on_ranks(4, lambda r: state(r, state=begun))[3]):
        vectors = ("theta", "velocity", "average")
        assert_close({k: other[k] for k in vectors}, {k: whole[k] for k in vectors})


def test_what_one_process_alone_does_has_the_bits_of_no_ranks_at_all():
    alone = trained(Alone(), OPTIMIZERS["kfc_pre"], EVERY_LAYER)
    (one,) = on_ranks(1, lambda ranks: trained(ranks, OPTIMIZERS["kfc_pre"], EVERY_LAYER))
    assert_same_bits(one.state(), alone.state())


@pytest.mark.filterwarnings("ignore:.* encountered in:RuntimeWarning")
def test_a_loss_that_is_not_finite_ends_all_with_the_same_text(tmp_path, no_figures):
    config = small("optimizer.learning_rate=1e38", "ops.shards=1", text=SGD)
    texts = []

    def fail(ranks):
        with pytest.raises(TrainingFailed, match="the loss is not finite") as caught:
            train(config, tmp_path / "run", ranks=ranks)
        texts.append(str(caught.value))

    on_ranks(2, fail)
    with pytest.raises(TrainingFailed) as alone:
        train(config, tmp_path / "alone")
    assert texts == [str(alone.value)] * 2
    outcome = read_json(tmp_path / "run" / "run.json")["outcome"]
    assert outcome == read_json(tmp_path / "alone" / "run.json")["outcome"]


@pytest.mark.parametrize("when", ["warm-up", "step"])
def test_what_ends_a_run_of_all_does_not_wait_for_the_others_where_one_has_it_alone(
    tmp_path, monkeypatch, no_figures, when
):
    original = KroneckerOptimizer._sample_factors

    def sample_factors(self, predictive, step, decay):
        begins = self.needs_preparation
        if self.ops.ranks.rank == 1 and begins == (when == "warm-up"):
            raise np.linalg.LinAlgError("of one")
        original(self, predictive, step, decay)

    monkeypatch.setattr(KroneckerOptimizer, "_sample_factors", sample_factors)
    aborted = []
    monkeypatch.setattr(ThreadRanks, "abort", lambda self, status: aborted.append(self.rank))
    config = small("ops.shards=1")
    with pytest.raises(np.linalg.LinAlgError, match="of one") as caught:
        on_ranks(2, lambda ranks: train(config, tmp_path / "run", ranks=ranks))
    assert not is_of_all(caught.value)
    assert aborted[0] == 1  # before the threads of this test leave


@pytest.mark.parametrize("shards, available, said", [(2, 3, "Set ops.shards=1"), (1, 1, "Start")])
def test_more_threads_of_processes_than_cores_are_warned_of_once(
    tmp_path, monkeypatch, no_figures, caplog, shards, available, said
):
    def run(ranks, folder):
        train(small(f"ops.shards={shards}", text=SGD), tmp_path / folder, ranks=ranks)

    monkeypatch.setattr(trainer, "machine", lambda: "here")
    monkeypatch.setattr(trainer, "cores", lambda: set(range(available)))
    on_ranks(2, lambda ranks: run(ranks, "many"))
    (told,) = [record.getMessage() for record in caplog.records if "polling" in record.getMessage()]
    assert told.startswith(f"2 processes of {shards} thread") and said in told
    monkeypatch.setattr(trainer, "cores", lambda: set(range(2 * shards)))
    on_ranks(2, lambda ranks: run(ranks, "enough"))
    assert caplog.text.count("polling") == 1


def test_training_alone_as_one_of_several_processes_is_warned_of_by_the_first(
    tmp_path, monkeypatch, no_figures, caplog
):
    for rank in ("0", "1"):
        monkeypatch.setenv("PMI_SIZE", "2")
        monkeypatch.setenv("PMI_RANK", rank)
        train(small(text=SGD), tmp_path / rank)
    train(small(text=SGD), tmp_path / "meant", ranks=Alone())
    (told,) = caplog.messages
    assert "each of which trains a network of its own" in told and "ranks.world()" in told


@pytest.mark.parametrize("step", [3, 4])  # the update after the latter is followed by a row
def test_a_signal_to_one_process_stops_all_of_them_after_the_same_update(
    tmp_path, monkeypatch, no_figures, step
):
    original = Trainer._step

    def catch(self):
        if self.ranks.rank == 1 and self.optimizer.steps == step:
            self.signals.caught = signal.SIGINT
        original(self)

    monkeypatch.setattr(Trainer, "_step", catch)
    config = small("ops.shards=1", text=SGD)

    def stopped(ranks):
        with pytest.raises(TrainingInterrupted, match=f"after update {step + 1};") as caught:
            train(config, tmp_path / "run", ranks=ranks)
        return caught.value.number, is_of_all(caught.value)

    assert on_ranks(2, stopped) == [(signal.SIGINT, True)] * 2
    assert read_json(tmp_path / "run" / "run.json")["outcome"]["iteration"] == step + 1


def test_on_a_cpu_processes_ask_each_other_once_between_two_updates(tmp_path, no_figures):
    config = small("ops.shards=1", text=SGD)

    def calls(ranks):
        train(config, tmp_path / "run", ranks=ranks)
        return ranks.calls

    found, other = on_ranks(2, calls)
    assert found == other
    gradients = [place for place, call in enumerate(found) if call.endswith(", (2,)]")]
    assert len(gradients) == 1 + 12  # one of the warm-up
    between = found[gradients[2] + 1 : gradients[3]]
    asked = [call for call in between if not call.startswith("sum of ")]
    assert asked == ["max"]


@pytest.mark.parametrize("number", [0, 1])
def test_arrays_that_one_process_alone_is_given_are_refused_by_all(tmp_path, number):
    dataset, config = data.load(small().data), small("ops.shards=1", text=SGD)

    def refusal(ranks):
        given = dataset if ranks.rank == number else None
        with pytest.raises(RanksError, match="given to some processes only: give them") as caught:
            train(config, tmp_path / "run", dataset=given, ranks=ranks)
        return is_of_all(caught.value)

    assert on_ranks(2, refusal) == [True, True]


@pytest.mark.parametrize(
    "other, error, message",
    [
        ({"epochs": 1}, ConfigError, "expected a Config, got"),
        (small("data.input_scale=auto", text=SGD), RanksError, "configuration of process 2 of 2"),
        (small("device=cuda", text=SGD), RanksError, "configuration of process 2 of 2"),
    ],
)
def test_a_configuration_that_one_process_has_alone_is_refused_by_all(
    tmp_path, other, error, message
):
    """Others load the data earlier, or ask each other about their GPUs."""

    def refusal(ranks):
        own = other if ranks.rank == 1 else small(text=SGD)
        with pytest.raises(error, match=message) as caught:
            train(own, tmp_path / "run", ranks=ranks)
        return is_of_all(caught.value)

    assert on_ranks(2, refusal) == [True, True]


@pytest.mark.parametrize(
    "change, error",
    [
        (lambda state: state["origin"].update(device="cuda"), RunFolderError),
        (lambda state: state["row"].pop("steps"), CheckpointError),
        (lambda state: state["data"].pop("examples"), CheckpointError),
    ],
    ids=["another device", "no steps", "no examples"],
)
def test_what_a_checkpoint_forbids_all_processes_refuse_as_one(tmp_path, no_figures, change, error):
    config, run = small("ops.shards=1", text=SGD), tmp_path / "run"
    train(config, run)
    state = load_checkpoint(run / "checkpoint.h5")
    change(state)
    save_checkpoint(run / "checkpoint.h5", state)

    def refusal(ranks):
        more = small("ops.shards=1", "epochs=2", text=SGD)
        with pytest.raises(error) as caught:
            train(more, run, resume=True, ranks=ranks)
        return is_of_all(caught.value), process_of(caught.value)

    assert on_ranks(2, refusal) == [(True, "")] * 2


def test_the_fraction_that_a_refusal_names_is_taken():
    refused = 0
    for count, size in itertools.product((2, 3, 5), range(30, 210, 30)):
        for fraction in np.linspace(0.01, 0.99, 99).round(2):
            optimizer = KfcPreConfig(**KFC | {"batch_size": size, "statistics_fraction": fraction})
            optimizer = optimizer.model_copy(update={"clip_fraction": 1.0})
            try:
                check_shares(optimizer, count)
            except ConfigError as error:
                named = re.search(r"processes: (\S+) makes them (\d+)", str(error))
                taken = {"statistics_fraction": float(named[1])}
                check_shares(optimizer.model_copy(update=taken), count)
                assert math.ceil(float(named[1]) * size) == int(named[2])
                refused += 1
    assert refused > 500


# What every process does of its own


def test_shares_are_every_other_example_and_parts_the_first_ones_of_all():
    ranks = [Alone(), *on_ranks(2, lambda ranks: ranks)]
    assert [r.share(np.arange(7)).tolist() for r in ranks] == [
        [0, 1, 2, 3, 4, 5, 6],
        [0, 2, 4, 6],
        [1, 3, 5],
    ]
    assert [ranks[0].part(0.25, 30), ranks[1].part(0.25, 15)] == [8, 4]
    # 0.28 * 25 is a little above 7: the part of a share is that of the whole, shared.
    assert on_ranks(5, lambda ranks: ranks.part(0.28, 25)) == [7] * 5
    assert ranks[1].whole(30) == 60


def test_words_at_places_are_those_of_the_sequence():
    sequence = philox.words(5, philox.DROPOUT, 2**33 + 1, 106, stream=4)
    for width, rank in ((1, 2), (3, 1), (4, 0), (7, 2)):
        example, place = np.divmod(np.arange(5 * width), width)
        places = (example * 3 + rank) * width + place
        found = philox.words_at(places, 5, philox.DROPOUT, 2**33 + 1, 4)
        assert np.array_equal(found, sequence[places])
    assert philox.words_at(np.arange(0), 5, 0, 0).shape == (0,)


@pytest.mark.parametrize(
    "variables, is_alone",
    [
        ({}, True),
        ({"PMI_SIZE": "1"}, True),
        ({"PMIX_RANK": "0", "SLURM_NTASKS": "1"}, True),
        ({"PMI_SIZE": "2"}, False),
        ({"PMIX_RANK": "0"}, False),  # of how many it does not say
    ],
)
def test_a_process_needs_mpi4py_unless_it_was_started_alone(monkeypatch, variables, is_alone):
    for name in ("PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "PMIX_RANK", "SLURM_NTASKS"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setitem(sys.modules, "mpi4py", None)
    refused = pytest.raises(RanksError, match="through mpi4py, which cannot be imported")
    with contextlib.nullcontext() if is_alone else refused:
        assert isinstance(world.__wrapped__(), Alone)


def test_the_dearest_piece_goes_to_one_and_the_others_to_the_rest():
    assert balanced([3, 10, 4, 2], 2) == [1, 0, 1, 1]
    assert balanced([3, 10, 4], 1) == [0, 0, 0]
    assert balanced([5, 5], 3) == [0, 1]


def test_a_plain_update_needs_two_sums_and_none_is_of_a_whole_layer():
    def calls(ranks):
        optimizer = trained(ranks, OPTIMIZERS["kfc_pre"], EVERY_LAYER, updates=4)
        before = len(ranks.calls)
        optimizer.step(next(batches(optimizer.ops, 1)))
        return ranks.calls[before:], optimizer.network.theta.shape

    (found, (n,)), _ = on_ranks(2, calls)
    assert found == [f"sum of [({n},), (2,)]", "sum of [(1,)]"]


def test_what_the_first_process_returns_or_raises_all_do():
    assert on_ranks(2, lambda ranks: ranks.of_first_process(lambda: ranks.rank + 5)) == [5, 5]

    def fail(ranks):
        with pytest.raises(ConfigError, match="no such key") as caught:
            ranks.of_first_process(lambda: (_ for _ in ()).throw(ConfigError("no such key")))
        return is_of_all(caught.value)

    assert on_ranks(2, fail) == [True, True]


def test_what_one_process_raises_all_do():
    def check(ranks):
        if ranks.rank == 1:
            raise Unpicklable(1, 2)

    for error in on_ranks(3, lambda ranks: caught(lambda: ranks.agreed(lambda: check(ranks)))):
        assert isinstance(error, RuntimeError) and "Unpicklable: one and two" in str(error)
        assert is_of_all(error) and process_of(error) == "process 2 of 3: "
        assert "raise Unpicklable(1, 2)" in traceback_of(error)  # the line where it arose


def test_what_the_first_process_raises_too_is_told_as_that_of_all():
    def fail():
        raise ConfigError("no such key")

    for error in on_ranks(2, lambda ranks: caught(lambda: ranks.agreed(fail))):
        assert process_of(error) == "" and str(error) == "no such key"


class Unpicklable(Exception):
    def __init__(self, one, two):
        super().__init__("one and two")


def caught(function):
    try:
        return function()
    except Exception as error:
        return error
