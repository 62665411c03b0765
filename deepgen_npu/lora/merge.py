"""LoRAs merged into the weights of the DiT, in place, and taken out again to the bit.

The weights before are kept on the host. Each time anything changes, the changed layers are computed from them anew,
in float32 and rounded once: what came before leaves no trace. A merged DiT runs the operators that it always runs, so
that graphs, offload and copies on other cards need to know nothing of it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from .changes import Change
from .names import Layer


WeightedChange = tuple[Change, float]
"""A change and its strength: 1 is as trained."""

State = dict[str, Tensor]
"""Tensors by name."""


class Merged:
    """What is merged into a DiT, and its weights before.

    Args:
        transformer: The DiT.
    """

    def __init__(self, transformer: Any):
        self._transformer = transformer
        self._before: dict[str, State] = {}

    @torch.no_grad()
    def merge(self, changes: Iterable[WeightedChange], copies: Sequence[Any] = ()) -> None:
        """Make these changes, and no others, to the weights before.

        Args:
            changes: In the order in which they are made. Those of the strength 0 are not.
            copies: Further DiTs of the same weights, on other devices: they get the result.

        If it fails, or is interrupted, all weights are those before.
        """
        groups = _groups([one for one in changes if one[1]])
        wanted = {name for modules, _ in groups for name in modules}
        written = wanted | self._before.keys()
        try:
            for name in self._before:
                self._restore(name)
            self._before = {name: self._before.get(name) or _read(self._module(name)) for name in sorted(wanted)}
            for modules, of_group in groups:
                self._merge(modules, of_group)
                self._send(modules, copies)
        except BaseException:
            for name in self._before:
                self._restore(name)
            self._before = {}
            self._send(written, copies)
            raise
        self._send(written - wanted, copies)

    def _merge(self, names: set[str], changes: Sequence[WeightedChange]) -> None:
        """Change modules that have no change yet. Only their weights are in memory in float32."""
        modules = {name: self._module(name) for name in sorted(names)}
        weights, biases = {}, {}
        if any(change.changes_weight for change, _ in changes):
            weights = {name: _float_weight(module) for name, module in modules.items()}
        if any(change.changes_bias for change, _ in changes):
            biases = {name: one.bias.float() for name, one in modules.items() if one.bias is not None}
        for change, strength in changes:
            if change.changes_weight:
                _put(change.layer, weights, change.weight(_take(change.layer, weights), strength))
            if change.changes_bias:
                _put(change.layer, biases, change.bias(_take(change.layer, biases), strength))
        for name, weight in weights.items():
            _set_float_weight(modules[name], weight)
        for name, bias in biases.items():
            modules[name].bias.data.copy_(bias)

    def _restore(self, name: str) -> None:
        _write(self._module(name), self._before[name])

    def _send(self, names: Iterable[str], copies: Sequence[Any]) -> None:
        for copy in copies:
            for name in names:
                _write(copy.get_submodule(name), dict(_tensors(self._module(name))))

    def _module(self, name: str) -> Any:
        return self._transformer.get_submodule(name)


def _groups(changes: Sequence[WeightedChange]) -> list[tuple[set[str], list[WeightedChange]]]:
    """Modules that are computed together, since a layer of a file consists of several, and their changes in order."""
    home: dict[str, set[str]] = {}
    for change, _ in changes:
        joined = set().union(*(home.get(name, {name}) for name in change.layer.modules))
        home |= dict.fromkeys(joined, joined)
    groups: dict[int, tuple[set[str], list[WeightedChange]]] = {}
    for one in changes:
        modules = home[one[0].layer.modules[0]]
        groups.setdefault(id(modules), (modules, []))[1].append(one)
    return list(groups.values())


def _take(layer: Layer, tensors: State) -> Tensor:
    """The tensors of a layer's modules as the file has them: one."""
    first, *others = (tensors[name] for name in layer.modules)
    joined = torch.cat([first, *others]) if others else first
    return _halves_swapped(joined) if layer.swapped else joined


def _put(layer: Layer, tensors: State, joined: Tensor) -> None:
    """The reverse of `_take`."""
    if layer.swapped:
        joined = _halves_swapped(joined)
    parts = joined.split([len(tensors[name]) for name in layer.modules])
    tensors.update(zip(layer.modules, parts, strict=True))


def _halves_swapped(tensor: Tensor) -> Tensor:
    return tensor.roll(len(tensor) // 2, dims=0)


def _tensors(module: Any) -> Iterable[tuple[str, Tensor]]:
    return (*module.named_parameters(recurse=False), *module.named_buffers(recurse=False))


def _read(module: Any) -> State:
    """The tensors of a module, copied to the host."""
    return {name: tensor.detach().to("cpu", copy=True) for name, tensor in _tensors(module)}


def _write(module: Any, state: State) -> None:
    """Put tensors back where they were read, at the same addresses."""
    for name, tensor in state.items():
        getattr(module, name).data.copy_(tensor)


def _float_weight(module: Any) -> Tensor:
    """The weight in float32; that of a quantised module is computed."""
    quantized = getattr(module, "dequantized", None)
    return module.weight.detach().float() if quantized is None else quantized(torch.float32)


def _set_float_weight(module: Any, weight: Tensor) -> None:
    quantize = getattr(module, "quantize_", None)
    if quantize is None:
        module.weight.data.copy_(weight)
    else:
        quantize(weight)
