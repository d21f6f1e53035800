"""How fast a GPU runs each primitive of the training steps, and the steps, and what it could do.

Every primitive is timed as it is called in a step: many times in one captured graph, over several
sets of arrays so that the caches do not keep them, the median of many replays. Bytes are those of
the arrays that go in and out, operations those that the formula needs. PyTorch's convolutions are
timed in the same way. Mini-batches lie on the device throughout.
"""

import contextlib
import gc
import math
import statistics
import time
from collections import Counter
from functools import partial

import numpy as np

from kfcnet.batches import Batch
from kfcnet.benchmarks.cpu import INPUT_SHAPE, example_batch
from kfcnet.config import load_config
from kfcnet.ops.cpu.eager import Eager
from kfcnet.ops.cuda import CudaOps
from kfcnet.ops.cuda.convolution import Weights
from kfcnet.ops.cuda.dry_run import DryRun
from kfcnet.ops.deferred import Future, as_generator
from kfcnet.ops.primitives import ConvGradients, Placed, Pooling
from kfcnet.ops.shapes import output_sides
from kfcnet.training.build import build, captured_step, period, whole_periods

CACHE = 128 * 2**20  # bytes: more than the caches hold
SMALL, CALLS = 8 * 2**20, 100  # below so many bytes a graph has so many calls
REPLAYS = 30
WARM_UP = 0.1  # seconds of work before anything is timed: an idle device's clock is low
PRIMITIVES, EPOCHS = "primitives of ", "epochs, "
"""What names of parts begin with that look for a step's row."""
BESIDE = "PyTorch beside "
NOT_TIMED = {
    "beside",
    "join",
    "can_convolve_and_pool",
    "can_pool_and_normalise",
    "asarray",
    "to_numpy",
    "empty",
    "zeros",
    "copy",
    "to_device",
    "describe",
    "counter",
    "scalar",
    "write",
}
FACTORIZATIONS = {"spd_inverse", "eigh"}  # by a library, which refuses to be captured
ALWAYS_FP32 = {"matmul", "gram", "patch_gram"}


class Calls:
    """Array primitives that note how they are called, and in which phase of a step.

    noted: each different call once. Nothing is captured, so that no call is missed.
    """

    captured = Eager.captured

    def __init__(self, ops):
        self._ops, self.noted, self._phase = ops, {}, None

    def __getattr__(self, name):
        value = getattr(self._ops, name)
        if name in NOT_TIMED or not callable(value):
            return value

        def call(*args, **kwargs):
            result = value(*args, **kwargs)
            if name == "weights" and not any(isinstance(one, Weights) for one in result):
                return result  # dense layers' stay as they are: nothing was launched
            made = Call(self._ops, name, args, kwargs, result)
            self.noted.setdefault(made.label, made).phases[self._phase] += 1
            return result

        return call

    def conv_gradients(self, layers, scale, out):
        """Each layer's by a call of its own, as PyTorch's are."""
        return ConvGradients(self, scale, out)

    def submit(self, function, *arrays, on_host=False):
        """Run at once what would run on the side stream."""
        result = function(self, *arrays)
        return Future(arrays, lambda: result)

    @contextlib.contextmanager
    def phase(self, name):
        """An optimizer's `phase`: the innermost one counts."""
        outer, self._phase = self._phase, name
        try:
            yield
        finally:
            self._phase = outer


