"""The C extension against plain loops in float64, for every instruction set of this CPU.

Shapes are asymmetric (H != W) and channel counts lie on both sides of the vector widths.
"""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from kfcnet import philox
from kfcnet.ops.cpu import extension
from kfcnet.ops.cpu import windows as numpy_windows

native = pytest.importorskip(
    "kfcnet.ops.cpu._native", reason="the C extension is not built (no compiler at install time)"
)

targets = pytest.mark.parametrize("target", native.targets)
dtypes = pytest.mark.parametrize("dtype", [np.float32, np.float64])
# images, height, width, input maps, output maps, kernel, stride, padding
CONVOLUTIONS = [
    (3, 7, 10, 3, 5, 5, 1, 2),
    (2, 5, 9, 1, 33, 3, 1, 1),
    (1, 6, 5, 33, 64, 3, 1, 0),
    (2, 4, 3, 32, 32, 1, 1, 0),
    (1, 9, 17, 32, 33, 5, 1, 2),
    (3, 9, 8, 3, 5, 3, 2, 1),
    (2, 8, 11, 5, 17, 5, 2, 2),
    (2, 7, 6, 3, 16, 5, 3, 0),
    (1, 4, 5, 2, 3, 1, 2, 1),
    (1, 3, 4, 2, 3, 3, 1, 4),
]
convolutions = pytest.mark.parametrize("shape", CONVOLUTIONS)


def output_size(length, kernel, stride, padding):
    return (length + 2 * padding - kernel) // stride + 1


def draw(shape, dtype, seed):
    return np.random.default_rng(seed).standard_normal(shape).astype(dtype)


def conv_operands(shape, dtype):
    """x (M, H, W, J), weight (I, 1 + K*K*J), dy (M, Ho, Wo, I)."""
    m, h, w, j, i, k, s, p = shape
    out = output_size(h, k, s, p), output_size(w, k, s, p)
    return (
        draw((m, h, w, j), dtype, 1),
        draw((i, 1 + k * k * j), dtype, 2),
        draw((m, *out, i), dtype, 3),
    )


def taps(x_shape, dy_shape, kernel, stride, padding):
    """Every (kr, kc, input slices, output slices) of a convolution, cut to the image."""
    for kr in range(kernel):
        for kc in range(kernel):
            for r in range(dy_shape[1]):
                for c in range(dy_shape[2]):
                    h, w = r * stride + kr - padding, c * stride + kc - padding
                    if 0 <= h < x_shape[1] and 0 <= w < x_shape[2]:
                        yield kr * kernel + kc, (h, w), (r, c)


def reference_conv(x, weight, dy, kernel, stride, padding):
    """(y, dx, gradient) by NumPy, in float64."""
    x, weight, dy = (a.astype(np.float64) for a in (x, weight, dy))
    in_maps = x.shape[3]
    y = np.zeros(dy.shape) + weight[:, 0]
    dx, gradient = np.zeros(x.shape), np.zeros(weight.shape)
    gradient[:, 0] = dy.sum(axis=(0, 1, 2))
    for delta, (h, w), (r, c) in taps(x.shape, dy.shape, kernel, stride, padding):
        columns = slice(1 + delta * in_maps, 1 + (delta + 1) * in_maps)
        y[:, r, c] += x[:, h, w] @ weight[:, columns].T
        dx[:, h, w] += dy[:, r, c] @ weight[:, columns]
        gradient[:, columns] += dy[:, r, c].T @ x[:, h, w]
    return y, dx, gradient


def assert_close(actual, expected):
    """Equal to the rounding of sums of a few hundred terms, relative to the largest result."""
    assert np.isfinite(actual).all()
    precision = np.finfo(actual.dtype).eps * max(1, np.abs(expected).max(initial=0))
    np.testing.assert_allclose(actual, expected, rtol=0, atol=100 * precision)


def unwritten(shape, dtype):
    return np.full(shape, np.nan, dtype)


@targets
@dtypes
@convolutions
def test_conv_forward_is_the_sum_over_taps(shape, dtype, target):
    x, weight, dy = conv_operands(shape, dtype)
    y = unwritten(dy.shape, dtype)
    native.conv_forward(x, weight, y, *shape[5:], target)
    assert_close(y, reference_conv(x, weight, dy, *shape[5:])[0])


