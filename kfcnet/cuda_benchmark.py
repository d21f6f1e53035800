"""How fast a GPU runs each primitive of the training steps, and the steps, and what it could do.

Every primitive is timed as it is called in a step: many times in one captured graph, over several
sets of arrays so that the caches do not keep them, the median of many replays. Bytes are those of
the arrays that go in and out, operations those that the formula needs.
"""

import math
import statistics
import time

from kfcnet.benchmark import example_batch, own_optimizer
from kfcnet.config import load_config

CACHE = 128 * 2**20  # bytes: more than the caches hold
REPLAYS = 30
NOT_TIMED = {"asarray", "to_numpy", "empty", "zeros", "copy", "place", "describe", "spd_inverse",
             "counter", "scalar", "write", "program", "begin", "eigh"}


class Calls:
    """Array primitives that note how they are called: `noted` has each different call once."""

    def __init__(self, ops):
        self._ops, self.noted = ops, {}

    def __getattr__(self, name):
        value = getattr(self._ops, name)
        if name in NOT_TIMED or not callable(value):
            return value

        def call(*args, **kwargs):
            result = value(*args, **kwargs)
            made = Call(self._ops, name, args, kwargs, result)
            self.noted.setdefault(made.label, made)
            return result

        return call


class Call:
    """One call of a primitive, to be repeated."""

    def __init__(self, ops, name, args, kwargs, result):
        self.ops, self.name, self.args, self.kwargs = ops, name, args, kwargs
        results = result if isinstance(result, tuple) else (result,)
        arrays = {id(a): a for a in (*args, *kwargs.values(), *results) if self._is_array(a)}
        self.bytes = sum(array.nbytes for array in arrays.values())
        self.operations = operations(name, args, kwargs, result)
        self.label = " ".join([name, *map(self._text, (*args, *kwargs.values()))])

    def _is_array(self, value):
        return isinstance(value, self.ops.runtime.array_type)

    def _text(self, value):
        return "x".join(map(str, value.shape)) if self._is_array(value) else f"{value}"

    def _copy(self, value):
        return self.ops.runtime.copy(value) if self._is_array(value) else value

    def seconds(self, replays=REPLAYS):
        """Median time of one call."""
        count = max(1, min(16, math.ceil(CACHE / max(self.bytes, 1))))
        sets = [(list(map(self._copy, self.args)),
                 {key: self._copy(value) for key, value in self.kwargs.items()})
                for _ in range(count)]
        method = getattr(self.ops, self.name)

        def repeat():
            for args, kwargs in sets:
                method(*args, **kwargs)

        return timed(self.ops, self.ops.program(repeat), replays) / count

    def row(self, replays=REPLAYS):
        seconds = self.seconds(replays)
        return {"call": self.label, "microseconds": 1e6 * seconds,
                "TFLOP_s": self.operations / seconds / 1e12, "GB_s": self.bytes / seconds / 1e9}


