"""The array primitives, the same functions on every device; `primitives.py` is their contract."""

import logging
from functools import cache

from kfcnet.ops.cpu import CpuOps, has_extension
from kfcnet.ops.errors import DeviceError
from kfcnet.ops.primitives import Primitives
from kfcnet.ranks import Alone, Ranks, is_of_all, process_of

logger = logging.getLogger(__name__)

TENSOR_CORES = {"auto": None, "on": True, "off": False}


def get_ops(
    device: str = "auto",
    dtype: str = "float32",
    shards: int = 2,
    native: str = "auto",
    tensor_cores: str = "auto",
    ranks: Ranks | None = None,
) -> Primitives:
    """The primitives of a device.

    device: "cpu", "cuda", or "auto" (the GPU where there is one that can be used; a notice says
    why one that is there cannot). dtype: "float32", or "float64" on
    the CPU. shards: threads that a mini-batch is split over on the CPU; a result depends on it, so
    it belongs to the configuration, not to the machine. native: "auto", "on" or "off", whether
    the C extension is used on the CPU. tensor_cores: the same of a GPU's, for TF32 products.
    ranks: the processes that share a mini-batch, by default this one alone; all of them call this,
    and have the same device.

    Raises ValueError for an unknown name, and DeviceError saying what is missing where `device`,
    `native` or `tensor_cores` asks for something that is not there.
    """
    ranks = ranks or Alone()
    if device not in ("auto", "cpu", "cuda"):
        raise ValueError(f"device: {device!r} is not one of auto, cpu, cuda")
    if tensor_cores not in TENSOR_CORES:
        raise ValueError(f"ops.tensor_cores: {tensor_cores!r} is not one of auto, on, off")
    if device != "cpu":
        from kfcnet.ops import cuda

        if device == "cuda" or any(ranks.allgather(cuda.is_available())):
            if dtype != "float32":
                raise ValueError(f"dtype: the CUDA kernels work in float32, not in {dtype}")
            try:
                ops = cuda.CudaOps(tensor_cores=TENSOR_CORES[tensor_cores], ranks=ranks)
            except DeviceError as error:
                is_of_one = ranks.count > 1 and not is_of_all(error)
                if device == "cuda" or is_of_one:  # the others may have their GPUs
                    raise
                _say_fallback(process_of(error) + str(error))
            else:
                ranks.agreed(lambda: _check_tensor_cores(ops))
                return ops
    return ranks.agreed(lambda: CpuOps(dtype=dtype, shards=shards, native=native, ranks=ranks))


def _check_tensor_cores(ops):
    if ops.tensor_cores and not ops.runtime.tensor_cores:
        raise DeviceError(
            "ops.tensor_cores is on, but TF32 needs compute capability 8.0: "
            "set ops.tensor_cores=auto, or use another GPU"
        )


@cache
def _say_fallback(reason):
    logger.warning("The device auto is the CPU, for the GPU cannot be used. %s", reason)


def which_device(ops: Primitives) -> str:
    """A line that names the device, for a user who left the choice open, and what would help it."""
    line = f"device: {ops.name}, {ops.describe()['processor']}"
    if isinstance(ops, CpuOps) and not has_extension():
        line += (
            "; without the C extension, which takes about half of the time: install kfcnet "
            "again where there is a C compiler"
        )
    return line
