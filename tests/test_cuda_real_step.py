"""One real step of the CIFAR-10 network: the tiles that training launches, against float64."""

import numpy as np
import pytest
from checks import assert_close

from kfcnet.benchmarks.cuda import real_step
from kfcnet.benchmarks.tf32 import Tf32Operands
from kfcnet.ops.cpu import CpuOps
from kfcnet.ops.cuda import CudaOps

# Of the largest entry, in fp32 and TF32: rounding may still choose another maximum of a window, and
# tensor cores do not round their sums to nearest.
BOUNDS = {False: 1e-4, True: 5e-3}


def assert_step_is_exact(ops, M, bound):
    reference = Tf32Operands() if ops.name == "cuda" and ops.tensor_cores else CpuOps("float64")
    found, expected = real_step(ops, M), real_step(reference, M)
    assert found.keys() == expected.keys() and len(found) == 3 * 4
    for name, array in expected.items():
        assert np.isfinite(found[name]).all() and array.any(), name
        assert_close(found[name], array, bound)


@pytest.mark.gpu
@pytest.mark.parametrize("tensor_cores", BOUNDS)
def test_gradient_and_factors_of_a_mini_batch_are_those_of_float64(tensor_cores):
    assert_step_is_exact(CudaOps(tensor_cores=tensor_cores), 128, BOUNDS[tensor_cores])


@pytest.mark.slow
@pytest.mark.parametrize("tensor_cores", BOUNDS)
def test_of_a_few_images_they_are_that_in_emulation(new_cuda, tensor_cores):
    assert_step_is_exact(new_cuda(tensor_cores=tensor_cores), 4, BOUNDS[tensor_cores])


def test_the_check_of_a_real_step_holds_for_float32_on_the_cpu():
    assert_step_is_exact(CpuOps("float32", shards=1), 2, BOUNDS[False])


def test_a_step_in_tf32_is_far_from_float64_unless_that_rounds_its_operands():
    exact, rounded = (real_step(ops, 4) for ops in (CpuOps("float64"), Tf32Operands()))
    name = "conv1 gradient"
    difference = np.abs(rounded[name] - exact[name]).max() / np.abs(exact[name]).max()
    assert difference > 2 * BOUNDS[True]


def test_a_parameter_vector_at_any_address_is_updated(cuda, rng):
    arrays = [rng.standard_normal(11).astype(np.float32) for _ in range(4)]
    theta, velocity, average, direction = (
        cuda.asarray(np.concatenate([[0], array]))[1:] for array in arrays
    )
    cuda.momentum_update(theta, velocity, average, direction, 0.1, 0.5, None, 0.5)
    assert_close(cuda.to_numpy(theta), arrays[0] + 0.5 * arrays[1] - 0.1 * arrays[3], 1e-6)