def operations(name, args, kwargs, result):
    """Arithmetic operations of a product, a multiply-add being two; 0 for what memory limits."""
    if name == "conv_forward":
        return 2 * result.size * args[1].shape[1]
    if name == "conv_backward_data":
        return 2 * args[0].size * args[1].shape[1]
    if name == "conv_backward_weights":
        return 2 * args[1].size * kwargs["out"].shape[1]
    if name == "matmul":
        return 2 * result.size * args[0].shape[0 if kwargs.get("transpose_a") else 1]
    if name == "gram":
        return args[0].shape[0] * args[0].shape[1] * (args[0].shape[1] + 1)
    if name == "patch_gram":  # the upper triangle of the product of patches with themselves
        (M, H, W, _), (_, stride, _) = args[0].shape, args[1:4]
        P = len(kwargs["out"])
        return M * (H // stride) * (W // stride) * P * (P + 1)
    return 0


def timed(ops, function, repeats):
    """Median seconds of a call, between events on the device; two calls go before."""
    runtime = ops.runtime
    for _ in range(2):
        function()
    marks = [runtime.mark()]
    for _ in range(repeats):
        function()
        marks.append(runtime.mark())
    runtime.synchronize()
    return statistics.median(runtime.seconds_between(a, b)
                             for a, b in zip(marks, marks[1:], strict=False))


def ceilings(ops, megabytes=1024, side=8192):
    """What the device reaches in the same run: a copy, and the library's matrix products."""
    runtime = ops.runtime
    source, target = ops.zeros(megabytes * 2**18), ops.zeros(megabytes * 2**18)
    seconds = timed(ops, lambda: runtime.copy_into(target, source), 20)
    found = {"copy_GB_s": 2 * source.nbytes / seconds / 1e9}
    a, b, c = (ops.zeros((side, side)) for _ in range(3))
    for name, tensor_cores in (("fp32_TFLOP_s", False), ("tf32_TFLOP_s", True)):
        if tensor_cores <= runtime.tensor_cores:
            seconds = timed(ops, lambda t=tensor_cores: runtime.library_product(a, b, c, t), 10)
            found[name] = 2 * side**3 / seconds / 1e12
    return found


def primitive_rows(ops, config, replays=REPLAYS):
    """A row for every different call of one step of a configuration, statistics included."""
    calls = Calls(ops)
    optimizer = own_optimizer(config, calls)
    batch = example_batch(ops, config.optimizer.batch_size)
    optimizer.prepare([batch])
    for _ in range(getattr(config.optimizer, "statistics_period", 1)):
        optimizer.step(batch)
    return [call.row(replays) for call in calls.noted.values()]


def step_row(ops, config, name, rounds=5):
    """Milliseconds and images a second of whole steps, over full periods of their parts."""
    M, optimizer = config.optimizer.batch_size, own_optimizer(config, ops)
    batch = example_batch(ops, M)
    optimizer.prepare([batch])
    period = getattr(config.optimizer, "inverse_period", 20)
    taken = []
    for _ in range(2 + rounds):
        start = time.perf_counter()
        for _ in range(period):
            optimizer.step(batch)
        ops.runtime.synchronize()
        taken.append((time.perf_counter() - start) / period)
    median = statistics.median(taken[2:])
    return {"step": name, "batch": M, "milliseconds": 1e3 * median, "images_per_second": M / median}


def torch_rows(ops, config, device="cuda"):
    """Rows of PyTorch's step and of its convolutions; none where PyTorch has no such device."""
    try:
        import torch
    except ImportError:
        return [], []
    if device == "cuda" and not torch.cuda.is_available():
        return [], []
    from kfcnet import torch_gpu

    M, batch = config.optimizer.batch_size, example_batch(ops, config.optimizer.batch_size)
    network = own_optimizer(config, ops).network
    steps = torch_gpu.step_rows(config, network, ops.to_numpy(batch.inputs), batch.targets, device)
    tf32 = bool(ops.tensor_cores)
    convolutions = [
        {"layer": layer.name, "primitive": name, "microseconds": 1e6 * seconds}
        for layer in network.weighted if layer.window[0] > 1
        for name, seconds in torch_gpu.convolution_seconds(layer, M, tf32, device).items()]
    return steps, convolutions


def benchmark_cuda(ops):
    """What a GPU does with the CIFAR-10 network, and what PyTorch does with it there.

    {"device", "ceilings", "steps": [row], "primitives": [row], "convolutions in PyTorch": [row]}.
    """
    sgd = [load_config("cifar_sgd", [f"optimizer.batch_size={M}"]) for M in (128, 512)]
    kfc = [load_config("cifar_kfc", [f"optimizer.batch_size={M}"]) for M in (512, 4096)]
    steps = [step_row(ops, config, "SGD") for config in sgd]
    steps += [step_row(ops, config, "KFC-pre") for config in kfc]
    for config in sgd:
        torch_steps, convolutions = torch_rows(ops, config)
        steps += torch_steps
    return {"device": ops.describe(), "ceilings": ceilings(ops), "steps": steps,
            "primitives": primitive_rows(ops, kfc[0]), "convolutions in PyTorch": convolutions}


def format_report(report):
    """The report as a text for people."""
    lines = [f"{key}: {value}" for key, value in report["device"].items()]
    lines += ["", *(f"{key}: {value:.1f}" for key, value in report["ceilings"].items())]
    lines += ["", f"{'step':<30}{'batch':>6}{'ms':>10}{'images/s':>12}"]
    lines += [f"{row['step']:<30}{row['batch']:>6}{row['milliseconds']:>10.3f}"
              f"{row['images_per_second']:>12.0f}" for row in report["steps"]]
    lines += ["", f"{'us':>9}{'TFLOP/s':>9}{'GB/s':>8}  primitive"]
    lines += [f"{row['microseconds']:>9.1f}{row['TFLOP_s']:>9.2f}{row['GB_s']:>8.0f}  {row['call']}"
              for row in report["primitives"]]
    lines += [f"{row['microseconds']:>9.1f}{'':>17}  {row['layer']} {row['primitive']} in PyTorch"
              for row in report["convolutions in PyTorch"]]
    return "\n".join(lines)
