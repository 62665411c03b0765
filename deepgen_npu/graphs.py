"""A denoising step captured in a graph of the device (NPUGraph, CUDA graph) and replayed.

At 512 x 512 a step is short and has a thousand operators, so the device waits for the host, which launches them one
by one. A replay is one launch. It runs the same kernels on the same shapes: the result is bit-identical.

A graph reads what a run fixes (context, references) where it was when it was captured. So it is kept with these
tensors after the run, and the next run of the same shapes copies its own into them. It is dropped when weights move.
"""

from __future__ import annotations

import functools
import logging
import weakref
from collections.abc import Hashable, Iterator
from dataclasses import dataclass
from itertools import chain
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import Module

from .dtypes import dtype_name
from .graph_choice import Step, captured_where_better
from .model.transformer import Prepared


logger = logging.getLogger(__name__)

CaptureGraph = bool | Literal["auto"]
"""Whether steps are captured. ``auto``: where that was measured to be equal and faster (see `graph_choice`)."""

MOST_KEPT = 2
"""Graphs that are kept for each device of a pipeline. Each holds the activations of a step.

Those of steps in between, without negative rows, are counted apart: a run with ``guidance_every`` needs one of each
kind, and two such settings must not drop each other's. Other runs keep no more than without them.
"""

_GRAPHS = {"npu": "NPUGraph", "cuda": "CUDAGraph"}
"""Name of the graph class by kind of device."""

_TOKENS_ALIKE = 128
"""A measurement of ``auto`` holds for contexts up to the next multiple of so many tokens; an image has 1024."""

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
        # Of PyTorch's own choice are streams on the card of the process's first capture: on another card nothing would
        # be recorded. And one for all captures: matrix products keep a workspace for each stream that they ran on.
        stream = _capture_stream(latents.device)
        stream.wait_stream(backend.current_stream())
        with backend.stream(stream):
            for _ in range(_WARM_UP):
                step(self._latents, self._modulation)
        backend.current_stream().wait_stream(stream)
        self._graph = getattr(backend, _GRAPHS[latents.device.type])()
        # A capture that cannot even begin leaves the thread on the stream of the graph; the outer block takes it back.
        with backend.stream(backend.current_stream()), backend.graph(self._graph, stream=stream):
            self._velocity = step(self._latents, self._modulation)  # [rows, C, h, w]

    def __call__(self, latents: Tensor, modulation: Tensor) -> Tensor:
        self._latents.copy_(latents)
        self._modulation.copy_(modulation)
        self._graph.replay()
        return self._velocity


@functools.cache
def _capture_stream(device: torch.device) -> Any:
    backend: Any = getattr(torch, device.type)
    return backend.Stream(device)


class _Weights:
    """Which layers, parameters and buffers a model had, and where each lay."""

    def __init__(self, model: Module):
        self._layers = [weakref.ref(module) for module in model.modules()]
        self._tensors = [(weakref.ref(tensor), _address(tensor)) for tensor in _tensors_of(model)]

    def are_those_of(self, model: Module) -> bool:
        """Whether nothing has moved or been exchanged since, and the layers compute with these weights alone."""
        layers, tensors = list(model.modules()), list(_tensors_of(model))
        return (
            (len(layers), len(tensors)) == (len(self._layers), len(self._tensors))
            and all(known() is layer for known, layer in zip(self._layers, layers, strict=True))
            and all(
                known() is tensor and address == _address(tensor)
                for (known, address), tensor in zip(self._tensors, tensors, strict=True)
            )
            and not _is_disturbed(model)
        )


def _is_disturbed(model: Module) -> bool:
    """Whether others compute in its layers, with weights of their own: hooks, or ComfyUI's LoRAs in bypass mode."""
    return any(
        "forward" in vars(module) or module._forward_hooks or module._forward_pre_hooks for module in model.modules()
    )


def _tensors_of(model: Module) -> Iterator[Tensor]:
    return chain(model.parameters(), model.buffers())


def _address(tensor: Tensor) -> object:
    """Where a tensor lies; of one that is made of others (ComfyUI's quantised ones), where they lie."""
    flatten: Any = getattr(tensor, "__tensor_flatten__", None)
    if flatten is None:
        return tensor.data_ptr()
    return [_address(getattr(tensor, name)) for name in flatten()[0]]


