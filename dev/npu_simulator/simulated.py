"""A simulated "npu" device in plain Python (see README.md).

PyTorch's spare device is renamed to npu. A tensor on it is a wrapper around a CPU tensor; every operator arrives in
``__torch_dispatch__``, is checked as the device would check it, counted, and computed on the CPU tensors. Counted is
what a CPU does not show: launched operators, copies between host and device, host syncs, bytes allocated on each card.
`simulated_torch_npu` has ``torch.npu`` and ``torch_npu``, `simulated_graph` has NPUGraph.
"""

from __future__ import annotations

import threading
import weakref
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.utils._pytree import tree_leaves, tree_map

from . import simulated_copies as copies


aten = torch.ops.aten

UNSUPPORTED = {torch.float64, torch.complex64, torch.complex128}
"""What Ascend does not support, or computes on its control processor."""

WAITS = {
    "aten::_local_scalar_dense",
    "aten::nonzero",
    "aten::masked_select",
    "aten::unique_consecutive",
    "aten::_unique2",
    "aten::unique_dim",
    "aten::equal",
    "aten::is_nonzero",
}
"""The size of their result, or the next decision of the host, depends on values: the host waits for the device."""
MIXED = {
    "aten::copy_",
    "aten::_copy_from",
    "aten::index_put_",
    "aten::_index_put_impl_",
    "aten::index",
}
"""They accept tensors of the host besides those of the device."""


@dataclass
class Counts:
    """What happened since `reset`. Copies are [number, bytes]."""

    operators: Counter[str] = field(default_factory=Counter)
    fallbacks: Counter[str] = field(default_factory=Counter)
    waits: Counter[str] = field(default_factory=Counter)
    host_to_device: list[int] = field(default_factory=lambda: [0, 0])
    device_to_host: list[int] = field(default_factory=lambda: [0, 0])
    between_devices: list[int] = field(default_factory=lambda: [0, 0])
    unwaited: list[int] = field(default_factory=lambda: [0, 0])  # of host_to_device: those of `simulated_copies`

    def launches(self) -> int:
        """Operators other than views and plain allocations."""
        return sum(count for name, count in self.operators.items() if name not in _NOT_LAUNCHED)


_COMPOSITE = {"aten::to", "aten::contiguous"}
"""They arrive in inference mode alone; elsewhere PyTorch has made other operators of them, or none."""

# Views are added when they first run.
_NOT_LAUNCHED = {"aten::_unsafe_view", "aten::empty", "aten::empty_strided", "aten::empty_like"}


class Memory:
    """Allocated bytes of one card."""

    def __init__(self) -> None:
        self.now = self.peak = 0
        self.total = 64 << 30
        self._live: dict[int, int] = {}

    def add(self, tensor: Tensor) -> None:
        """Count a tensor until it is collected.

        Raises:
            RuntimeError: When the card is full.
        """
        storage = tensor._t.untyped_storage()
        key, size = storage._cdata, storage.nbytes()
        if key not in self._live:
            if self.now + size > self.total:
                raise RuntimeError(
                    f"NPU out of memory. Tried to allocate {size / 2**20:.2f} MiB ({tensor.device}; "
                    f"{self.total / 2**20:.2f} MiB total capacity; {self.now / 2**20:.2f} MiB already allocated)"
                )
            self._live[key] = 0
            self.now += size
            self.peak = max(self.peak, self.now)
        self._live[key] += 1
        weakref.finalize(tensor, self._drop, key, size)

    def _drop(self, key: int, size: int) -> None:
        self._live[key] -= 1
        if not self._live[key]:
            del self._live[key]
            self.now -= size


class State:
    """The complete state of the device; its only instance is `state`."""

    def __init__(self) -> None:
        self.counts = Counts()
        self.memory: list[Memory] = []
        self.capture: Any = None
        self.references: dict[str, Any] = {}
        self.composites: dict[str, Any] = {}
        self.without_kernel: set[str] = set()  # operators that return new tensors; a test says which
        self._thread = threading.local()

    @property
    def current(self) -> int:
        """The current card of this thread."""
        return getattr(self._thread, "device", 0)

    @current.setter
    def current(self, index: int) -> None:
        self._thread.device = index


state = State()


def reset() -> None:
    """Set the counts to zero."""
    state.counts = Counts()


