"""Runs the CUDA kernels without a GPU: see README.md."""

from cuda_on_cpu.cuda_cpu import Kernel, KernelError, Library, missing
from cuda_on_cpu.orders import ORDERS, launch_in_all_orders, run_in_orders

__all__ = ["ORDERS", "Kernel", "KernelError", "Library", "launch_in_all_orders", "missing",
           "run_in_orders"]
