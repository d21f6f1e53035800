"""Weights to and from NumPy, and a network for PyTorch and ONNX: the same logits everywhere."""

import numpy as np
import pytest
from networks import EVERY_LAYER, INPUT_SHAPE, network

import kfcnet
from kfcnet.layers import Dense, Layer
from kfcnet.network import build_network
from kfcnet.ops.cpu import CpuOps
from kfcnet.training.exports import from_arrays, to_arrays

pytestmark = pytest.mark.filterwarnings("ignore::kfcnet.training.errors.TrainingWarning")

NORMALISED = [
    dict(layer="conv", name="conv1", filters=3, kernel=3, stride=2, padding=1),
    dict(layer="batch_norm", name="bn", affine=True),
    dict(layer="relu"),
    dict(layer="response_norm", size=2, scale=0.5, power=0.6),
    dict(layer="avg_pool", size=5, stride=4),  # larger than the image
    dict(layer="dense", name="dense1", units=5),
    dict(layer="batch_norm", name="bn2", affine=True),
    dict(layer="response_norm", size=2, scale=0.5, power=0.6, across=True),
    dict(layer="dense", name="dense2", units=3),
]
NETWORKS = {
    "every layer": EVERY_LAYER,
    "batch normalisation": [s for i, s in enumerate(NORMALISED) if i != 7],
    "pools that hang over": [
        dict(layer="max_pool", size=4, stride=3),
        dict(layer="response_norm", size=2, scale=0.5, power=0.75, across=True),
        dict(layer="response_norm", size=4, scale=0.5, power=0.75, across=True),
        dict(layer="avg_pool", size=3, stride=2),
        dict(layer="dense", units=4),
    ],
    "pools inside": [
        dict(layer="max_pool", size=3, stride=2, clipped=False),
        dict(layer="avg_pool", size=2, stride=2, clipped=False),
        dict(layer="dense", units=4),
    ],
    "one dense layer": [dict(layer="dense", units=4)],
}
MEAN = 120 + np.arange(np.prod(INPUT_SHAPE), dtype=np.float32).reshape(INPUT_SHAPE) / 7
SCALE = 64.0


def trained(name, ops=None):
    """(a network with statistics of its own, raw images float32 (6, 7, 6, 2), their logits)."""
    rng = np.random.default_rng(5)
    built = network(ops or CpuOps("float32", shards=1), NETWORKS[name])
    images = rng.integers(0, 256, (6, *INPUT_SHAPE)).astype(np.float32)
    inputs = built.ops.asarray((images - MEAN) / SCALE)
    if built.has_batch_statistics:
        built.measure_statistics(inputs)
    return built, images, built.forward(inputs)


def assert_same_logits(found, expected):
    found = np.asarray(found)
    assert found.shape == expected.shape and np.isfinite(found).all()
    assert np.abs(found - expected).max() < 1e-5 * max(1, np.abs(expected).max())


@pytest.mark.parametrize("name", NETWORKS)
def test_arrays_carry_a_network_over(name):
    built, images, logits = trained(name)
    other = build_network(NETWORKS[name], INPUT_SHAPE, built.ops, seed=99)
    from_arrays(other, to_arrays(built))
    assert np.array_equal(other.theta, built.theta)
    assert np.array_equal(other.forward(built.ops.asarray((images - MEAN) / SCALE)), logits)


def test_arrays_are_named_and_shaped_as_their_table_says():
    built, *_ = trained("batch normalisation")
    shapes = {name: array.shape for name, array in to_arrays(built).items()}
    assert shapes == {
        "conv1.weight": (3, 3, 3, 2), "conv1.bias": (3,), "bn.mean": (3,), "bn.inv_std": (3,),
        "bn_affine.scale": (3,), "bn_affine.shift": (3,), "dense1.weight": (5, 1, 1, 3),
        "dense1.bias": (5,), "bn2.mean": (5,), "bn2.inv_std": (5,), "bn2_affine.scale": (5,),
        "bn2_affine.shift": (5,), "dense2.weight": (3, 5), "dense2.bias": (3,),
    }  # fmt: skip


