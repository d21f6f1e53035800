"""Branches of captured graphs: what runs beside what, and memory that both would touch."""

import cuda_on_cpu
import numpy as np
import pytest
from cuda_on_cpu.branches import Branches
from recorded_steps import record
from test_cuda_training import Training

from kfcnet.ops.cuda import CudaOps

pytestmark = pytest.mark.skipif(
    cuda_on_cpu.missing() is not None, reason=str(cuda_on_cpu.missing())
)


@pytest.fixture
def ops():
    return CudaOps(cuda_on_cpu.CpuRuntime())


def third_call(ops, function, *inputs):
    """Its result where it is replayed; the second call captures."""
    program = ops.captured(function)
    return [np.array(ops.to_numpy(program(*inputs))) for _ in range(3)][-1]


def test_work_beside_is_done_when_it_is_joined(ops):
    def function(x):
        with ops.beside():
            y = ops.relu(x)
        z = ops.scale_maps(x, x)
        ops.join()
        ops.axpy(1.0, y, z)
        return z

    x = np.array([-2, 3, 0.5], np.float32)
    np.testing.assert_array_equal(third_call(ops, function, x), [4, 12, 0.75])


@pytest.mark.parametrize("beside", ["writes", "reads"])
@pytest.mark.parametrize("joins", [True, False])
def test_memory_that_two_branches_share_is_a_fault(ops, beside, joins):
    def function(x, y):
        with ops.beside():
            ops.axpy(1.0, *((x, y) if beside == "writes" else (y, x)))
        if joins:
            ops.join()
        ops.axpy(2.0, x, y)
        return y

    x, y = np.float32([1, 2]), np.float32([3, 5])
    if joins:
        assert np.isfinite(third_call(ops, function, x, y)).all()
        return
    with pytest.raises(cuda_on_cpu.KernelError, match="race of branches: axpy .* and axpy"):
        third_call(ops, function, x, y)


def test_two_branches_may_read_the_same_memory(ops):
    def function(x):
        with ops.beside():
            y = ops.relu(x)
        z = ops.relu(x)
        ops.join()
        ops.axpy(1.0, y, z)
        return z

    np.testing.assert_array_equal(third_call(ops, function, np.float32([-1, 4])), [0, 8])


class Forgetful(list):
    def append(self, values):
        pass


@pytest.mark.parametrize("holds", [True, False])
def test_memory_that_comes_free_beside_a_branch_is_held_until_the_join(ops, holds):
    if not holds:
        ops._held = Forgetful()

    def function(x):
        freed = ops.relu(x)
        with ops.beside():
            y = ops.relu(freed)
        del freed
        z = ops.relu(x)  # would be given its memory
        ops.join()
        ops.axpy(1.0, y, z)
        return z

    x = np.float32([-1, 4])
    if holds:
        np.testing.assert_array_equal(third_call(ops, function, x), [0, 8])
        return
    with pytest.raises(cuda_on_cpu.KernelError, match="race of branches: relu reads and an alloca"):
        third_call(ops, function, x)


def test_what_a_branch_does_after_a_second_fork_comes_after_all_before_it():
    branches, arrays = Branches(), np.zeros((2, 3), np.float32)
    branches.fork()
    branches.add("first", [(arrays[0], True)])
    branches.back()
    branches.add("main", [(arrays[1], True)])
    branches.fork()
    branches.add("second", [(arrays[0], True), (arrays[1], False)])
    assert not branches.is_joined
    branches.back()
    with pytest.raises(cuda_on_cpu.KernelError, match="second reads and other writes"):
        branches.add("other", [(arrays[1], True)])
    branches.join()
    assert branches.is_joined and branches.depth == 2
    branches.add("last", [(arrays[0], False), (arrays[1], False)])
    assert branches.depth == 3


@pytest.mark.parametrize("name", ["sgd", "kfc_pre"])
def test_no_two_branches_of_a_step_share_memory(ops, name, monkeypatch):
    """Every kind of step is captured; leaving a join out is found."""
    training = Training(ops, name)
    for index in range(8):
        training.step(index)
    training = Training(ops, name)
    monkeypatch.setattr(ops, "join", lambda: None)
    with pytest.raises(cuda_on_cpu.KernelError, match="race of branches"):
        for index in range(8):
            training.step(index)


@pytest.mark.parametrize("step, most", [(("cifar_sgd", 128), 20)])
def test_the_longest_chain_of_launches_of_a_step(step, most):
    branches = record(*step).branches()
    assert branches.is_joined and branches.depth <= most
