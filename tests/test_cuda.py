"""The launchers of the CUDA kernels: what they refuse, what a captured step repeats."""

import inspect
import re
from pathlib import Path

import numpy as np
import pytest
from checks import assert_close

from kfcnet.ops import get_ops
from kfcnet.ops.cpu import CpuOps
from kfcnet.ops.cuda import CudaOps, is_available, kernels
from kfcnet.ops.cuda.dry_run import DryRun
from kfcnet.ops.errors import DeviceError
from kfcnet.ops.shapes import output_size

ROOT = Path(__file__).resolve().parents[1]

# Kernel sources


def test_every_kernel_states_the_shapes_of_its_arrays():
    for path in kernels.folder().glob("*.cu"):
        assert kernels.signatures(path.stem), path.name


def test_included_headers_are_spliced_in_once():
    text = kernels.source("dropout")
    assert "#include" not in text and "#pragma once" not in text
    assert text.count("struct __align__(lanes * sizeof(T)) Vector") == 1


def test_argument_without_a_shape_is_refused():
    text = 'extern "C" __global__ void f(\n    const float* x,\n    int count) {\n}\n'
    with pytest.raises(ValueError, match="f: pointer x lacks its shape"):
        kernels.parse(text, "file.cu")


# Misread arguments


def test_array_of_another_dtype_is_refused(cuda):
    with pytest.raises(TypeError, match="relu: x: an array of float32 is needed, float64 given"):
        cuda.launch("relu", "relu", 1, cuda.empty(4, np.float64), cuda.empty(4), 4)


def test_array_of_another_size_is_refused(cuda):
    with pytest.raises(ValueError, match=r"relu: y: 4 elements are needed, .* \(5,\) has 5"):
        cuda.launch("relu", "relu", 1, cuda.empty(4), cuda.empty(5), 4)


def test_array_that_is_not_contiguous_is_refused(cuda):
    with pytest.raises(ValueError, match="relu: x: the array is not C-contiguous"):
        cuda.launch("relu", "relu", 1, cuda.empty(8)[::2], cuda.empty(4), 4)


def test_array_of_the_host_is_refused(cuda):
    with pytest.raises(TypeError, match="relu: x: an array of the device is needed, list given"):
        cuda.launch("relu", "relu", 1, [1.0] * 4, cuda.empty(4), 4)


@pytest.mark.parametrize(
    "count, error",
    [
        (2**31, OverflowError),
        (-(2**31) - 1, OverflowError),
        (4.5, TypeError),
        ("4", TypeError),
        (True, TypeError),
        (None, TypeError),
    ],
)
def test_number_that_the_kernel_would_misread_is_refused(cuda, count, error):
    with pytest.raises(error, match="relu: count"):
        cuda.launch("relu", "relu", 1, cuda.empty(4), cuda.empty(4), count)


def test_array_whose_places_do_not_fit_an_int_is_refused():
    arguments = "    const unsigned char* x,  // (N, 2)\n    int N) {\n}\n"
    text = 'extern "C" __global__ void f(\n' + arguments
    huge = np.empty((2**30, 2), np.uint8)  # never touched
    with pytest.raises(ValueError, match="f: x: 2147483648 elements, kernels reach 2147483647"):
        kernels.checked("f", kernels.parse(text, "f.cu")["f"], [huge, 2**30], {}, np.ndarray)


def test_wrong_number_of_arguments_is_refused(cuda):
    with pytest.raises(TypeError, match="relu takes 3 arguments, 2 given"):
        cuda.launch("relu", "relu", 1, cuda.empty(4), cuda.empty(4))


def test_missing_array_is_refused_where_the_kernel_does_not_provide_for_it(cuda):
    with pytest.raises(TypeError, match="relu: x"):
        cuda.launch("relu", "relu", 1, None, cuda.empty(4), 4)


def test_matrix_product_of_unequal_depths_is_refused(cuda):
    with pytest.raises(ValueError, match="depths 3 and 4"):
        cuda.matmul(cuda.empty((2, 3)), cuda.empty((4, 2)))


def test_softmax_over_more_classes_than_the_kernel_does_is_refused(cuda):
    with pytest.raises(ValueError, match="softmax over 320 classes: the kernel does 319 at most"):
        cuda.softmax_cross_entropy(cuda.empty((2, 320)), np.zeros(2, np.int32))


