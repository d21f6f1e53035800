"""PyTorch's own speed on the same GPU: its training step and its convolutions, at their best.

channels_last, cudnn.benchmark, with and without CUDA graphs, in fp32 and in TF32. Used by the
benchmark alone, where PyTorch happens to be installed.
"""

import statistics
import time

import torch
from torch.nn import functional

from kfcnet.torch_peer import TorchPeer


def set_precision(tf32):
    """Products and convolutions in TF32, or in fp32 throughout."""
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = tf32
    torch.backends.cudnn.benchmark = True


def seconds(function, device, repeats=30, warm_up=5):
    """Median time of a call, the device's own where it is a GPU."""
    for _ in range(warm_up):
        function()
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
    return statistics.median(a.elapsed_time(b) / 1000 for a, b in zip(marks, marks[1:],
                                                                      strict=False))


class StepOnDevice:
    """The SGD step of a TorchPeer on a device, its mini-batch there already."""

    def __init__(self, config, network, inputs, labels, device="cuda"):
        """inputs (M, H, W, C), labels int32 (M,): NumPy arrays."""
        self.peer = TorchPeer(config, network, threads=1)
        self.peer.model.to(device)
        self.peer.load(inputs, labels)
        self.peer.x, self.peer.labels = self.peer.x.to(device), self.peer.labels.to(device)

    def captured(self):
        """The step as one CUDA graph: a function that replays it."""
        beside = torch.cuda.Stream()
        beside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(beside):
            for _ in range(3):
                self.peer.step()
        torch.cuda.current_stream().wait_stream(beside)
        graph = torch.cuda.CUDAGraph()
        self.peer.optimizer.zero_grad(set_to_none=True)
        with torch.cuda.graph(graph):
            self.peer.step()
        return graph.replay


def step_rows(config, network, inputs, labels, device="cuda"):
    """Rows like those of `benchmark`: eager and captured, in fp32 and TF32."""
    rows, M = [], len(labels)
    for precision in ("fp32", "TF32") if device != "cpu" else ("fp32",):
        set_precision(precision == "TF32")
        for kind in ("eager", "graph") if device != "cpu" else ("eager",):
            step = StepOnDevice(config, network, inputs, labels, device)
            taken = seconds(step.captured() if kind == "graph" else step.peer.step, device)
            rows.append({"step": f"PyTorch SGD, {kind}, {precision}", "batch": M,
                         "milliseconds": 1e3 * taken, "images_per_second": M / taken})
    return rows


def convolution_seconds(layer, M, tf32, device="cuda"):
    """{primitive: seconds} of a weighted layer's three products on M images."""
    set_precision(tf32)
    (H, W, J), (kernel, stride, padding) = layer.input_shape, layer.window
    Ho, Wo, I = layer.output_shape  # noqa: E741
    x, y, weight = (torch.randn(shape, device=device).contiguous(memory_format=torch.channels_last)
                    for shape in ((M, J, H, W), (M, I, Ho, Wo), (I, J, kernel, kernel)))
    bias = torch.randn(I, device=device)

    def forward():
        functional.conv2d(x, weight, bias, stride, padding)

    def backward(wanted):
        torch.ops.aten.convolution_backward(y, x, weight, [I], [stride] * 2, [padding] * 2, [1, 1],
                                            False, [0, 0], 1, wanted)

    return {
        "conv_forward": seconds(forward, device),
        "conv_backward_data": seconds(lambda: backward([True, False, False]), device),
        "conv_backward_weights": seconds(lambda: backward([False, True, True]), device)}