@targets
@dtypes
@convolutions
def test_conv_backward_data_is_the_transposed_sum(shape, dtype, target):
    x, weight, dy = conv_operands(shape, dtype)
    dx = unwritten(x.shape, dtype)
    native.conv_backward_data(dy, weight, dx, *shape[5:], target)
    assert_close(dx, reference_conv(x, weight, dy, *shape[5:])[1])


@targets
@dtypes
@convolutions
def test_conv_backward_weights_sums_over_images_and_positions(shape, dtype, target):
    x, weight, dy = conv_operands(shape, dtype)
    out = unwritten(weight.shape, dtype)
    native.conv_backward_weights(x, dy, out, *shape[5:], target)
    assert_close(out, reference_conv(x, weight, dy, *shape[5:])[2])


# maps: height, width, input maps, kernel, padding
FACTORS = [
    (7, 10, 3, 5, 2),
    (6, 5, 33, 3, 1),
    (5, 9, 2, 3, 0),
    (4, 3, 5, 5, 2),
    (3, 5, 1, 5, 3),
    (5, 4, 17, 1, 0),
    (12, 13, 8, 5, 2),
]


def patches(x, kernel, padding):
    """[[x]]_H by NumPy: (M*T, 1 + K*K*J), first column one, in float64."""
    padded = np.pad(x.astype(np.float64), ((0, 0), (padding,) * 2, (padding,) * 2, (0, 0)))
    rows = [
        np.concatenate([[1], image[r : r + kernel, c : c + kernel].ravel()])
        for image in padded
        for r in range(image.shape[0] - kernel + 1)
        for c in range(image.shape[1] - kernel + 1)
    ]
    return np.array(rows)


def patch_gram(x, kernel, padding, target, shards=1):
    sizes = (*x.shape[1:], kernel, padding)
    regions = 0
    for part in np.array_split(x, shards):
        partial = unwritten(native.patch_gram_regions_shape(*sizes), x.dtype)
        native.patch_gram_regions(part, partial, kernel, padding, target)
        regions = regions + partial
    out = unwritten((1 + kernel * kernel * x.shape[3],) * 2, x.dtype)
    native.patch_gram_assemble(regions, out, len(x), *sizes, target)
    return out


@targets
@dtypes
@pytest.mark.parametrize("shape", FACTORS)
def test_patch_gram_is_the_gram_matrix_of_the_patches(shape, dtype, target):
    height, width, maps, kernel, padding = shape
    x = draw((3, height, width, maps), dtype, 1)
    rows = patches(x, kernel, padding)
    out = patch_gram(x, kernel, padding, target)
    assert_close(out, rows.T @ rows)
    np.testing.assert_array_equal(out, out.T)


@targets
def test_patch_gram_regions_add_up_over_shards_larger_than_the_cache(target):
    """71 images, of which some ten fit into the cache, in two shards of unequal size."""
    x = draw((71, 12, 11, 33), np.float64, 1)
    rows = patches(x, 3, 1)
    assert_close(patch_gram(x, 3, 1, target, shards=2), rows.T @ rows)


# height, width, maps, window, stride
POOLINGS = [
    (7, 10, 3, 3, 2),
    (8, 5, 33, 3, 2),
    (4, 6, 16, 2, 2),
    (5, 3, 5, 4, 3),
    (2, 7, 1, 3, 1),
    (9, 8, 2, 3, 3),
]
poolings = pytest.mark.parametrize("shape", POOLINGS)


def windows(height, width, window, stride):
    """(output position, rows, columns) of every clipped window."""

    def spans(length):
        starts = range(0, max(1, length - window + stride), stride)
        return [slice(start, min(start + window, length)) for start in starts]

    for r, rows in enumerate(spans(height)):
        for c, columns in enumerate(spans(width)):
            yield (r, c), rows, columns