class Call:
    """One call of a primitive, to be repeated; phases: how often it was made in each of them.

    Weights that were packed for all passes of a step stay packed: packing is a call of its own.
    """

    def __init__(self, ops, name, args, kwargs, result):
        self.ops, self.name, self.args, self.kwargs = ops, name, args, kwargs
        plain = [value.array if isinstance(value, Weights) else value for value in args]
        results = result if isinstance(result, (tuple, list)) else (result,)
        made = [one for one in results if isinstance(one, Weights)]
        packed = [array for one in made for array in (one.forward, one.backward)]
        arrays = (*plain, *kwargs.values(), *results, *packed)
        arrays = {id(a): a for a in arrays if self._is_array(a)}
        self.bytes = sum(array.nbytes for array in arrays.values())
        self.operations = operations(name, plain, kwargs, result)
        self.label = " ".join([name, *map(self._text, (*args, *kwargs.values()))])
        self.phases = Counter()

    def _is_array(self, value):
        return isinstance(value, self.ops.runtime.array_type)

    def _text(self, value):
        if isinstance(value, Weights):
            return f"{self._text(value.array)} packed"
        if isinstance(value, list):
            return f"({', '.join(map(self._text, value))})"
        if isinstance(value, Placed):
            return f"{value.out_maps} of {value.window[0]}x{value.window[0]}x{value.x_shape[3]}"
        if isinstance(value, Pooling):
            return f"pool {value.size}x{value.size}"
        return "x".join(map(str, value.shape)) if self._is_array(value) else f"{value}"

    def _copy(self, value):
        if isinstance(value, Weights):
            return Weights(*map(self._copy, (value.array, value.forward, value.backward)))
        return self.ops.runtime.copy(value) if self._is_array(value) else value

    def seconds(self, replays=REPLAYS):
        """Median time of one call."""
        method = getattr(self.ops, self.name)
        if self.name in FACTORIZATIONS:
            return timed(self.ops, lambda: method(*self.args, **self.kwargs), replays)
        count = sets_beyond_caches(self.bytes)
        # To replay a graph takes the host as long as the device a few of the shortest kernels.
        rounds = math.ceil(CALLS / count) if self.bytes < SMALL else 1
        sets = [
            (
                list(map(self._copy, self.args)),
                {key: self._copy(value) for key, value in self.kwargs.items()},
            )
            for _ in range(count)
        ]

        def repeat():
            for args, kwargs in rounds * sets:
                method(*args, **kwargs)

        return timed(self.ops, self.ops.captured(repeat), replays) / (rounds * count)

    def row(self, steps, replays=REPLAYS):
        """The measured rates of a call that was noted in `steps` steps."""
        seconds = self.seconds(replays)
        tf32 = self.ops.tensor_cores and self.name not in ALWAYS_FP32
        return {
            "call": self.label,
            "precision": "TF32" if tf32 else "fp32",
            "microseconds": 1e6 * seconds,
            "TFLOP_s": self.operations / seconds / 1e12,
            "GB_s": self.bytes / seconds / 1e9,
            "calls_a_step": {phase: n / steps for phase, n in self.phases.items() if phase},
        }

    @property
    def convolution(self):
        """(primitive, M, H, W, J, I) of a convolution, else None.

        One that makes its pool too counts as the convolution: PyTorch's pools on top.
        """
        if self.name in ("conv_forward", "conv_max_pool"):
            return "conv_forward", *self.args[0].shape, len(self.args[1])
        if self.name == "conv_max_pool_backward_weights":
            return "conv_backward_weights", *self.args[0].shape, self.args[1].shape[-1]
        if self.name == "conv_backward_data":
            return self.name, len(self.args[0]), *self.args[2][1:], len(self.args[1])
        if self.name == "conv_backward_weights":
            return self.name, *self.args[0].shape, self.args[1].shape[-1]
        return None


def sets_beyond_caches(size):
    """How many sets of arrays of `size` bytes take turns."""
    return max(1, min(16, math.ceil(CACHE / max(size, 1))))


def operations(name, args, kwargs, result):
    """Arithmetic operations of a product, a multiply-add being two; 0 for what memory limits."""
    if name == "conv_forward":
        return 2 * result.size * args[1].shape[1]
    if name == "conv_backward_data":
        return 2 * args[0].size * args[1].shape[1]
    if name == "conv_backward_weights":
        return 2 * args[1].size * kwargs["out"].shape[1]
    if name in ("conv_max_pool", "conv_max_pool_tangent"):
        return 2 * len(args[0]) * math.prod(output_sides(args[0].shape, *args[2:5])) * args[1].size
    if name == "conv_max_pool_backward_weights":
        outputs = len(args[0]) * math.prod(output_sides(args[0].shape, *args[3:6]))
        return 2 * outputs * kwargs["out"].size
    if name == "matmul":
        return 2 * result.size * args[0].shape[0 if kwargs.get("transpose_a") else 1]
    if name == "gram":
        return args[0].shape[0] * args[0].shape[1] * (args[0].shape[1] + 1)
    if name == "patch_gram":  # the upper triangle of the product of patches with themselves
        x, P = args[0], len(kwargs["out"])
        return len(x) * math.prod(output_sides(x.shape, *args[1:4])) * P * (P + 1)
    return 0


