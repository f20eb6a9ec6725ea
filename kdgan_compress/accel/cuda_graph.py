"""A training step captured as a CUDA graph and replayed: one launch instead of hundreds of small kernels."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from kdgan_compress.distillation.step import StageModels

NUM_WARMUP_CALLS = 3
"""Calls made before the capture, since libraries initialise themselves in the first ones."""

Losses = dict[str, Tensor]
Step = Callable[[StageModels, Tensor, int], Losses]
GraphCapture = Callable[[Callable[[], Losses]], tuple[Losses, Callable[[], Any]]]


class CUDAGraphStep:
    """A step whose indices have one shape throughout; it is replayed from its fourth call on.

    Args:
        step: Updates weights in place and returns losses. It reads nothing on the host that changes from call to call.
        capture: Records a call without running it: what it will return, and what runs it.
    """

    def __init__(self, step: Step, capture: "GraphCapture | None" = None) -> None:
        self._step = step
        self._capture = capture or capture_cuda_graph
        self._num_calls = 0
        self._indices = torch.empty(0)
        self._outputs: Losses = {}
        self._replay: Callable[[], Any] | None = None

    def __call__(self, models: StageModels, indices: Tensor, step: int) -> Losses:
        """Make one step; the caller may keep what it returns."""
        self._num_calls += 1
        if self._num_calls <= NUM_WARMUP_CALLS:
            return _on_side_stream(lambda: self._losses(models, indices, step))
        if self._replay is None:
            self._indices = indices.clone()
            self._outputs, self._replay = self._capture(lambda: self._losses(models, self._indices, step))
        self._indices.copy_(indices, non_blocking=True)
        self._replay()
        return {name: output.clone() for name, output in self._outputs.items()}

    def _losses(self, models: StageModels, indices: Tensor, step: int) -> Losses:
        """The step's losses without their autograd graph, whose nodes would belong to another call's stream."""
        return {name: loss.detach() for name, loss in self._step(models, indices, step).items()}


def _on_side_stream(function: Callable[[], Losses]) -> Losses:
    """Call a function on a side stream, which torch requires before a capture."""
    if not torch.cuda.is_available():
        return function()
    side, current = torch.cuda.Stream(), torch.cuda.current_stream()
    side.wait_stream(current)
    with torch.cuda.stream(side):
        outputs = function()
    current.wait_stream(side)
    return outputs


def capture_cuda_graph(function: Callable[[], Losses]) -> tuple[Losses, Callable[[], Any]]:
    """Capture a call on the current GPU."""
    graph = torch.cuda.CUDAGraph()
    torch.cuda.synchronize()
    with torch.cuda.graph(graph):
        outputs = function()
    return outputs, graph.replay