def test_a_convolution_of_the_arrays_by_plain_loops_is_the_layer():
    built, *_ = trained("every layer")
    arrays, layer = to_arrays(built), built.weighted[0]
    x = np.random.default_rng(1).standard_normal((2, *INPUT_SHAPE)).astype(np.float32)
    y = layer.ops.conv_forward(x, layer.weight, *layer.window)  # the layer may pool as well
    padded = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    weight, bias = arrays["conv1.weight"], arrays["conv1.bias"]
    expected = np.zeros_like(y)
    for row in range(7):
        for column in range(6):
            patch = padded[:, row : row + 3, column : column + 3]
            expected[:, row, column] = np.einsum("mrcj,ircj->mi", patch, weight) + bias
    np.testing.assert_allclose(y, expected, atol=1e-5)


def test_arrays_carry_a_network_over_whose_statistics_were_never_measured():
    ops = CpuOps("float32", shards=1)
    first, second = (
        build_network(NETWORKS["batch normalisation"], INPUT_SHAPE, ops, seed=seed)
        for seed in (1, 2)
    )
    arrays = to_arrays(first)
    from_arrays(second, arrays)
    assert np.array_equal(second.theta, first.theta) and to_arrays(second).keys() == arrays.keys()
    measured, *_ = trained("batch normalisation")
    for other, given in ((measured, arrays), (second, arrays | {"bn.mean": np.ones(3)})):
        with pytest.raises(ValueError, match="bn.inv_std is missing"):
            from_arrays(other, given)


@pytest.mark.parametrize("dtype", [np.int64, np.uint8, np.float64])
def test_numbers_of_any_kind_are_weights(dtype):
    built, *_ = trained("one dense layer")
    from_arrays(built, to_arrays(built) | {"dense1.bias": np.array([1, 2, 3, 4], dtype)})
    bias = to_arrays(built)["dense1.bias"]
    assert bias.dtype == np.float32 and bias.tolist() == [1, 2, 3, 4]


def test_arrays_are_copies():
    built, *_ = trained("every layer")
    before = built.theta.copy()
    for array in to_arrays(built).values():
        array += 1
    assert np.array_equal(built.theta, before)


@pytest.mark.parametrize("change, message", [
    (lambda a: a.pop("conv2.bias"), "conv2.bias is missing; it is of this network: conv1.weight,"),
    (lambda a: a.update(other=np.zeros(3)), "other is no array of this network"),
    (lambda a: a.update({"conv1.bias": np.zeros(4)}), r"conv1.bias has shape \(4,\), not \(3,\)"),
    (lambda a: a.update({"conv1.bias": np.full(3, np.nan)}), "conv1.bias holds what is no finite"),
    (lambda a: a.update({"conv1.bias": np.full(3, 1e300)}), "no finite number in float32"),
    (lambda a: a.update({"conv1.bias": np.array(["a", "b", "c"])}), "no finite number"),
])  # fmt: skip
def test_wrong_arrays_are_named_and_change_nothing(change, message):
    built, *_ = trained("every layer")
    before, arrays = built.theta.copy(), to_arrays(built)
    change(arrays)
    with pytest.raises(ValueError, match=message):
        from_arrays(built, arrays)
    assert np.array_equal(built.theta, before)


@pytest.mark.parametrize("name", NETWORKS)
def test_pytorch_computes_the_same_logits(name):
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    from kfcnet.training.exports.torch_module import to_torch

    built, images, logits = trained(name)
    module = to_torch(built, MEAN, SCALE)
    for pixels in (images, images.astype(np.uint8)):
        assert_same_logits(module(torch.from_numpy(pixels)).detach().numpy(), logits)
    assert sum(p.numel() for p in module.parameters()) >= len(built.theta)