def timed(ops, function, repeats):
    """Median seconds of a call, between events on the device, whose clock has risen by then."""
    runtime = ops.runtime
    begun = time.monotonic()
    while True:
        function()
        runtime.synchronize()
        if time.monotonic() - begun >= WARM_UP:
            break
    marks = [runtime.event()]
    for _ in range(repeats):
        function()
        marks.append(runtime.event())
    runtime.synchronize()
    return statistics.median(
        runtime.seconds_between(a, b) for a, b in zip(marks, marks[1:], strict=False)
    )


def ceilings(ops, megabytes=1024, side=8192):
    """What the device reaches in the same run: a copy, and the library's matrix products."""
    runtime = ops.runtime
    source, target = ops.normals(megabytes * 2**18, 0, 3, 0), ops.empty(megabytes * 2**18)
    seconds = timed(ops, lambda: runtime.copy_into(target, source), 20)
    found = {"copy_GB_s": 2 * source.nbytes / seconds / 1e9}
    a, b = (random_matrix(ops, side, side, purpose) for purpose in (1, 2))
    c = ops.zeros((side, side))
    for name, tensor_cores in (("fp32_TFLOP_s", False), ("TF32_TFLOP_s", True)):
        if tensor_cores <= runtime.tensor_cores:
            seconds = timed(ops, lambda t=tensor_cores: runtime.library_product(a, b, c, t), 10)
            found[name] = 2 * side**3 / seconds / 1e12
    return found


def random_matrix(ops, rows, columns, purpose):
    """Normal numbers: zeros draw less power, and products and copies of them run faster."""
    return ops.normals(rows * columns, 0, purpose, 0).reshape(rows, columns)


def batch_on_device(ops, M):
    batch = example_batch(ops, M)
    return Batch(batch.inputs, ops.to_device(batch.targets))


def primitive_rows(ops, config, name, replays=REPLAYS):
    """(rows, {convolution: seconds}) of every different call of a configuration's steps."""
    calls = Calls(ops)
    optimizer = build(config, calls, INPUT_SHAPE)
    batch = batch_on_device(ops, config.optimizer.batch_size)
    optimizer.prepare([batch])
    optimizer.phase = calls.phase
    steps = period(config)
    for _ in range(steps):
        optimizer.step(batch)
    rows, convolutions = [], {}
    for call in calls.noted.values():
        try:
            rows.append({"step": name, **call.row(steps, replays)})
        except Exception as error:  # the others are measured
            rows.append({"step": name, "call": call.label, "failed": _said(error)})
            continue
        if call.convolution:
            convolutions.setdefault(call.convolution, rows[-1]["microseconds"] / 1e6)
    return rows, convolutions


def _said(error):
    return f"{type(error).__name__}: {error}"


def measured(rows):
    """The rows that have a time: one that failed says why instead."""
    return [row for row in rows if "failed" not in row]


def phase_milliseconds(rows):
    """{phase: milliseconds a step} that the primitives of a step add up to."""
    phases = Counter()
    for row in measured(rows):
        for phase, number in row["calls_a_step"].items():
            phases[phase] += number * row["microseconds"] / 1000
    return dict(phases)


def step_row(ops, config, name, rounds=15, least=20):
    """Milliseconds and images a second of whole steps, over full periods of their parts."""
    M, optimizer = config.optimizer.batch_size, build(config, ops, INPUT_SHAPE)
    batch = batch_on_device(ops, M)
    optimizer.prepare([batch])
    # The mini-batch is the same in every step, as PyTorch's is: a captured step reads it in place.
    take_step = captured_step(optimizer, lambda step: batch, M)
    steps = whole_periods(config, least)

    def turn():
        for _ in range(steps):
            take_step()

    median = timed(ops, turn, rounds) / steps
    if optimizer.running_sums.read().nonfinite_step is not None:
        raise RuntimeError(f"{name}: the timed steps diverged: from then on they do nothing")
    return {"step": name, "batch": M, "milliseconds": 1e3 * median, "images_per_second": M / median}