def test_softmax_over_as_many_classes_as_the_kernel_does_is_right(cuda, rng):
    z, labels = rng.standard_normal((3, 319)), np.array([318, 0, 7], np.int32)
    p, _, totals = cuda.softmax_cross_entropy(cuda.asarray(z), labels)
    expected = np.exp(z) / np.exp(z).sum(1, keepdims=True)
    assert_close(cuda.to_numpy(p), expected, 1e-6)
    assert_close(cuda.to_numpy(totals)[0], -np.log(expected[range(3), labels]).sum(), 1e-6)


def test_kernel_that_needs_too_much_shared_memory_is_refused(cuda):
    with pytest.raises(ValueError, match="bytes of shared memory"):
        cuda.conv_forward(cuda.empty((1, 64, 64, 40)), cuda.empty((2, 1 + 32 * 32 * 40)), 32, 4, 0)


@pytest.mark.parametrize("name", ["conv_forward", "conv_backward_data", "conv_backward_weights"])
@pytest.mark.parametrize(
    "shape", [(3, 9, 7, 3, 5, 5, 1, 2), (2, 8, 8, 33, 17, 3, 2, 1), (5, 6, 5, 8, 40, 3, 1, 0)]
)
def test_tensor_cores_have_the_precision_of_tf32(tensor_cores, rng, shape, name):
    """Ten bits of mantissa: more error than fp32 would have, and no more than ten bits give."""
    M, H, W, J, I, *window = shape  # noqa: E741
    side = [output_size(s, *window) for s in (H, W)]
    arrays = {
        "x": rng.standard_normal((M, H, W, J)),
        "dy": rng.standard_normal((M, *side, I)),
        "weight": rng.standard_normal((I, 1 + window[0] ** 2 * J)),
    }

    def result(ops):
        x, dy, weight = map(ops.asarray, arrays.values())
        if name == "conv_forward":
            return ops.to_numpy(ops.conv_forward(x, weight, *window))
        if name == "conv_backward_data":
            return ops.to_numpy(ops.conv_backward_data(dy, weight, x.shape, *window))
        ops.conv_backward_weights(x, dy, *window, 1.0, weight)
        return ops.to_numpy(weight)

    actual, exact = result(tensor_cores), result(CpuOps("float64", shards=1))
    assert np.isfinite(actual).all()
    error = np.linalg.norm(actual - exact) / np.linalg.norm(exact)
    assert 2e-5 < error < 1e-3, error


@pytest.mark.parametrize("M, units, low, high", [(370, 371, 2e-5, 1e-3), (370, 10, 0, 1e-6)])
def test_dense_layers_use_tensor_cores_where_there_is_enough_for_them(
    tensor_cores, rng, M, units, low, high
):
    x, weight = rng.standard_normal((M, 1, 1, 5)), rng.standard_normal((units, 6))
    actual, exact = (
        ops.to_numpy(ops.conv_forward(*map(ops.asarray, (x, weight)), 1, 1, 0))
        for ops in (tensor_cores, CpuOps("float64", shards=1))
    )
    assert low < np.linalg.norm(actual - exact) / np.linalg.norm(exact) < high


@pytest.mark.skipif(is_available(), reason="there is a GPU")
def test_absent_gpu_is_an_error_that_says_how_to_get_it():
    with pytest.raises(DeviceError, match="CuPy"):
        get_ops("cuda")


# Captured steps


def noisy_step(ops, counter, state):
    """A function of one array whose result depends on a counter and on what it did before."""

    def step(x):
        ops.axpy(1.0, ops.uniforms(x.size, 3, 1, counter), state)
        ops.advance(counter)
        y = ops.relu(x)
        ops.multiply_add(state, x, y)
        return y

    return step


def test_program_repeats_what_the_function_does(cuda, rng):
    batches = [cuda.asarray(rng.standard_normal(13)) for _ in range(5)]
    results = []
    for make in (lambda function: function, cuda.captured):
        state = cuda.zeros(13)
        step = make(noisy_step(cuda, cuda.counter(7), state))
        results.append([cuda.copy(step(batch)) for batch in batches] + [state])
    for eager, captured in zip(*results, strict=True):
        np.testing.assert_array_equal(*map(cuda.to_numpy, (captured, eager)))


def test_program_is_one_launch_from_the_third_call_on(cuda):
    calls = []
    step = cuda.captured(lambda x: calls.append(x) or cuda.relu(x))
    for _ in range(5):
        step(cuda.zeros(4))
    assert len(calls) == 2