def pooling_case(shape, dtype):
    """x with ties (small whole numbers), dy, and the windows."""
    height, width, maps, window, stride = shape
    x = np.random.default_rng(1).integers(-2, 3, (2, height, width, maps)).astype(dtype)
    spans = list(windows(height, width, window, stride))
    rows, columns = spans[-1][0]
    return x, draw((2, rows + 1, columns + 1, maps), dtype, 2), spans


def reference_argmax(x, shape, spans):
    """Offset r*window + c of the first maximum of each window, and the pixel it names."""
    window = shape[3]
    for (r, c), rows, columns in spans:
        for m in range(len(x)):
            for j in range(x.shape[3]):
                patch = x[m, rows, columns, j]
                at = np.unravel_index(patch.argmax(), patch.shape)
                pixel = m, rows.start + at[0], columns.start + at[1], j
                yield (m, r, c, j), at[0] * window + at[1], pixel


@targets
@dtypes
@poolings
def test_max_pool_takes_the_first_maximum_of_every_clipped_window(shape, dtype, target):
    x, dy, spans = pooling_case(shape, dtype)
    y, argmax = unwritten(dy.shape, dtype), np.full(dy.shape, 99, np.uint8)
    native.max_pool(x, y, argmax, *shape[3:], target)
    for output, offset, pixel in reference_argmax(x, shape, spans):
        assert y[output] == x[pixel]
        assert argmax[output] == offset


@targets
@dtypes
@poolings
def test_max_pool_backward_and_tangent_follow_the_maximum(shape, dtype, target):
    x, dy, spans = pooling_case(shape, dtype)
    argmax = np.zeros(dy.shape, np.uint8)
    expected_dx, expected_ry = np.zeros(x.shape), np.zeros(dy.shape)
    rx = draw(x.shape, dtype, 3)
    for output, offset, pixel in reference_argmax(x, shape, spans):
        argmax[output] = offset
        expected_dx[pixel] += dy[output]
        expected_ry[output] = rx[pixel]
    dx, ry = unwritten(x.shape, dtype), unwritten(dy.shape, dtype)
    native.max_pool_backward(dy, argmax, dx, *shape[3:], target)
    native.max_pool_tangent(rx, argmax, ry, *shape[3:], target)
    assert_close(dx, expected_dx)
    np.testing.assert_array_equal(ry, expected_ry)


@targets
@dtypes
def test_a_window_that_names_no_pixel_has_no_tangent_with_the_extension_or_without(dtype, target):
    """A convolution's pool marks those so that the ReLU behind it cuts."""
    rx, argmax = np.arange(1, 9).astype(dtype).reshape(1, 2, 4, 1), np.array([4, 2], np.uint8)
    for maps, rest in ((native, [target]), (numpy_windows, [])):
        ry = np.full((1, 1, 2, 1), 5, dtype)
        maps.max_pool_tangent(rx, argmax.reshape(ry.shape), ry, 2, 2, *rest)
        np.testing.assert_array_equal(ry.ravel(), [0, 7])


@targets
@dtypes
@pytest.mark.parametrize("place", [0, 1, 3])
def test_max_pool_passes_a_nan_on(place, dtype, target):
    x = np.array([3, 1, 7, 2], dtype)
    x[place] = np.nan
    y, argmax = unwritten((1, 1, 1, 1), dtype), np.zeros((1, 1, 1, 1), np.uint8)
    native.max_pool(x.reshape(1, 2, 2, 1), y, argmax, 2, 2, target)
    assert np.isnan(y).all()
    assert argmax.item() == place


@targets
@dtypes
@poolings
def test_avg_pool_divides_by_the_clipped_area(shape, dtype, target):
    x, dy, spans = pooling_case(shape, dtype)
    expected, expected_dx = np.zeros(dy.shape), np.zeros(x.shape)
    for (r, c), rows, columns in spans:
        expected[:, r, c] = x[:, rows, columns].mean(axis=(1, 2), dtype=np.float64)
        area = (rows.stop - rows.start) * (columns.stop - columns.start)
        expected_dx[:, rows, columns] += dy[:, r, c].astype(np.float64)[:, None, None] / area
    y, dx = unwritten(dy.shape, dtype), unwritten(x.shape, dtype)
    native.avg_pool(x, y, *shape[3:], target)
    native.avg_pool_backward(dy, dx, *shape[3:], target)
    assert_close(y, expected)
    assert_close(dx, expected_dx)


