"""A denoising step captured in a graph of the device (NPUGraph, CUDA graph) and replayed.

At 512 x 512 a step is short and has a thousand operators, so a host that launches them one by one is what the device
waits for. A replay is one launch. It runs the same kernels on the same shapes: the result is the same to the bit.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


logger = logging.getLogger(__name__)

Step = Callable[[Tensor, Tensor], Tensor]
"""(latents, modulation) to velocity."""

_GRAPHS = {"npu": "NPUGraph", "cuda": "CUDAGraph"}
_WARM_UP = 2  # evaluations before the capture: kernels are chosen and workspaces allocated in the first ones


def capture(step: Step, latents: Tensor, modulation: Tensor) -> Step:
    """``step``, captured for arguments of these shapes.

    Where the device has no graphs, or refuses the capture, one line is logged and ``step`` itself comes back. What
    the result returns is overwritten by its next call.
    """
    device = latents.device
    if device.type not in _GRAPHS:
        logger.warning("Graph capture needs an NPU or a CUDA device; steps on %s run one by one.", device)
        return step
    try:
        return _Captured(step, latents, modulation)
    except RuntimeError as error:
        reason = str(error).splitlines()[0]
        logger.warning("The denoising step could not be captured in a graph (%s); it runs one by one.", reason)
        return step


class _Captured:
    def __init__(self, step: Step, latents: Tensor, modulation: Tensor):
        backend: Any = getattr(torch, latents.device.type)
        # A graph reads and writes the memory it was captured with.
        self._latents, self._modulation = latents.clone(), modulation.clone()
        stream = backend.Stream()
        stream.wait_stream(backend.current_stream())
        with backend.stream(stream):
            for _ in range(_WARM_UP):
                step(self._latents, self._modulation)
        backend.current_stream().wait_stream(stream)
        self._graph = getattr(backend, _GRAPHS[latents.device.type])()
        with backend.graph(self._graph):
            self._velocity = step(self._latents, self._modulation)

    def __call__(self, latents: Tensor, modulation: Tensor) -> Tensor:
        self._latents.copy_(latents)
        self._modulation.copy_(modulation)
        self._graph.replay()
        return self._velocity
