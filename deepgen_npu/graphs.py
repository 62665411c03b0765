"""A denoising step captured in a graph of the device (NPUGraph, CUDA graph) and replayed.

At 512 x 512 a step is short and has a thousand operators, so the device waits for the host, which launches them one
by one. A replay is one launch. It runs the same kernels on the same shapes: the result is bit-identical.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


logger = logging.getLogger(__name__)

Step = Callable[[Tensor, Tensor], Tensor]
"""(latents [b, C, h, w], modulation [rows, vectors, width]) to velocity [rows, C, h, w]."""

_GRAPHS = {"npu": "NPUGraph", "cuda": "CUDAGraph"}
"""Name of the graph class by kind of device."""

_WARM_UP = 2
"""Evaluations before the capture: the first ones choose kernels and allocate workspaces."""


def capture(step: Step, latents: Tensor, modulation: Tensor) -> Step:
    """``step``, captured for arguments of these shapes.

    If the device has no graphs, or the capture fails, a warning is logged and ``step`` itself is returned. The next
    call of the captured step overwrites the tensor that the last one returned.
    """
    device = latents.device
    if device.type not in _GRAPHS:
        logger.warning(
            "capture_graph needs an NPU or a CUDA device; steps on %s are launched operator by operator.", device
        )
        return step
    try:
        return _Captured(step, latents, modulation)
    except RuntimeError as error:
        reason = str(error).splitlines()[0]
        logger.warning(
            "The denoising step could not be captured in a graph (%s); it is launched operator by operator.", reason
        )
        return step


class _Captured:
    """A step in a graph, with the memory that the graph reads its inputs from and writes its output to."""

    def __init__(self, step: Step, latents: Tensor, modulation: Tensor):
        backend: Any = getattr(torch, latents.device.type)
        self._latents = latents.clone()  # [b, C, h, w]
        self._modulation = modulation.clone()  # [rows, vectors, width]
        stream = backend.Stream()
        stream.wait_stream(backend.current_stream())
        with backend.stream(stream):
            for _ in range(_WARM_UP):
                step(self._latents, self._modulation)
        backend.current_stream().wait_stream(stream)
        self._graph = getattr(backend, _GRAPHS[latents.device.type])()
        # A capture that cannot even begin leaves the thread on the stream of the graph; the outer block takes it back.
        with backend.stream(backend.current_stream()), backend.graph(self._graph):
            self._velocity = step(self._latents, self._modulation)  # [rows, C, h, w]

    def __call__(self, latents: Tensor, modulation: Tensor) -> Tensor:
        self._latents.copy_(latents)
        self._modulation.copy_(modulation)
        self._graph.replay()
        return self._velocity
