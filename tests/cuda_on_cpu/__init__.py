"""Runs the CUDA kernels without a GPU: see README.md."""

from cuda_on_cpu.cuda_cpu import Kernel, KernelError, Library, missing
from cuda_on_cpu.orders import ORDERS, launch_in_all_orders, run_in_orders
from cuda_on_cpu.runtime import CpuRuntime

__all__ = [
    "ORDERS",
    "CpuRuntime",
    "Kernel",
    "KernelError",
    "Library",
    "launch_in_all_orders",
    "missing",
    "run_in_orders",
]
