"""The array primitives: the same functions on every device, chosen once.

`layers`, `losses`, `curvature` and `optimizers` are written against such an object and know no
other way to touch an array. `CpuOps` is the definition; `CudaOps` launches `kernels/*.cu`.
"""

from kfcnet.ops.cpu import CpuOps


def get_ops(device="auto", dtype="float32", shards=2, native="auto"):
    """The primitives of a device.

    device: "cpu", "cuda", or "auto" (the GPU where there is one). dtype: "float32", or "float64" on
    the CPU. shards: threads that a mini-batch is split over on the CPU; a result depends on it, so
    it belongs to the configuration, not to the machine. native: "auto", "on" or "off", whether
    the C extension is used on the CPU.

    Raises ValueError for an unknown name, and DeviceError saying what is missing where `device` or
    `native` asks for something that is not there.
    """
    if device not in ("auto", "cpu", "cuda"):
        raise ValueError(f"device: {device!r} is not one of auto, cpu, cuda")
    if device != "cpu":
        from kfcnet.ops import cuda

        if device == "cuda" or cuda.is_available():
            if dtype != "float32":
                raise ValueError(f"dtype: the CUDA kernels work in float32, not in {dtype}")
            return cuda.CudaOps()
    return CpuOps(dtype=dtype, shards=shards, native=native)