def torch_rows(ops, config, device="cuda"):
    """(rows of PyTorch's step, {convolution: seconds}) in the precision of ops.

    Nothing where PyTorch has no such device. Raises RuntimeError where its network computes
    something else than ours.
    """
    try:
        import torch
    except ImportError:
        return [], {}
    if device == "cuda" and not torch.cuda.is_available():
        return [], {}
    from kfcnet.benchmarks import torch_gpu

    gc.collect()  # memory that is given back within PyTorch's capture would cut it short
    M, batch = config.optimizer.batch_size, example_batch(ops, config.optimizer.batch_size)
    network, inputs = build(config, ops, INPUT_SHAPE).network, ops.to_numpy(batch.inputs)
    steps = torch_gpu.StepOnDevice(config, network, inputs, batch.targets, device)
    expected = ops.to_numpy(network.forward(batch.inputs[:8]))
    if not np.allclose(steps.forward(8), expected, rtol=0, atol=0.02 * np.abs(expected).max()):
        raise RuntimeError("PyTorch's network does not compute what ours does: nothing to compare")
    tf32 = bool(ops.tensor_cores)
    convolutions = {
        (name, M, *layer.input_shape, layer.output_shape[-1]): seconds
        for layer in network.weighted
        if layer.window[0] > 1
        for name, seconds in torch_gpu.convolution_seconds(
            layer, M, tf32, device, sets_beyond_caches
        ).items()
    }
    return torch_gpu.step_rows(steps, tf32), convolutions