class Tensor(torch.Tensor):
    """A tensor on the simulated device; ``_t`` contains its values."""

    _t: torch.Tensor

    @staticmethod
    def __new__(cls, t: torch.Tensor, index: int, requires_grad: bool = False):
        wrapped = torch.Tensor._make_wrapper_subclass(  # pyright: ignore[reportAttributeAccessIssue]
            cls,
            t.size(),
            strides=t.stride(),
            storage_offset=t.storage_offset(),
            dtype=t.dtype,
            layout=t.layout,
            device=torch.device("npu", index),
            requires_grad=requires_grad,
        )
        wrapped._t = t
        state.memory[index].add(wrapped)
        return wrapped

    __torch_function__ = torch._C._disabled_torch_function_impl

    def __repr__(self, *, tensor_contents: Any = None) -> str:
        return f"{repr(self._t.detach())[:-1]}, device='{self.device}')"

    def data_ptr(self) -> int:
        return self._t.data_ptr()

    def numpy(self, *arguments: Any, **options: Any) -> Any:
        raise TypeError(f"can't convert {self.device} device type tensor to numpy. Use Tensor.cpu() first.")

    def tolist(self) -> Any:
        state.counts.waits["tolist"] += 1
        return self._t.tolist()

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        # Of another wrapper, such as a quantised tensor, that class has to take the operator apart.
        if not all(issubclass(kind, (Tensor, torch.nn.Parameter)) or kind in PLAIN for kind in types):
            return NotImplemented
        return run(func, args, kwargs or {})


PLAIN = (torch.Tensor, torch.nn.Parameter, torch.nn.Buffer)


def inner(value: Any) -> Any:
    """The CPU tensor of a tensor on the device; anything else as it is."""
    return value._t if isinstance(value, Tensor) else value


def wrap(value: Any, index: int) -> Any:
    """A CPU tensor as one on a card; anything else as it is."""
    if not isinstance(value, torch.Tensor) or isinstance(value, Tensor):
        return value
    if value.dtype in UNSUPPORTED:
        raise RuntimeError(f"npu: {value.dtype} is not supported on this device")
    return Tensor(value, index)


def index_of(device: Any) -> int:
    """The number of a card; of ``npu`` or None, the current one."""
    index = torch.device(device).index if device is not None else None
    return state.current if index is None else index


