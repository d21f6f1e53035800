"""The array primitives on a GPU: launchers of `kernels/*.cu`. CuPy is imported when one is used."""

from kfcnet.ops.cuda.cuda_ops import CudaOps, is_available

__all__ = ["CudaOps", "is_available"]