def test_program_records_inputs_of_another_shape_by_themselves(cuda, rng):
    step = cuda.captured(cuda.relu)
    for M in (4, 2, 4, 2, 4, 2):
        x = rng.standard_normal((M, 3)).astype(np.float32)
        np.testing.assert_array_equal(cuda.to_numpy(step(x)), np.maximum(x, 0))


def test_program_records_other_constants_and_tuples_by_themselves(cuda, rng):
    made = []

    def scaled(pair, factor):
        made.append(factor)
        result = cuda.zeros(pair[0].shape)
        cuda.axpy(factor, pair[0], result)
        cuda.axpy(1.0, pair[1], result)
        return result

    program = cuda.captured(scaled)
    for factor in (2.0, 3.0, 2.0, 3.0, 2.0, 3.0):
        a, b = rng.standard_normal((2, 5)).astype(np.float32)
        assert_close(cuda.to_numpy(program((a, cuda.asarray(b)), factor)), factor * a + b, 1e-6)
    assert made == [2, 3, 2, 3]


def test_program_lets_the_host_work_between_its_graphs(cuda):
    """The host reads what the first graph left, and what it writes the second one takes up."""
    shared, seen = cuda.zeros(3), []

    def work():
        seen.append(cuda.to_numpy(shared)[0])
        cuda.write(shared, 10 * seen[-1])

    def function(x):
        cuda.axpy(1.0, x, shared)
        yield work
        return cuda.relu(shared)

    program, results = cuda.captured(function), []
    for value in (1.0, 2.0, 3.0):
        results.append(cuda.to_numpy(program(np.full(3, value, np.float32)))[0])
    assert seen == [1, 12, 123] and results == [10, 120, 1230]


@pytest.mark.parametrize(
    "function, message",
    [
        (lambda ops: lambda x: ops.axpy(float(ops.to_numpy(x)[0]), x, x), "an array to the host"),
        (lambda ops: lambda x: ops.axpy(1.0, ops.asarray(np.ones(4)), x), "data from the host"),
    ],
)
def test_program_that_would_not_be_repeated_whole_is_refused(cuda, function, message):
    step = cuda.captured(function(cuda))
    step(cuda.zeros(4))
    with pytest.raises(RuntimeError, match=message):
        step(cuda.zeros(4))


def test_numbers_that_a_program_reads_stay_however_many_others_come(cuda, monkeypatch):
    monkeypatch.setattr("kfcnet.ops.cuda.launcher.SCALARS_KEPT", 2)
    theta, velocity, average = (cuda.zeros(3) for _ in range(3))

    def move(direction):
        cuda.momentum_update(theta, velocity, average, direction, 0.5, 0.0, None, 0.0)

    step, direction = cuda.captured(move), cuda.asarray(np.ones(3))
    step(direction), step(direction)
    others = cuda.captured(lambda x: [cuda.relu(x) for _ in range(8)])  # takes what memory is free
    for value in range(4):
        cuda.uniforms(1, 0, 0, value)
    others(cuda.asarray([7.0])), others(cuda.asarray([7.0])), step(direction)
    np.testing.assert_array_equal(cuda.to_numpy(theta), -1.5 * np.ones(3))


def test_numbers_that_a_program_asked_for_are_there_when_it_is_captured(cuda, monkeypatch):
    monkeypatch.setattr("kfcnet.ops.cuda.launcher.SCALARS_KEPT", 2)
    draw = cuda.captured(lambda count: cuda.uniforms(count, 1, 0, 5))
    expected = cuda.to_numpy(draw(3))
    for step in range(6, 10):
        cuda.uniforms(1, 1, 0, step)
    np.testing.assert_array_equal(cuda.to_numpy(draw(3)), expected)


def test_a_program_whose_first_call_failed_begins_again(cuda):
    fails = [True]

    def function(count):
        if fails:
            raise KeyboardInterrupt(fails.pop())
        return cuda.uniforms(count, 1, 0, 131)  # a number that a capture cannot move to the device

    program = cuda.captured(function)
    with pytest.raises(KeyboardInterrupt):
        program(3)
    drawn = [cuda.to_numpy(program(3)) for _ in range(3)]
    np.testing.assert_array_equal(drawn, [cuda.to_numpy(cuda.uniforms(3, 1, 0, 131))] * 3)


# Work beside the step


def inverse(ops, matrix):
    return (ops.spd_inverse(matrix, ops.asarray([0.5])),)


