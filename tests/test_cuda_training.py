"""Training steps on the CUDA kernels against the same steps on the CPU's own primitives."""

import gc
from functools import partial

import numpy as np
import pytest
from networks import EVERY_LAYER, INPUT_SHAPE, network, settings

from kfcnet.batches import Batch
from kfcnet.curvature.inversion import InversionWarning
from kfcnet.losses import SoftmaxCrossEntropy, SquaredError
from kfcnet.ops.cpu import CpuOps
from kfcnet.optimizers import build_optimizer

STEPS = 10


class Training:
    """A small network with every layer, an optimizer, and the same batches every time."""

    def __init__(self, ops, name, **changes):
        rng = np.random.default_rng(5)
        self.ops = ops
        self.optimizer = build_optimizer(
            settings(name, learning_rate=0.02, **changes), network(ops), SoftmaxCrossEntropy(ops, 3)
        )
        self.batches = [
            Batch(
                ops.asarray(rng.standard_normal((9, *INPUT_SHAPE))),
                rng.integers(0, 3, 9).astype(np.int32),
            )
            for _ in range(STEPS)
        ]
        self.optimizer.prepare(self.batches[:2])

    def step(self, index):
        return self.optimizer.step(self.batches[index % STEPS]).totals

    def losses(self):
        """Mean losses of the first steps (STEPS,)."""
        return np.array([self.ops.to_numpy(self.step(i))[0] for i in range(STEPS)]) / 9


@pytest.mark.parametrize("name", ["kfc_pre", "sgd", "adam"])
def test_ten_steps_have_the_losses_of_the_cpu(new_cuda, name):
    expected = Training(CpuOps("float64", shards=1), name).losses()
    actual = Training(new_cuda(), name).losses()
    assert np.isfinite(actual).all()
    np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-4)
    assert np.ptp(expected) > 0.05  # something was learnt


def test_with_squared_error_captured_steps_are_those_of_the_cpu(new_cuda, rng):
    """Nothing that a step computes may be left out of its graph: every step has other inputs."""
    data = rng.standard_normal((5, 9, *INPUT_SHAPE)), rng.standard_normal((5, 9, 3))
    found = []
    for ops in (CpuOps("float64", shards=1), new_cuda()):
        optimizer = build_optimizer(
            settings("kfc_pre", learning_rate=0.1, clip=1e-3, inverse_period=2),
            network(ops),
            SquaredError(ops, 3),
        )
        batches = [Batch(ops.asarray(x), ops.asarray(y)) for x, y in zip(*data, strict=True)]
        optimizer.prepare(batches[:1])
        totals = [ops.to_numpy(optimizer.step(batch).totals).copy() for batch in batches]
        assert optimizer.running_sums.read().clipped > 0
        found.append((np.array(totals), ops.to_numpy(optimizer.network.theta)))
    for expected, got in zip(*found, strict=True):
        assert np.isfinite(got).all()
        np.testing.assert_allclose(got, expected, rtol=2e-3, atol=2e-3)


def test_ten_steps_on_tensor_cores_stay_close(new_cuda):
    expected = Training(CpuOps("float64", shards=1), "kfc_pre").losses()
    error = np.abs(Training(new_cuda(tensor_cores=True), "kfc_pre").losses() - expected).max()
    assert 1e-6 < error < 1e-2, error  # it is TF32, and no worse than that


def test_same_seed_gives_the_same_bits(new_cuda):
    first, second = (Training(new_cuda(), "kfc_pre") for _ in range(2))
    assert np.array_equal(first.losses(), second.losses())
    for one, other in zip(*(t.optimizer.state().values() for t in (first, second)), strict=True):
        if isinstance(one, np.ndarray):
            assert np.array_equal(one, other)


@pytest.mark.parametrize(
    "name, changes",
    [
        ("kfc_pre", dict(inverse_period=3)),
        ("kfc_pre", dict(inverse_delay=1)),
        ("kfc_pre", dict(inverse_delay=3, inverse_on="host")),
        ("sgd", {}),
        ("adam", {}),
        pytest.param("kfc_pre", dict(structure="ekfac"), marks=pytest.mark.slow),
        pytest.param("sgd", dict(nesterov=True), marks=pytest.mark.slow),
        pytest.param("adagrad", {}, marks=pytest.mark.slow),
        pytest.param("rmsprop", {}, marks=pytest.mark.slow),
    ],
)
def test_captured_steps_are_the_eager_ones_though_the_network_is_used_between(
    new_cuda, name, changes
):
    results = []
    steps = 8 if name == "kfc_pre" else 4  # every kind of step twice and more
    steps += 4 if "inverse_on" in changes else 0  # inverses that began within a graph, too
    for capture in (False, True):
        ops = new_cuda()
        if not capture:
            ops.captured = partial(CpuOps.captured, ops)
        training = Training(ops, name, **changes)
        for index in range(steps):
            training.step(index)
            training.optimizer.network.forward(training.batches[-1].inputs[:4])
        results.append(ops.to_numpy(training.optimizer.network.theta))
    assert np.isfinite(results[0]).all()
    assert np.array_equal(*results)