# height, width, maps, size, across, power
NORMS = [
    (5, 7, 3, 3, False, 0.75),
    (4, 3, 33, 2, False, 0.6),
    (3, 6, 5, 9, False, 0.75),
    (4, 5, 7, 3, True, 0.75),
    (2, 3, 33, 4, True, 0.5),
    (3, 2, 2, 5, True, 0.75),
]


def neighbourhoods(shape):
    """(M*H*W*J)-square incidence of one image: [n, n'] = 1 where n' is in n's neighbourhood."""
    height, width, maps, size, across, _ = shape
    first, last = -(size // 2), size - 1 - size // 2
    index = np.stack(np.meshgrid(range(height), range(width), range(maps), indexing="ij"), -1)
    index = index.reshape(-1, 3)
    apart = index[None] - index[:, None]
    near = (apart >= first) & (apart <= last)
    if across:
        return ((apart[..., :2] == 0).all(-1) & near[..., 2]).astype(float)
    return (near[..., :2].all(-1) & (apart[..., 2] == 0)).astype(float)


@targets
@dtypes
@pytest.mark.parametrize("shape", NORMS)
def test_response_norm_and_its_derivatives(shape, dtype, target):
    """Against the dense Jacobian: diag(d^-p) - 2 alpha p diag(x d^-p-1) N diag(x)."""
    *image, size, across, power = shape
    alpha = 0.3
    x, dy = draw((2, *image), dtype, 1), draw((2, *image), dtype, 2)
    y, d, dx, ry = (unwritten(x.shape, dtype) for _ in range(4))
    native.response_norm(x, y, d, size, alpha, power, across, target)
    native.response_norm_backward(dy, x, d, dx, size, alpha, power, across, target)
    native.response_norm_tangent(dy, x, d, ry, size, alpha, power, across, target)
    near = neighbourhoods(shape)
    for m in range(2):
        flat, e = x[m].ravel().astype(np.float64), dy[m].ravel().astype(np.float64)
        scale = 1 + alpha * near @ flat**2
        jacobian = (
            np.diag(scale**-power)
            - (2 * alpha * power * flat * scale ** (-power - 1))[:, None] * near * flat
        )
        for actual, expected in (
            (d, scale),
            (y, flat * scale**-power),
            (dx, jacobian.T @ e),
            (ry, jacobian @ e),
        ):
            assert_close(actual[m].ravel(), expected)


def arrays(dtype=np.float32):
    return {
        "x": np.zeros((2, 6, 5, 3), dtype),
        "weight": np.zeros((4, 28), dtype),
        "y": np.zeros((2, 6, 5, 4), dtype),
        "pooled": np.zeros((2, 3, 2, 3), dtype),
        "argmax": np.zeros((2, 3, 2, 3), np.uint8),
    }


def forward(kernel=3, stride=1, padding=1, **replaced):
    a = arrays() | replaced
    native.conv_forward(a["x"], a["weight"], a["y"], kernel, stride, padding)


@pytest.mark.parametrize("name", ["x", "weight", "y"])
def test_what_is_no_array_of_floats_is_refused_by_name(name):
    shape = arrays()[name].shape
    with pytest.raises(TypeError, match=f"{name} must be an array"):
        forward(**{name: [1.0]})
    with pytest.raises(TypeError, match=f"{name} must be float32 or float64"):
        forward(**{name: np.zeros(shape, np.int32)})
    with pytest.raises(ValueError, match=f"{name} must have .* axes"):
        forward(**{name: np.zeros(shape + (1,), np.float32)})
    with pytest.raises(ValueError, match=f"{name} must be C-contiguous"):
        forward(**{name: np.zeros(shape[::-1], np.float32).T})


def test_arrays_of_different_types_are_refused():
    with pytest.raises(TypeError, match="weight must have the number type"):
        forward(weight=np.zeros((4, 28)))


def test_wrong_shapes_are_refused_by_name():
    with pytest.raises(ValueError, match="axis 1 of weight must have length 28, not 27"):
        forward(weight=np.zeros((4, 27), np.float32))
    with pytest.raises(ValueError, match="axis 0 of y must have length 2, not 3"):
        forward(y=np.zeros((3, 6, 5, 4), np.float32))
    a = arrays()
    with pytest.raises(ValueError, match="axis 2 of y must have length 2, not 3"):
        native.max_pool(a["x"], np.zeros((2, 3, 3, 3), np.float32), a["argmax"], 3, 2)
    with pytest.raises(ValueError, match="axis 0 of argmax"):
        native.max_pool(a["x"], a["pooled"], a["argmax"][:1], 3, 2)
    with pytest.raises(ValueError, match="axis 3 of regions"):
        native.patch_gram_regions(a["x"], np.zeros((3, 3, 3, 3, 15), np.float32), 3, 1)
    with pytest.raises(ValueError, match="axis 1 of d"):
        native.response_norm(a["x"], a["x"].copy(), a["x"][:, :5].copy(), 3, 1e-4, 0.75, False)


def test_a_read_only_result_is_refused():
    y = arrays()["y"]
    y.flags.writeable = False
    with pytest.raises(ValueError, match="y must be C-contiguous and writable"):
        forward(y=y)


@pytest.mark.parametrize(
    "sizes, message",
    [
        ({"kernel": 0}, "kernel must be between 1"),
        ({"stride": 0}, "stride must be between 1"),
        ({"padding": -1}, "padding must be between 0"),
        ({"kernel": 9}, "kernel 9 does not fit"),
        ({"padding": 2**40}, "padding must be between"),
    ],
)
def test_impossible_sizes_are_refused(sizes, message):
    with pytest.raises(ValueError, match=message):
        forward(**sizes)


@pytest.mark.parametrize(
    "function", ["conv_forward", "conv_backward_data", "conv_backward_weights"]
)
@pytest.mark.parametrize("maps, outputs", [(2**19, 1), (2, 2**19)])
def test_a_padded_image_beyond_all_memory_is_refused(function, maps, outputs):
    x, y = np.zeros((1, 1, 1, maps)), np.zeros((1, 3, 3, outputs))
    weight = np.zeros((outputs, 1 + maps))
    given = {
        "conv_forward": (x, weight, y),
        "conv_backward_data": (y, weight, x),
        "conv_backward_weights": (x, y, weight),
    }
    with pytest.raises(ValueError, match=f"{function}: an image of 1 x 1 x {2**19} with padding"):
        getattr(native, function)(*given[function], 1, 2**20, 2**20)


def test_a_kernel_whose_size_is_no_number_is_refused():
    """2^20 * 2^20 * 2^24 is zero in 64 bits, which would go with a weight of no taps."""
    x, weight, y = np.zeros((1, 1, 1, 2**24), np.float32), *np.zeros((2, 1, 1), np.float32)
    with pytest.raises(ValueError, match="conv_forward: an image of 1 x 1 x 16777216 with padding"):
        native.conv_forward(x, weight, y.reshape(1, 1, 1, 1), 2**20, 2**20, 2**19)


def test_other_bad_arguments_are_refused():
    a = arrays()
    with pytest.raises(TypeError, match="takes 6 arguments"):
        native.conv_forward(a["x"], a["weight"], a["y"], 3, 1)
    with pytest.raises(TypeError):
        forward(kernel=3.5)
    with pytest.raises(ValueError, match="'mmx' is not among"):
        native.conv_forward(a["x"], a["weight"], a["y"], 3, 1, 1, "mmx")
    with pytest.raises(TypeError, match="argmax must be uint8"):
        native.max_pool(a["x"], a["pooled"], a["argmax"].astype(np.int8), 3, 2)
    with pytest.raises(ValueError, match="size must be between 1 and 16"):
        native.max_pool(a["x"], a["pooled"], a["argmax"], 17, 2)
    with pytest.raises(ValueError, match="stride must be between 1 and 3, not 4"):
        native.avg_pool(a["x"], a["pooled"], 3, 4)
    with pytest.raises(ValueError, match="x has no pixels"):
        native.avg_pool(np.zeros((2, 0, 5, 3), np.float32), a["pooled"], 3, 2)


def test_the_best_instruction_set_is_the_default():
    a = arrays()
    x, weight = draw(a["x"].shape, np.float32, 1), draw(a["weight"].shape, np.float32, 2)
    chosen, named = a["y"].copy(), a["y"].copy()
    native.conv_forward(x, weight, chosen, 3, 1, 1)
    native.conv_forward(x, weight, named, 3, 1, 1, native.targets[0])
    np.testing.assert_array_equal(chosen, named)
    assert native.targets[-1] == "baseline"
    assert chosen.any()


def test_shards_on_threads_write_the_same_images():
    """Many small calls at once on two threads; a race would show as a difference."""
    x, weight, dy = conv_operands((24, 7, 10, 3, 5, 5, 1, 2), np.float32)
    together, apart = np.zeros_like(dy), np.zeros_like(dy)
    native.conv_forward(x, weight, together, 5, 1, 2)
    with ThreadPoolExecutor(2) as threads:
        calls = [
            threads.submit(native.conv_forward, x[m : m + 1], weight, apart[m : m + 1], 5, 1, 2)
            for m in range(24)
        ]
    assert all(call.result() is None for call in calls)
    np.testing.assert_array_equal(apart, together)


def test_an_extension_of_other_sources_is_left_aside_with_a_warning(monkeypatch, recwarn):
    assert extension.load() is native and not recwarn
    monkeypatch.setattr(native, "SOURCES_CRC", native.SOURCES_CRC ^ 1)
    with pytest.warns(RuntimeWarning, match="other sources .* pip install -e ."):
        assert extension.load() is None
    monkeypatch.delattr(native, "SOURCES_CRC")
    with pytest.warns(RuntimeWarning):
        assert extension.load() is None


def test_no_images_give_zero_sums():
    x, dy = np.zeros((0, 6, 5, 3), np.float32), np.zeros((0, 6, 5, 4), np.float32)
    out = unwritten((4, 28), np.float32)
    native.conv_backward_weights(x, dy, out, 3, 1, 1)
    np.testing.assert_array_equal(out, 0)
    np.testing.assert_array_equal(patch_gram(x, 3, 1, native.targets[0]), 0)


@targets
@dtypes
@pytest.mark.parametrize("count, first", [(1, 0), (7, 2), (256, 0), (259, 1021), (0, 5)])
def test_fill_uniforms_draws_the_numbers_of_philox(count, first, dtype, target):
    out = unwritten((count,), dtype)
    native.fill_uniforms(out, 2**32 - 1, philox.DROPOUT, 2**33 + 5, 4, first, target)
    expected = philox.uniforms(2**32 - 1, philox.DROPOUT, 2**33 + 5, first + count, 4)[first:]
    np.testing.assert_array_equal(out, expected)


@targets
def test_fill_uniforms_goes_on_beyond_32_bits_of_a_number(target):
    out, expected = unwritten((9,), np.float32), np.empty(9, np.float32)
    native.fill_uniforms(out, 3, philox.DROPOUT, 5, 4, 2**33 + 6, target)
    philox.fill_uniforms(expected, 3, philox.DROPOUT, 5, 4, 2**33 + 6)
    assert np.isfinite(out).all() and expected.any()
    np.testing.assert_array_equal(out, expected)


@pytest.mark.parametrize("place, value", [(1, 2**32), (2, -1), (3, 2**63), (5, -1)])
def test_fill_uniforms_refuses_what_is_no_word_of_a_key_or_counter(place, value):
    arguments = [np.zeros(3), 0, 0, 0, 0, 0]
    arguments[place] = value
    with pytest.raises((ValueError, OverflowError)):
        native.fill_uniforms(*arguments)


def test_uniforms_from_the_end_of_their_range_are_refused():
    """They come in blocks, the last of which would end beyond all numbers."""
    out = np.zeros(3)
    with pytest.raises(ValueError, match="first must be between 0 and 4611686018427387903, not"):
        native.fill_uniforms(out, 0, 0, 0, 0, 2**63 - 1 - len(out))
    native.fill_uniforms(out, 0, 0, 0, 0, 2**62 - 1)
    assert np.isfinite(out).all() and out.any()
