"""A network as an ONNX model, where `onnx` is installed; nothing else imports this."""

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from kfcnet.layers import (
    AvgPool,
    BatchNorm,
    Conv2d,
    Dense,
    Dropout,
    Layer,
    MaxPool,
    ReLU,
    ResponseNorm,
    ScaleShift,
)
from kfcnet.network import Network
from kfcnet.ops.cpu.windows import window_areas
from kfcnet.training.exports.arrays import layer_arrays

OPSET = 17
IR_VERSION = 8  # the first with this opset: older runtimes read it too


def to_onnx(network: Network, mean: NDArray, input_scale: float) -> onnx.ModelProto:
    """A model from `images` (M, H, W, C), float32 pixels as the data set has them, to `logits`.

    mean (H, W, C) and input_scale: inputs are (images - mean) / input_scale. Raises ValueError
    naming a layer that ONNX has nothing for: a custom one.
    """
    graph = _Graph()
    x = graph.add("Sub", "images", graph.constant(mean))
    x = graph.add("Div", x, graph.constant(np.float32(input_scale)))
    x = graph.add("Transpose", x, perm=[0, 3, 1, 2])
    for layer in network.layers:
        x = _layer(graph, layer, x)
    graph.nodes[-1].output[0] = "logits"
    images = helper.make_tensor_value_info("images", TensorProto.FLOAT, ["M", *mean.shape])
    classes = network.layers[-1].output_shape
    logits = helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["M", *classes])
    made = helper.make_graph(graph.nodes, "kfcnet", [images], [logits], graph.constants)
    opset = [helper.make_opsetid("", OPSET)]
    model = helper.make_model(made, producer_name="kfcnet", opset_imports=opset)
    model.ir_version = IR_VERSION
    onnx.checker.check_model(model)
    return model


class _Graph:
    """Nodes in order and their constants, with names by number."""

    def __init__(self):
        self.nodes, self.constants = [], []

    def constant(self, array):
        """The name of a constant; numbers become float32, unless they are integers."""
        array = np.asarray(array)
        if array.dtype.kind == "f":
            array = array.astype(np.float32)
        name = f"constant{len(self.constants)}"
        self.constants.append(numpy_helper.from_array(np.ascontiguousarray(array), name))
        return name

    def add(self, kind, *inputs, **attributes):
        """The name of a node's output."""
        output = f"value{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, list(inputs), [output], **attributes))
        return output


def _layer(graph: _Graph, layer: Layer, x: str) -> str:
    arrays = layer_arrays(layer)
    if isinstance(layer, Dense):
        if len(layer.image_shape) == 3:
            x = graph.add("Transpose", x, perm=[0, 2, 3, 1])
        x = graph.add("Flatten", x, axis=1)
        weight = arrays["weight"].reshape(len(arrays["bias"]), -1)
        return graph.add(
            "Gemm", x, graph.constant(weight), graph.constant(arrays["bias"]), transB=1
        )
    if isinstance(layer, Conv2d):
        _, stride, padding = layer.window
        weight = graph.constant(arrays["weight"].transpose(0, 3, 1, 2))
        bias = graph.constant(arrays["bias"])
        return graph.add("Conv", x, weight, bias, strides=[stride] * 2, pads=[padding] * 4)
    if isinstance(layer, ReLU):
        return graph.add("Relu", x)
    if isinstance(layer, MaxPool):
        return _pool(graph, layer, x, "MaxPool", np.finfo(np.float32).min)
    if isinstance(layer, AvgPool):
        # Runtimes disagree about the mean of a window that hangs over: its zeros are counted here,
        # and the product undoes that.
        size, stride = layer.window
        sides = layer.input_shape[:2], layer.output_shape[:2]
        areas = window_areas(*sides, size, stride, np.float64)[..., 0]
        x = _pool(graph, layer, x, "AveragePool", 0.0)
        return graph.add("Mul", x, graph.constant(size**2 / areas))
    if isinstance(layer, ResponseNorm):
        return _response_norm(graph, layer, x)
    if isinstance(layer, BatchNorm):
        if not arrays:
            raise ValueError(f"{layer.name}: its statistics for evaluation were never measured")
        mean, inv_std = arrays["mean"], arrays["inv_std"]
        return _scale_shift(graph, layer, x, inv_std, -mean * inv_std)
    if isinstance(layer, ScaleShift):
        return _scale_shift(graph, layer, x, arrays["scale"], arrays["shift"])
    if isinstance(layer, Dropout):
        return graph.add("Identity", x)
    raise ValueError(f"{layer.name}: ONNX has nothing for a layer {type(layer).__name__}")


def _pool(graph, layer, x, kind, value):
    """Windows over an image that is made so large, with `value`, that none hangs over."""
    size, stride = layer.window
    wider = [
        max(0, (pooled - 1) * stride + size - side)
        for pooled, side in zip(layer.output_shape[:2], layer.input_shape[:2], strict=True)
    ]
    pads = np.array([0, 0, 0, 0, 0, 0, *wider], np.int64)
    x = graph.add("Pad", x, graph.constant(pads), graph.constant(np.float32(value)))
    return graph.add(kind, x, kernel_shape=[size] * 2, strides=[stride] * 2)


def _response_norm(graph, layer, x):
    """x (1 + alpha * sum of x^2 over the neighbourhood)^-power; the sum is a mean, scaled."""
    size, alpha, power, across = layer.parameters
    before, after = size // 2, size - 1 - size // 2
    mean = graph.add("Mul", x, x)
    sides = [1, 1, size, size]
    if across:  # the maps become the rows of a picture that is one pixel wide
        H, W, J = layer.input_shape
        mean = graph.add("Transpose", mean, perm=[0, 2, 3, 1])
        mean = graph.add("Reshape", mean, graph.constant(np.array([-1, 1, J, 1])))
        sides = [1, 1, size, 1]
    pads = [0, 0, *((before if side > 1 else 0) for side in sides[2:])]
    pads += [0, 0, *((after if side > 1 else 0) for side in sides[2:])]
    zero = graph.constant(np.float32(0))
    mean = graph.add("Pad", mean, graph.constant(np.array(pads, np.int64)), zero)
    mean = graph.add("AveragePool", mean, kernel_shape=sides[2:], strides=[1, 1])
    if across:
        mean = graph.add("Reshape", mean, graph.constant(np.array([-1, H, W, J])))
        mean = graph.add("Transpose", mean, perm=[0, 3, 1, 2])
    count = size if across else size**2
    d = graph.add("Mul", mean, graph.constant(np.float32(alpha * count)))
    d = graph.add("Add", d, graph.constant(np.float32(1)))
    d = graph.add("Pow", d, graph.constant(np.float32(-power)))
    return graph.add("Mul", x, d)


def _scale_shift(graph, layer, x, scale, shift):
    shape = (-1, 1, 1) if len(layer.output_shape) == 3 else (-1,)
    x = graph.add("Mul", x, graph.constant(scale.reshape(shape)))
    return graph.add("Add", x, graph.constant(shift.reshape(shape)))
