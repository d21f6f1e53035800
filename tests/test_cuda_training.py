"""Training steps on the CUDA kernels, run on the CPU, against the same steps of the CPU's own."""

import numpy as np
import pytest

import cuda_on_cpu
from kfcnet.losses import SoftmaxCrossEntropy
from kfcnet.ops.cpu import CpuOps
from kfcnet.ops.cuda import CudaOps
from kfcnet.optimizers import Batch, build_optimizer
from networks import INPUT_SHAPE, network, settings

pytestmark = pytest.mark.skipif(cuda_on_cpu.missing() is not None,
                                reason=str(cuda_on_cpu.missing()))
STEPS = 10


def losses(ops, name, **changes):
    """Mean losses (STEPS,) of a small network with every layer, with the same data every time."""
    rng = np.random.default_rng(5)
    net = network(ops)
    optimizer = build_optimizer(settings(name, **changes), net, SoftmaxCrossEntropy(ops, 3), 3)
    batches = [Batch(ops.asarray(rng.standard_normal((9, *INPUT_SHAPE))),
                     rng.integers(0, 3, 9).astype(np.int32)) for _ in range(STEPS)]
    optimizer.prepare(batches[:2])
    totals = [ops.to_numpy(optimizer.step(batch).totals)[0] for batch in batches]
    return np.array(totals) / 9


@pytest.mark.parametrize("name", ["kfc_pre", "sgd", "adam"])
def test_ten_steps_have_the_losses_of_the_cpu(name):
    expected = losses(CpuOps("float64", shards=1), name, learning_rate=0.02)
    actual = losses(CudaOps(cuda_on_cpu.CpuRuntime()), name, learning_rate=0.02)
    assert np.isfinite(actual).all()
    np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-4)
    assert np.ptp(expected) > 0.05  # something was learnt


def test_ten_steps_on_tensor_cores_stay_close():
    expected = losses(CpuOps("float64", shards=1), "kfc_pre", learning_rate=0.02)
    actual = losses(CudaOps(cuda_on_cpu.CpuRuntime(tensor_cores=True)), "kfc_pre",
                    learning_rate=0.02)
    error = np.abs(actual - expected).max()
    assert 1e-6 < error < 1e-2, error  # it is TF32, and no worse than that


def test_same_seed_gives_the_same_bits():
    first, second = (losses(CudaOps(cuda_on_cpu.CpuRuntime(orders=(order,))), "kfc_pre")
                     for order in (0, 2))
    assert np.array_equal(first, second)