@dataclass
class _Kept:
    step: Step
    prepared: Prepared
    weights: _Weights
    in_between: bool = False


class Graphs:
    """The graphs of a model that no run uses at present."""

    def __init__(self) -> None:
        self._kept: dict[tuple[Hashable, ...], _Kept] = {}

    def take(self, key: tuple[Hashable, ...], model: Module) -> _Kept | None:
        """The graph of a key, which then belongs to the caller. Of runs at the same time each has its own."""
        kept = self._kept.pop(key, None)
        return kept if kept is not None and kept.weights.are_those_of(model) else None

    def put(self, key: tuple[Hashable, ...], kept: _Kept) -> None:
        """Keep a graph. The first entry of its key is its device."""
        self._kept[key] = kept
        of_kind = [
            one for one, other in list(self._kept.items()) if one[0] == key[0] and other.in_between == kept.in_between
        ]
        for one in of_kind[:-MOST_KEPT]:
            self._kept.pop(one, None)

    def clear(self) -> None:
        """Drop all graphs, and with them their memory: the weights are about to move, or memory is short."""
        self._kept.clear()

    def __len__(self) -> int:
        return len(self._kept)


class StepOfRun:
    """The step of one run: a graph of an earlier run, captured with the first latents, or launched by the host.

    Args:
        graphs: Of the model.
        capture_graph: Whether to capture.
        step: The step itself.
        prepared: What it reads besides its arguments and the weights.
        model: Whose weights it reads.
        in_between: Whether it leaves out the negative rows that other steps of the run have.
    """

    def __init__(
        self,
        graphs: Graphs,
        capture_graph: CaptureGraph,
        step: Step,
        prepared: Prepared,
        model: Module,
        in_between: bool = False,
    ):
        self._in_between = in_between
        self._graphs, self._capture_graph = graphs, capture_graph
        self._step, self._prepared, self._model = step, prepared, model
        self._chosen: Step | None = None if capture_graph else step
        self._key: tuple[Hashable, ...] = ()
        self._kept: _Kept | None = None

    def __call__(self, latents: Tensor, modulation: Tensor) -> Tensor:
        """The velocity [rows, C, h, w]; arguments as of a `Step`."""
        if self._chosen is None:
            self._chosen = self._choose(latents, modulation)
        return self._chosen(latents, modulation)

    def _choose(self, latents: Tensor, modulation: Tensor) -> Step:
        device = latents.device
        if self._capture_graph == "auto" and device.type not in _GRAPHS:
            return self._step
        shapes = {"latents": latents, "modulation": modulation, **self._prepared.tensors()}
        shapes = {name: [dtype_name(tensor.dtype), *tensor.shape] for name, tensor in shapes.items()}
        # Tensors made in inference mode cannot be written outside of it.
        mode = torch.is_inference_mode_enabled()
        self._key = (device, mode, *((name, tuple(shape)) for name, shape in shapes.items()))
        kept = self._graphs.take(self._key, self._model)
        if kept is not None:
            self._kept = kept
            kept.prepared.copy_from(self._prepared)
            kept.in_between = self._in_between  # that of a run without guidance serves as well
            return kept.step
        if self._capture_graph == "auto":
            step = self._captured_where_better(latents, modulation, shapes)
        else:
            step = capture(self._step, latents, modulation)
        if step is not self._step and not _is_disturbed(self._model):
            self._kept = _Kept(step, self._prepared, _Weights(self._model), self._in_between)
        return step

    def _captured_where_better(self, latents: Tensor, modulation: Tensor, shapes: dict[str, list[Any]]) -> Step:
        dtype, rows, tokens, width = shapes["context"]
        # Prompts of any length would be as many measurements.
        rounded = {"context": [dtype, rows, -(-tokens // _TOKENS_ALIKE) * _TOKENS_ALIKE, width]}
        weights = {"weights": sorted({dtype_name(tensor.dtype) for tensor in self._model.parameters()})}
        facts = {**shapes, **rounded, **weights}
        return captured_where_better(self._step, _Captured, latents, modulation, facts) or self._step

    def end(self) -> None:
        """The run has succeeded: its graph is there for the next one."""
        if self._kept is not None:
            self._graphs.put(self._key, self._kept)
            self._kept = None