def test_weights_are_packed_once_for_all_passes_of_a_step(new_cuda, monkeypatch):
    """All layers' in one launch; the clip's directions are other weights, in another."""
    training = Training(new_cuda(), "kfc_pre", statistics_period=1)
    launched = launches_of(training.ops, monkeypatch)
    training.step(0)
    assert launched.count("conv_pack") == 2


def test_an_evaluation_packs_weights_for_the_forward_pass_alone(new_cuda, monkeypatch):
    ops = new_cuda()
    net = network(ops, EVERY_LAYER[1:])  # without dropout both modes have the same derivatives
    x = ops.asarray(np.ones((2, *INPUT_SHAPE)))
    launched = launches_of(ops, monkeypatch)
    net.measure_statistics(x)
    dz = ops.copy(net.forward(x))
    evaluation = launched.count("conv_pack")
    net.backward(dz)
    after_evaluation = ops.to_numpy(net.weighted[0].derivatives)
    assert launched.count("conv_pack") == evaluation + 1
    net.forward(x, training=True)
    net.backward(dz)
    assert after_evaluation.any()
    assert np.array_equal(after_evaluation, ops.to_numpy(net.weighted[0].derivatives))


def launches_of(ops, monkeypatch):
    """A list that the names of the kernels come to as they are launched."""
    launched, launch = [], ops.launch
    monkeypatch.setattr(
        ops,
        "launch",
        lambda file, kernel, *args, **kwargs: (
            launched.append(kernel),
            launch(file, kernel, *args, **kwargs),
        ),
    )
    return launched


@pytest.mark.parametrize(
    "name, changes, expected",
    [
        ("kfc_pre", {}, [1, 1, 1, 1]),
        ("kfc_pre", dict(tikhonov="exact"), [1, 1, 1, 2]),
        ("sgd", {}, [1, 1, 1, 1]),
    ],
)
def test_a_step_is_one_graph_and_two_where_the_host_inverts(
    new_cuda, name, changes, expected, monkeypatch
):
    ops = new_cuda()
    training, graphs, replay = Training(ops, name, **changes), [], ops.runtime.replay
    monkeypatch.setattr(ops.runtime, "replay", lambda graph: graphs.append(graph) or replay(graph))
    for index in range(8):  # every kind of step twice
        training.step(index)
    counts = []
    for index in range(4):
        graphs.clear()
        with monkeypatch.context() as patch:
            if index < 3:
                patch.setattr(ops, "launch", lambda *_, **__: pytest.fail("outside of a graph"))
            training.step(index)
        counts.append(len(graphs))
    assert counts == expected


@pytest.mark.parametrize("new_cuda", [pytest.param("cuda", marks=pytest.mark.gpu)], indirect=True)
def test_memory_is_steady_over_a_thousand_steps(new_cuda):
    training = Training(new_cuda(), "kfc_pre")
    used = []
    gc.collect()  # what earlier tests left would be freed on the way
    for index in range(1000):
        training.step(index)
        if index % 100 == 99:
            training.ops.runtime.synchronize()
            used.append(training.ops.runtime.allocated())
    assert used[1:] == used[1:2] * 9, used


def test_inverses_that_fail_within_a_step_are_kept_and_told_when_the_host_next_reads(new_cuda):
    training = Training(new_cuda(), "kfc_pre", inverse_period=1, statistics_period=1000)
    optimizer, first = training.optimizer, training.optimizer.blocks[0]
    for index in range(3):  # captured, then replayed
        training.step(index)
    before = [[training.ops.to_numpy(a) for a in block.inverses()] for block in optimizer.blocks]
    training.ops.write(first.Omega, -training.ops.to_numpy(first.Omega))
    training.ops.write(
        optimizer.blocks[1].Gamma, 2 * training.ops.to_numpy(optimizer.blocks[1].Gamma)
    )
    with pytest.warns(InversionWarning, match=r"before step 4, .*not positive.*good inverses stay"):
        training.step(3)
    after = [[training.ops.to_numpy(a) for a in block.inverses()] for block in optimizer.blocks]
    assert all(map(np.array_equal, before[0], after[0]))
    assert not any(map(np.array_equal, before[1], after[1]))
    assert np.isfinite(training.ops.to_numpy(optimizer.network.theta)).all()
