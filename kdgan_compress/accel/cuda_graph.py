"""A step recorded once as a CUDA graph and replayed: hundreds of small kernels for the price of one launch."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

WARM_UP = 3
"""Calls made as they are before the recording, as libraries set themselves up in the first ones."""

Terms = Mapping[str, Tensor]
Recorder = Callable[[Callable[[], Terms]], tuple[Terms, Callable[[], None]]]


class CapturedStep:
    """A function of tensors, each of one shape throughout, that is replayed from its fourth call on.

    Args:
        function: Moves weights in place and returns tensors by name. It must not read anything on the host that
            changes from call to call.
        record: Records a call without making it: what the call will return, and what makes it.
    """

    def __init__(self, function: Callable[..., Terms], record: "Recorder | None" = None) -> None:
        self._function = function
        self._record = record or record_cuda_graph
        self._num_calls = 0
        self._inputs: tuple[Tensor, ...] = ()
        self._outputs: Terms = {}
        self._replay: Callable[[], None] | None = None

    def __call__(self, *inputs: Tensor) -> Terms:
        """One call; what it returns is the caller's to keep."""
        self._num_calls += 1
        if self._num_calls <= WARM_UP:
            return _beside(lambda: self._function(*inputs)) if inputs[0].is_cuda else self._function(*inputs)
        if self._replay is None:
            self._inputs = tuple(own.clone() for own in inputs)
            self._outputs, self._replay = self._record(lambda: self._function(*self._inputs))
        for own, new in zip(self._inputs, inputs, strict=True):
            own.copy_(new, non_blocking=True)
        self._replay()
        return {name: output.clone() for name, output in self._outputs.items()}


def _beside(function: Callable[[], Terms]) -> Terms:
    """Make a call on a stream of its own, as torch asks for before a recording."""
    stream, present = torch.cuda.Stream(), torch.cuda.current_stream()
    stream.wait_stream(present)
    with torch.cuda.stream(stream):
        outputs = function()
    present.wait_stream(stream)
    return outputs


def record_cuda_graph(function: Callable[[], Terms]) -> tuple[Terms, Callable[[], Any]]:
    """Record a call on the present GPU as a graph."""
    graph = torch.cuda.CUDAGraph()
    torch.cuda.synchronize()
    with torch.cuda.graph(graph):
        outputs = function()
    return outputs, graph.replay