@pytest.mark.parametrize("name", NETWORKS)
def test_onnx_computes_the_same_logits(name):
    onnx = pytest.importorskip("onnx", reason="onnx is not installed")
    from onnx.reference import ReferenceEvaluator

    from kfcnet.training.exports.onnx_model import to_onnx

    built, images, logits = trained(name)
    model = onnx.load_from_string(to_onnx(built, MEAN, SCALE).SerializeToString())
    for part in (images, images[:1]):  # the number of images is open
        [found] = ReferenceEvaluator(model).run(None, {"images": part})
        assert_same_logits(found, logits[: len(part)])


class Doubled(Layer):
    def forward(self, x, mode):
        return 2 * x

    def backward(self, dy):
        return 2 * dy

    tangent = backward


@pytest.mark.parametrize("library", ["torch", "onnx"])
def test_what_has_no_counterpart_is_refused_by_its_name(library):
    pytest.importorskip(library, reason=f"{library} is not installed")
    if library == "torch":
        from kfcnet.training.exports.torch_module import to_torch as export
    else:
        from kfcnet.training.exports.onnx_model import to_onnx as export
    ops = CpuOps("float32", shards=1)
    own = dict(layer="custom", type=Doubled, settings={})
    with pytest.raises(ValueError, match="custom1: .* layer .*Doubled"):
        export(build_network([own, *NETWORKS["one dense layer"]], INPUT_SHAPE, ops), MEAN, SCALE)
    unmeasured = build_network(NETWORKS["batch normalisation"], INPUT_SHAPE, ops)
    with pytest.raises(ValueError, match="bn: its statistics for evaluation were never measured"):
        export(unmeasured, MEAN, SCALE)


@pytest.fixture
def run(rng):
    images = rng.integers(0, 256, (40, 6, 5), np.uint8)
    labels = (images.mean(axis=(1, 2)) > 127).astype(int)
    layers = [{"layer": "conv", "filters": 3, "kernel": 3}, {"layer": "relu"}, Dense]
    return images, kfcnet.fit(images, labels, layers, "sgd", epochs=1, device="cpu")


def test_a_run_gives_its_weights_and_takes_others(run, tmp_path):
    images, fitted = run
    np.savez(tmp_path / "weights.npz", **fitted.to_arrays())
    with np.load(tmp_path / "weights.npz") as file:
        arrays = dict(file)
    before = fitted.logits(images)
    again = fitted.from_arrays(arrays)
    assert np.array_equal(again.logits(images), before)
    arrays["dense1.bias"] += [7, 0]
    other = fitted.from_arrays(arrays).logits(images)
    np.testing.assert_allclose(other, before + [7, 0], rtol=1e-5, atol=1e-5)
    assert np.array_equal(fitted.logits(images), before)
    assert not hasattr(again, "save")  # it would copy the run, which has other weights


def test_a_run_is_given_to_pytorch(run):
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    images, fitted = run
    module = fitted.to_torch()
    assert not module.training
    logits = module(torch.from_numpy(images[..., None])).detach().numpy()
    assert_same_logits(logits, fitted.logits(images))


def test_a_run_is_written_for_onnx(run, tmp_path):
    onnx = pytest.importorskip("onnx", reason="onnx is not installed")
    from onnx.reference import ReferenceEvaluator

    images, fitted = run
    fitted.to_onnx(tmp_path / "run.onnx")
    session = ReferenceEvaluator(onnx.load(tmp_path / "run.onnx"))
    [logits] = session.run(["logits"], {"images": images[..., None].astype(np.float32)})
    assert_same_logits(logits, fitted.logits(images))


@pytest.mark.parametrize("library, method", [("torch", "to_torch"), ("onnx", "to_onnx")])
def test_without_the_library_the_way_out_is_said(run, monkeypatch, library, method):
    import sys

    monkeypatch.setitem(sys.modules, library, None)
    for name in ("kfcnet.training.exports.torch_module", "kfcnet.training.exports.onnx_model"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    arguments = ["x.onnx"] if library == "onnx" else []
    with pytest.raises(ImportError, match=f"{method} needs .*: pip install {library}"):
        getattr(run[1], method)(*arguments)