@pytest.mark.parametrize("on_host", [False, True], ids=["side stream", "host"])
def test_inverse_begun_earlier_is_that_of_the_matrix_as_it_was(cuda, rng, on_host):
    root = rng.standard_normal((5, 5))
    matrix = cuda.asarray(root @ root.T)
    pending = cuda.submit(inverse, matrix, on_host=on_host)
    cuda.axpy(1.0, matrix, matrix)
    (result,) = pending.result()
    assert_close(cuda.to_numpy(result), np.linalg.inv(root @ root.T + 0.5 * np.eye(5)), 1e-4)
    assert_close(cuda.to_numpy(pending.inputs[0]), root @ root.T, 1e-6)


@pytest.mark.parametrize("on_host", [False, True], ids=["side stream", "host"])
def test_inverse_that_fails_is_reported_when_it_is_taken_up(cuda, on_host):
    pending = cuda.submit(inverse, cuda.asarray(-np.eye(3)), on_host=on_host)
    with pytest.raises(np.linalg.LinAlgError, match="positive definite"):
        pending.result()


# What every device offers


def test_gpu_has_every_primitive_of_the_cpu():
    for name, method in inspect.getmembers(CpuOps, inspect.isfunction):
        if not name.startswith("_"):
            there = inspect.signature(getattr(CudaOps, name)).parameters
            assert list(there)[: len(inspect.signature(method).parameters)] == list(
                inspect.signature(method).parameters
            ), name


@pytest.mark.parametrize("columns", [2, 76, 301])
def test_max_norm_shortens_rows_and_corrects_their_average(cuda, rng, columns):
    weight, average = (rng.standard_normal((5, columns)) for _ in range(2))
    weight[3] *= 0.01
    weight[4, 1:] = 0
    limit = 0.7 * np.linalg.norm(weight[0, 1:])
    on_device = [cuda.asarray(array) for array in (weight, average)]
    CpuOps("float64", shards=1).max_norm(weight, average, limit, 0.9)
    cuda.max_norm(*on_device, limit, 0.9)
    for actual, expected in zip(on_device, (weight, average), strict=True):
        assert_close(cuda.to_numpy(actual), expected)


def test_no_launcher_hides_what_another_one_defines():
    """CudaOps inherits them all: of two equal private names one would be lost in silence."""
    defined = [
        name
        for base in CudaOps.__mro__
        if base.__module__.startswith("kfcnet.ops.cuda.")
        for name in vars(base)
        if not name.startswith(("__", "_abc_"))
    ]
    assert len(defined) > 60 and sorted(set(defined)) == sorted(defined)


@pytest.mark.parametrize("path", sorted(kernels.folder().glob("*.cu")), ids=lambda path: path.stem)
def test_the_head_of_a_kernel_names_files_that_exist_and_launch_it(path):
    lines = path.read_text(encoding="utf-8").splitlines()
    head = " ".join(line for line in lines if line.startswith("//"))
    named = re.findall(r"(?:kfcnet|tests)/[\w/]+\.py", head)
    assert named and all((ROOT / name).is_file() for name in named)
    launchers = [name for name in named if name.startswith("kfcnet/ops/cuda/")]
    assert launchers or "Launcher: none" in head
    for name in launchers:
        text = (ROOT / name).read_text(encoding="utf-8")
        assert f'"{path.stem}"' in text or path.stem.rpartition("_")[0] in text


@pytest.mark.parametrize("maps, boundary", [(8, 16), (6, 8), (3, None)])
def test_an_array_that_begins_between_two_words_is_refused(cuda, maps, boundary):
    whole = cuda.empty(2 * 3 * 3 * maps + 1)
    x = whole[1:].reshape(2, 3, 3, maps)
    if boundary is None:
        cuda.max_pool(x, 2, 1)
    else:
        with pytest.raises(ValueError, match=f"max_pool: x: .* no multiple of {boundary} bytes"):
            cuda.max_pool(x, 2, 1)


@pytest.mark.parametrize("kernel, maps, by_offsets", [(5, 3, True), (33, 4, False), (25, 7, False)])
def test_a_kernel_of_too_many_offsets_for_one_block_is_summed_from_patches(
    kernel, maps, by_offsets
):
    runtime, P = DryRun(99 * 1024), 1 + kernel**2 * maps
    x, out = np.empty((2, 64, 64, maps), np.float32), np.empty((P, P), np.float32)
    CudaOps(runtime, tensor_cores=False).patch_gram(x, kernel, 1, kernel // 2, 1.0, 0.0, out)
    assert by_offsets == any(file == "gram_offsets" for file, _ in runtime.launched)
    threads = [most for kernels in runtime.launched.values() for most, _ in kernels.values()]
    assert 0 < max(threads) <= 1024