def omega_ratio(ops, M=512, image=(16, 16, 32), kernel=5):
    """Time of the library's fp32 product of patches written out over that of our Omega kernel."""
    runtime, P = ops.runtime, 1 + kernel**2 * image[-1]
    x = random_matrix(ops, M, math.prod(image), 1).reshape(M, *image)
    out, rows = ops.zeros((P, P)), ops.patches(x, kernel, 1, kernel // 2)
    ours = timed(
        ops, ops.captured(lambda: ops.patch_gram(x, kernel, 1, kernel // 2, 1.0, 0.0, out)), REPLAYS
    )
    library = timed(ops, lambda: runtime.library_product(rows, rows, out, False, True), REPLAYS)
    return library / ours


def inversion_ratio(ops, config):
    """Time of the library's inversions of a network's factors over that of our sweeps, which are
    one graph. The library's wait until it is known whether they succeeded.
    """
    layers = build(config, ops, INPUT_SHAPE).network.weighted
    sides = [side for layer in layers for side in layer.factor_sizes]
    size, ends = sum(side**2 for side in sides), np.cumsum([side**2 for side in sides])
    factors, inverses = ops.empty(size), ops.empty(size)
    matrices = [
        factors[end - side**2 : end].reshape(side, side)
        for side, end in zip(sides, ends, strict=True)
    ]
    for matrix in matrices:
        root = random_matrix(ops, len(matrix), len(matrix), 1)
        ops.matmul(root, root, transpose_b=True, out=matrix)
    shift, damping = ops.asarray([1.0]), ops.asarray(np.ones(len(layers)))
    failures = ops.to_device(np.zeros(len(layers), np.int32))

    def library():
        for matrix in matrices:
            ops.spd_inverse(matrix, shift)

    sweeps = ops.captured(lambda: ops.adopt_inverses(factors, sides, damping, inverses, failures))
    return timed(ops, library, REPLAYS) / timed(ops, sweeps, REPLAYS)


def compile_all(ops, say=print):
    """Compile what the steps of the benchmark launch, on all cores, before anything is timed."""
    wanted = {}
    for tensor_cores in (False, True)[: 1 + ops.runtime.tensor_cores]:
        for name in ("cifar_sgd", "cifar_kfc"):
            config, runtime = load_config(name), DryRun(ops.runtime.shared_limit)
            dry = CudaOps(runtime, tensor_cores)
            optimizer = build(config, dry, INPUT_SHAPE)
            optimizer.needs_preparation = False
            for decisions in [(0.5, True), (None, False)] if name == "cifar_kfc" else [()]:
                list(as_generator(optimizer.update)(batch_on_device(dry, 2), *decisions))
            wanted |= dict.fromkeys(runtime.launched)

    def shown(done, count):
        if done % 10 == 0 or done == count:
            say(f"compiled {done} of {count} sources")

    ops.runtime.compile(list(wanted), shown)
    return {"compiled": len(wanted)}


def parts(ops):
    """{name: function(report) -> what it adds to the report} of the benchmark, each some minutes.

    A part looks in the report for what the parts before it have found.
    """
    kinds = [("SGD", 128), ("SGD", 512), ("KFC-pre", 512), ("KFC-pre", 4096)]
    sources = {"SGD": "cifar_sgd", "KFC-pre": "cifar_kfc"}
    configs = {
        (kind, M): load_config(sources[kind], [f"optimizer.batch_size={M}"]) for kind, M in kinds
    }
    found = {
        "device": lambda report: {"device": ops.describe()},
        "compilation": lambda report: compile_all(ops) if hasattr(ops.runtime, "compile") else {},
        "ceilings": lambda report: {"ceilings": ceilings(ops)},
    }
    for precision in ("TF32", "fp32") if ops.runtime.tensor_cores else ("fp32",):
        variant = CudaOps(ops.runtime, tensor_cores=precision == "TF32")
        for (kind, M), config in configs.items():
            step = f"{kind}, {precision}"
            found[f"{step}, {M}"] = partial(_step_part, variant, config, step)
            if M < 4096:
                found[f"{PRIMITIVES}{step}, {M}"] = partial(
                    _primitives_part, variant, config, step, kind == "SGD"
                )
        found[f"{EPOCHS}{precision}"] = partial(
            _epochs_part, precision, *(configs[kind].optimizer.batch_size for kind in kinds[::2])
        )
    found["inversions"] = lambda report: {
        "ratios": {
            "cuSOLVER / sweeps, the factors of the CIFAR-10 network": inversion_ratio(
                ops, configs[kinds[2]]
            )
        }
    }
    found["Omega"] = lambda report: {
        "ratios": {"cuBLAS on patches / Omega, 801 x 801, fp32": omega_ratio(ops)}
    }
    return found


def needed(part, names):
    """Those of the `names` of parts whose rows a part looks for in the report."""
    if part.startswith(PRIMITIVES):
        return [name for name in names if name == part.removeprefix(PRIMITIVES)]
    if part.startswith(EPOCHS):
        precision = f", {part.removeprefix(EPOCHS)}, "
        return [name for name in names if precision in name and not name.startswith(PRIMITIVES)]
    return []


def forget_failures(report):
    """Take what failed out of a report, so that the parts which did are done again."""
    rows = [row for row in report["primitives"] if "failed" in row]
    again = {row["step"] for row in rows} | {
        name.removeprefix(BESIDE) for name in report.get("failed", {}) if name.startswith(BESIDE)
    }
    parts = report.pop("failed", {}).keys() | {PRIMITIVES + step for step in again}
    report["primitives"] = [row for row in report["primitives"] if row["step"] not in again]
    report["steps"] = [row for row in report["steps"] if row.get("beside") not in again]
    report["done"] = [part for part in report["done"] if part not in parts]


def _step_part(ops, config, name, report):
    return {"steps": [step_row(ops, config, name)]}


def _step_of(report, name, batch):
    found = [row for row in report["steps"] if (row["step"], row["batch"]) == (name, batch)]
    return found[0] if found else None


def _primitives_part(ops, config, step, beside_torch, report):
    batch = config.optimizer.batch_size
    name, row = f"{step}, {batch}", _step_of(report, step, batch)
    rows, ours = primitive_rows(ops, config, name)
    part = {"primitives": rows, "phases": {name: phase_milliseconds(rows)}}
    if beside_torch and row:
        try:
            steps, theirs = torch_rows(ops, config)
            part |= {
                "steps": [{**each, "beside": name} for each in steps],
                "ratios": ratios(name, row, steps, ours, theirs),
            }
        except Exception as error:  # ours are measured
            part["failed"] = {f"{BESIDE}{name}": _said(error)}
    return part


def _epochs_part(precision, of_sgd, of_kfc, report):
    sgd = _step_of(report, f"SGD, {precision}", of_sgd)
    kfc = _step_of(report, f"KFC-pre, {precision}", of_kfc)
    if not (kfc and sgd):
        return {}
    epochs = kfc["milliseconds"] / kfc["batch"] / (sgd["milliseconds"] / sgd["batch"])
    return {"ratios": {f"SGD epoch at 128 / KFC-pre epoch at 512, {precision}": 1 / epochs}}


def empty_report():
    """What every report has, even where no part has added to it."""
    return {"steps": [], "phases": {}, "primitives": [], "ratios": {}}


class Unfinished(Exception):
    """Parts are left for another call."""


def add_part(report, name, function):
    """Let a part add what it finds to the report, or its failure; either way it is done.

    Raises Unfinished where the part does, which is then not done.
    """
    try:
        found = function(report)
    except Unfinished:
        raise
    except Exception as error:  # whatever a library raises, the other parts are measured
        report.setdefault("failed", {})[name] = _said(error)
        found = {}
    for key, value in found.items():
        if isinstance(value, list):
            report[key] = report.get(key, []) + value
        elif isinstance(value, dict):
            report[key] = report.get(key, {}) | value
        else:
            report[key] = value
    report["done"] = [*report.get("done", []), name]


def failures_of_parts(report):
    """{what failed: what it said}: parts of a report, and primitives."""
    return report.get("failed", {}) | {
        f"{row['call']}, {row['step']}": row["failed"]
        for row in report["primitives"]
        if "failed" in row
    }


def benchmark_cuda(ops):
    """What a GPU does with the CIFAR-10 network, and what PyTorch does with it there.

    {"device", "ceilings", "steps": [row], "phases": {step: {phase: milliseconds}}, "primitives":
    [row], "ratios": {what: number}, "done": [part], "failed": {part: why}}; in ratios above one, we
    are the faster. A part that fails does not keep the others from being measured.
    """
    report = empty_report()
    for name, part in parts(ops).items():
        add_part(report, name, part)
    return report


def ratios(name, row, steps, ours, theirs):
    """{what: PyTorch's time over ours} of a step and of its convolutions, one by one and in sum."""
    found = {
        f"{other['step']} / {name}": other["milliseconds"] / row["milliseconds"] for other in steps
    }
    shared = [key for key in theirs if key in ours]
    found |= {
        f"{' '.join(map(str, key))} in PyTorch / ours, {name}": theirs[key] / ours[key]
        for key in shared
    }
    if shared:
        found[f"convolutions in PyTorch / ours, {name}"] = sum(theirs[key] for key in shared) / sum(
            ours[key] for key in shared
        )
    return found


def format_report(report):
    """The report as a text."""
    lines = [f"{key}: {value}" for key, value in report["device"].items()]
    lines += ["", *(f"{key}: {value:.1f}" for key, value in report.get("ceilings", {}).items())]
    lines += ["", f"{'step':<30}{'batch':>6}{'ms':>10}{'images/s':>12}"]
    lines += [
        f"{row['step']:<30}{row['batch']:>6}{row['milliseconds']:>10.3f}"
        f"{row['images_per_second']:>12.0f}"
        for row in report["steps"]
    ]
    lines += ["", "milliseconds a step that the primitives of each phase add up to:"]
    lines += [
        f"{step}: " + ", ".join(f"{phase} {ms:.3f}" for phase, ms in phases.items())
        for step, phases in report["phases"].items()
    ]
    lines += ["", f"{'us':>9}{'TFLOP/s':>9}{'GB/s':>8}  primitive, step"]
    lines += [
        f"{row['microseconds']:>9.1f}{row['TFLOP_s']:>9.2f}{row['GB_s']:>8.0f}"
        f"  {row['call']}, {row['step']}"
        for row in measured(report["primitives"])
    ]
    failed = failures_of_parts(report)
    lines += ["", *(f"failed: {name}: {why}" for name, why in failed.items())] if failed else []
    lines += ["", *(f"{ratio:>7.2f}  {what}" for what, ratio in report["ratios"].items())]
    return "\n".join(lines)
