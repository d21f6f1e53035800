"""PyTorch's own speed on the same GPU: its training step and its convolutions, at their best.

channels_last, cudnn.benchmark, a fused optimizer, with and without CUDA graphs, in fp32 and in
TF32. Used by the benchmark alone, where PyTorch happens to be installed.
"""

import statistics
import time

import torch
from torch.nn import functional

from kfcnet.benchmarks.cuda import WARM_UP
from kfcnet.benchmarks.torch_peer import TorchPeer


def set_precision(tf32):
    """Products and convolutions in TF32, or in fp32 throughout."""
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = tf32
    torch.backends.cudnn.benchmark = True


def seconds(function, device, repeats=30, warm_up=WARM_UP):
    """Median time of a call, the device's own where it is a GPU, after `warm_up` seconds."""
    begun = time.monotonic()
    for _ in range(5):
        function()
    while device != "cpu" and time.monotonic() - begun < warm_up:
        function()
        torch.cuda.synchronize()
    if device == "cpu":
        taken = []
        for _ in range(repeats):
            start = time.perf_counter()
            function()
            taken.append(time.perf_counter() - start)
        return statistics.median(taken)
    marks = [torch.cuda.Event(enable_timing=True) for _ in range(repeats + 1)]
    marks[0].record()
    for mark in marks[1:]:
        function()
        mark.record()
    torch.cuda.synchronize()
    return statistics.median(
        a.elapsed_time(b) / 1000 for a, b in zip(marks, marks[1:], strict=False)
    )


def captured(function, device):
    """What a function does as one CUDA graph: a function that replays it; on the CPU itself."""
    if device == "cpu":
        return function
    side_stream = torch.cuda.Stream()
    side_stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side_stream):
        for _ in range(3):
            function()
    torch.cuda.current_stream().wait_stream(side_stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        function()
    return graph.replay


class StepOnDevice:
    """The SGD step of a TorchPeer on a device, its mini-batch there already."""

    def __init__(self, config, network, inputs, labels, device="cuda"):
        """inputs (M, H, W, C), labels int32 (M,): NumPy arrays."""
        self.device, self.peer = device, TorchPeer(config, network, 1, device)
        self.peer.load(inputs, labels)

    def forward(self, count):
        """The logits of the first examples (count, classes), a NumPy array."""
        with torch.no_grad():
            return self.peer.model(self.peer.x[:count]).cpu().numpy()


def step_rows(step, tf32):
    """Rows like those of `benchmark`: eager, and captured where there are graphs."""
    set_precision(tf32)
    rows, M = [], len(step.peer.labels)
    for kind in ("eager", "graph") if step.device != "cpu" else ("eager",):
        run = captured(step.peer.step, step.device) if kind == "graph" else step.peer.step
        taken = seconds(run, step.device)
        rows.append(
            {
                "step": f"PyTorch SGD, {kind}, {'TF32' if tf32 else 'fp32'}",
                "batch": M,
                "milliseconds": 1e3 * taken,
                "images_per_second": M / taken,
            }
        )
    return rows


def convolution_seconds(layer, M, tf32, device, sets_of):
    """{primitive: seconds} of a weighted layer's three products on M images.

    sets_of: of bytes, how many sets of arrays take turns in one graph.
    """
    set_precision(tf32)
    (H, W, J), (kernel, stride, padding) = layer.input_shape, layer.window
    Ho, Wo, I = layer.output_shape
    shapes = (M, J, H, W), (M, I, Ho, Wo), (I, J, kernel, kernel)
    bias = torch.randn(I, device=device)

    def arrays():
        return [
            torch.randn(shape, device=device).contiguous(memory_format=torch.channels_last)
            for shape in shapes
        ]

    def forward(x, y, weight):
        functional.conv2d(x, weight, bias, stride, padding)

    def backward(wanted):
        def run(x, y, weight):
            torch.ops.aten.convolution_backward(
                y, x, weight, [I], [stride] * 2, [padding] * 2, [1, 1], False, [0, 0], 1, wanted
            )

        return run

    one = arrays()
    sets = [one, *(arrays() for _ in range(1, sets_of(sum(a.nbytes for a in one))))]
    primitives = {
        "conv_forward": forward,
        "conv_backward_data": backward([True, False, False]),
        "conv_backward_weights": backward([False, True, True]),
    }
    return {
        name: seconds(captured(lambda run=run: [run(*each) for each in sets], device), device)
        / len(sets)
        for name, run in primitives.items()
    }
