"""A network's weights as NumPy arrays, and a network as PyTorch's module or as an ONNX model."""

from kfcnet.training.exports.arrays import from_arrays, to_arrays

__all__ = ["from_arrays", "to_arrays"]
