"""``torch.npu.NPUGraph`` of the simulated device.

As with the real one, a replay runs the recorded operators again on the recorded tensors: it does not see values that
were not copied into these, and values of the host are frozen. As in a real capture, waiting for the device and reading
the host are errors.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.utils._pytree import tree_leaves

from .simulated import WAITS, Tensor, compute, state


_ALLOCATIONS = {"aten::empty", "aten::empty_strided", "aten::empty_like"}


class NPUGraph:
    """See the module."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        self.operators: list[tuple[Any, Any, Any, list[Tensor]]] = []
        self.device: torch.device | None = None

    def capture_begin(self, *arguments: Any, **options: Any) -> None:
        if state.capture is not None:
            raise RuntimeError("a graph is already being captured")
        self.operators.clear()
        state.capture = self

    def capture_end(self) -> None:
        state.capture = None

    def record(self, func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        name = func._schema.name
        given = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)]
        if name in WAITS:
            raise RuntimeError(f"{name} waits for the device: not permitted while a stream is capturing")
        if any(not isinstance(tensor, Tensor) and tensor.dim() > 0 for tensor in given):
            raise RuntimeError(f"{name} reads a tensor of the host: not permitted while a stream is capturing")
        state.capture = None  # operators inside this one are not recorded
        if any(isinstance(tensor, Tensor) and tensor.device != self.device for tensor in given):
            try:
                return compute(func, args, kwargs)  # on a stream of another card, which does not capture
            finally:
                state.capture = self
        try:
            result = compute(func, args, kwargs)
        finally:
            state.capture = self
        results = [leaf for leaf in tree_leaves(result) if isinstance(leaf, torch.Tensor)]
        if any(not isinstance(tensor, Tensor) for tensor in results):
            raise RuntimeError(f"{name} copies to the host: not permitted while a stream is capturing")
        known = {tensor._t.untyped_storage()._cdata for tensor in given if isinstance(tensor, Tensor)}
        fresh = [tensor for tensor in results if tensor._t.untyped_storage()._cdata not in known]
        is_view = not fresh and not func._schema.is_mutable
        if not is_view and name not in _ALLOCATIONS:
            # Storing the arguments keeps their memory, as a graph does.
            self.operators.append((func, args, kwargs, fresh))
        return result

    def replay(self) -> None:
        state.counts.operators["replay of a graph"] += 1
        with torch.inference_mode():  # otherwise the views of tensors that were made in it could not be written
            for func, args, kwargs, fresh in self.operators:
                result = compute(func, args, kwargs)
                again = [leaf for leaf in tree_leaves(result) if isinstance(leaf, Tensor)]
                for target, value in zip(fresh, again, strict=False):
                    target._t.copy_(value._t)

    def reset(self) -> None:
        self.operators.clear()

    def pool(self) -> tuple[int, int]:
        return (0, 0)


class graph:  # noqa: N801  (its name in torch.npu)
    default_capture_stream: Any = None

    def __init__(self, npu_graph: NPUGraph, stream: Any = None, **options: Any) -> None:
        # As in torch_npu and PyTorch: one for all captures of a process, on the card of the first.
        if graph.default_capture_stream is None:
            graph.default_capture_stream = torch.npu.Stream()  # pyright: ignore[reportAttributeAccessIssue]
        self.graph, self.stream = npu_graph, stream or graph.default_capture_stream

    def __enter__(self) -> None:
        self.graph.device = self.stream.device
        self.graph.capture_begin()

    def __exit__(self, *error: Any) -> None:
        self.graph.capture_end()
