"""One real step of the CIFAR-10 network: the tiles that training launches, against float64."""

import numpy as np
import pytest
from checks import assert_close

from kfcnet.benchmarks.reference import Compared, Reference, step_errors
from kfcnet.ops.cpu import CpuOps
from kfcnet.ops.cuda import CudaOps

BOUND = 2e-5  # of the largest entry of a result; `assert_close` has it for fp32


def assert_step_is_exact(ops, M):
    errors = step_errors(ops, M)
    assert len(errors) > 45 and errors.pop("gradients together") < 1e-6
    assert np.isfinite(list(errors.values())).all() and max(errors.values()) > 0
    assert {what: error for what, error in errors.items() if error > BOUND} == {}


@pytest.mark.gpu
@pytest.mark.parametrize("tensor_cores", [False, True])
def test_every_result_of_a_step_is_that_of_float64(tensor_cores):
    assert_step_is_exact(CudaOps(tensor_cores=tensor_cores), 128)


@pytest.mark.slow
@pytest.mark.parametrize("tensor_cores", [False, True])
def test_every_result_of_a_step_of_few_images_is_that_of_float64_in_emulation(
    new_cuda, tensor_cores
):
    assert_step_is_exact(new_cuda(tensor_cores=tensor_cores), 4)


@pytest.mark.parametrize("native", ["auto", "off"])
def test_every_result_of_a_step_is_that_of_float64_on_the_cpu(native):
    assert_step_is_exact(CpuOps("float32", shards=1, native=native), 2)


@pytest.mark.parametrize(
    "name", ["conv_forward", "patch_gram", "response_norm_backward", "avg_pool", "gram"]
)
def test_a_primitive_that_is_a_little_wrong_is_found(monkeypatch, name):
    ops = CpuOps("float32", shards=1)
    right = getattr(ops, name)

    def wrong(*args, **kwargs):
        result = right(*args, **kwargs)
        kwargs.get("out", result)[..., -1] *= 1.001
        return result

    monkeypatch.setattr(ops, name, wrong)
    errors = step_errors(ops, 2)
    found = {what.split()[1] for what, error in errors.items() if error > BOUND}
    assert found == {name}


def test_the_reference_rounds_what_tensor_cores_multiply_and_no_biases(rng):
    x, weight = rng.standard_normal((2, 5, 4, 3)), rng.standard_normal((6, 28))
    y, rounded = (Reference(tc).conv_forward(x, weight, 3, 1, 1) for tc in (False, True))
    difference = np.abs(rounded - y).max() / np.abs(y).max()
    assert 1e-5 < difference < 1e-3
    weight[:, 1:] = 0
    np.testing.assert_array_equal(
        Reference(True).conv_forward(x, weight, 3, 1, 1)[0, 0, 0], weight[:, 0]
    )
    assert Compared(CpuOps("float32")).errors == {}


def test_a_parameter_vector_at_any_address_is_updated(cuda, rng):
    arrays = [rng.standard_normal(11).astype(np.float32) for _ in range(4)]
    theta, velocity, average, direction = (
        cuda.asarray(np.concatenate([[0], array]))[1:] for array in arrays
    )
    cuda.momentum_update(theta, velocity, average, direction, 0.1, 0.5, None, 0.5)
    assert_close(cuda.to_numpy(theta), arrays[0] + 0.5 * arrays[1] - 0.1 * arrays[3], 1e-6)
