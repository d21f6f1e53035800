"""The array primitives on the CPU, over NumPy, with an optional C extension."""

from kfcnet.ops.cpu.cpu_ops import CpuOps, has_extension

__all__ = ["CpuOps", "has_extension"]