def run(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    """Run an operator: it is counted, computed, and recorded during the capture of a graph."""
    schema = func._schema
    name = schema.name
    if name in _COMPOSITE:
        return func.decompose(*args, **kwargs)
    if name == "aten::dropout" and not args[2]:  # the same, where nothing is trained
        return args[0]
    if name in state.composites:
        return state.composites[name](*args, **kwargs)
    if name in state.without_kernel:
        return _by_the_dispatcher(func, args, kwargs)
    if any(returned.alias_info is not None and not returned.alias_info.is_write for returned in schema.returns):
        _NOT_LAUNCHED.add(name)
    state.counts.operators[name] += 1
    if name in WAITS:
        state.counts.waits[name] += 1
    if state.capture is not None:
        return state.capture.record(func, args, kwargs)
    return compute(func, args, kwargs)


def _by_the_dispatcher(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    """What the dispatcher calls for the device: `fall_back`, or a kernel that somebody has registered instead."""
    name = func._schema.name
    kernel = torch.library.get_kernel(func, "PrivateUse1")
    keys = torch._C.DispatchKeySet(torch.DispatchKey.PrivateUse1)
    given = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
    result = kernel.call_boxed(keys, *tree_map(inner, args), **tree_map(inner, kwargs))
    state.counts.fallbacks[name] += 1
    for tensor in given:
        _count_copy(state.counts.device_to_host, tensor.numel() * tensor.element_size())
        state.counts.waits["copy to the host"] += 1
    for tensor in tree_leaves(result):
        _count_copy(state.counts.host_to_device, tensor.numel() * tensor.element_size())
    return tree_map(lambda value: wrap(value, given[0].device.index), result)


def fall_back(func: Any, *args: Any, **kwargs: Any) -> Any:
    """torch_npu's kernel for operators that have none: the CPU computes them, here on the values of the tensors."""
    if state.capture is not None:
        raise RuntimeError(f"{func._schema.name} copies to the host: not permitted while a stream is capturing")
    return func(*args, **kwargs)


def compute(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    """Check and compute an operator."""
    name = func._schema.name
    if name == "aten::_has_compatible_shallow_copy_type":
        return False  # data of a wrapper cannot be swapped: modules make new parameters
    if name == "aten::_to_copy":
        return _to_copy(func, args[0], dict(kwargs))
    if name == "aten::copy_":
        return _copy(*args, **kwargs)
    tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)]
    ours = [tensor for tensor in tensors if isinstance(tensor, Tensor)]
    _check_devices(name, tensors, ours)
    if name == "aten::convolution" and args[0].dim() == 5 and args[0].dtype == torch.bfloat16:
        raise RuntimeError("npu: Conv3D does not support bfloat16")
    asked = kwargs.get("device")
    to_host = asked is not None and torch.device(asked).type == "cpu"
    index = ours[0].device.index if ours and asked is None else index_of(asked)
    plain = tree_map(inner, dict(kwargs))
    if "device" in plain:
        plain["device"] = torch.device("cpu")
    if plain.get("pin_memory"):
        plain["pin_memory"] = False
    kernel = state.references.get(name, func)
    result = kernel(*tree_map(inner, args), **plain)
    if to_host:
        return result
    written = _written(func._schema, args, kwargs)
    if written:
        return written[0] if len(written) == 1 else tuple(written)
    return tree_map(lambda value: wrap(value, index), result)


def _written(schema: Any, args: Any, kwargs: dict[str, Any]) -> list[Any]:
    """What an operator that works in place or on ``out`` returns: the tensors of the caller."""
    found = []
    for returned in schema.returns:
        if returned.alias_info is None or not returned.alias_info.is_write:
            continue
        for position, argument in enumerate(schema.arguments):
            alias = argument.alias_info
            if alias is not None and alias.is_write and alias.before_set == returned.alias_info.before_set:
                found.append(args[position] if position < len(args) else kwargs.get(argument.name))
                break
    return found


def _to_copy(func: Any, source: torch.Tensor, options: dict[str, Any]) -> Any:
    asked = options.pop("device", None)
    options.pop("pin_memory", None)
    non_blocking = options.pop("non_blocking", False)
    to_device = isinstance(source, Tensor) if asked is None else torch.device(asked).type == "npu"
    copy = func(inner(source), **options)
    size = copy.numel() * copy.element_size()
    if not to_device:
        if isinstance(source, Tensor):
            _count_copy(state.counts.device_to_host, size)
            state.counts.waits["copy to the host"] += 1
            copies.wait(source.device.index)
        return copy
    index = source.device.index if isinstance(source, Tensor) and asked is None else index_of(asked)
    if not isinstance(source, Tensor):
        _count_copy_to(index, source, size, non_blocking)
    elif source.device.index != index:
        _count_copy(state.counts.between_devices, size)
    return wrap(copy, index)


def _copy(target: torch.Tensor, source: torch.Tensor, non_blocking: bool = False) -> torch.Tensor:
    size = source.numel() * source.element_size()
    if isinstance(source, Tensor) and not isinstance(target, Tensor):
        _count_copy(state.counts.device_to_host, size)
        state.counts.waits["copy to the host"] += 1
        copies.wait(source.device.index)
    elif isinstance(target, Tensor) and not isinstance(source, Tensor):
        _count_copy_to(target.device.index, source, size, non_blocking)
    elif target.device != source.device:
        _count_copy(state.counts.between_devices, size)
    inner(target).copy_(inner(source))
    return target


def _count_copy_to(card: int, source: torch.Tensor, size: int, non_blocking: bool) -> None:
    _count_copy(state.counts.host_to_device, size)
    if copies.begin(source, card, non_blocking):
        _count_copy(state.counts.unwaited, size)


def _count_copy(counter: list[int], size: int) -> None:
    counter[0] += 1
    counter[1] += size


def _check_devices(name: str, tensors: list[torch.Tensor], ours: list[Tensor]) -> None:
    if not ours:
        return
    for tensor in tensors:
        strange = tensor.dim() > 0 and name not in MIXED if not isinstance(tensor, Tensor) else False
        if strange or (isinstance(tensor, Tensor) and tensor.device != ours[0].device):
            raise RuntimeError(
                "Expected all tensors to be on the same device, but found at least two devices, "
                f"{ours[0].device} and {tensor.device}! ({name})"
            )
