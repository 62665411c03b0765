"""``torch.npu`` and ``torch_npu`` of the simulated device, with the real schemas of the fused operators.

As in the real package, the fused operators have no kernels for CPU tensors.
"""

from __future__ import annotations

import importlib.machinery
import sys
import tempfile
import threading
import time
import types
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch.utils import backend_registration

from . import simulated_copies as copies
from .kernels import KERNELS
from .schemas import SCHEMAS
from .simulated import Memory, aten, fall_back, index_of, run, state, wrap
from .simulated_graph import NPUGraph, graph


_KEY = "PrivateUse1"
_kept: list[Any] = []  # libraries unregister what they registered when they are collected

FACTORIES = (
    ("empty", "memory_format"),
    ("empty_strided", "default"),
    ("full", "default"),
    ("ones", "default"),
    ("zeros", "default"),
    ("arange", "default"),
    ("arange", "start"),
    ("arange", "start_step"),
    ("randn", "default"),
    ("randn", "generator"),
    ("rand", "default"),
    ("rand", "generator"),
    ("randint", "default"),
    ("randint", "low"),
    ("linspace", "default"),
    ("eye", "default"),
    ("eye", "m"),
    ("scalar_tensor", "default"),
    ("tril_indices", "default"),
)


def install(cards: int = 1) -> None:
    """Make the device, once in a process and before diffusers or transformers are imported.

    Args:
        cards: Number of cards; 0 is a machine with torch_npu, but without a card.
    """
    state.memory = [Memory() for _ in range(cards)]
    backend_registration._setup_privateuseone_for_python_backend("npu", backend_module=_torch_npu_module(cards))
    library = torch.library.Library("aten", "IMPL")
    _kept.append(library)
    for name, overload in FACTORIES:
        operator = getattr(getattr(aten, name), overload)
        library.impl(name if overload == "default" else f"{name}.{overload}", _factory(operator, cards), _KEY)

    def copy_from(source: torch.Tensor, target: torch.Tensor, non_blocking: bool = False) -> torch.Tensor:
        return run(aten.copy_.default, (target, source, non_blocking), {})

    library.impl("_copy_from", copy_from, _KEY)
    if cards:
        copies.install(library)
    # PyTorch would decompose it; torch_npu does not.
    attention = aten.scaled_dot_product_attention.default
    library.impl("scaled_dot_product_attention", lambda *a, **k: run(attention, a, k), _KEY)
    fallbacks = torch.library.Library("_", "IMPL")
    _kept.append(fallbacks)
    fallbacks.fallback(torch.library.fallthrough_kernel, "AutocastPrivateUse1")
    fallbacks.fallback(fall_back, _KEY)
    _install_torch_npu()


def _factory(operator: Any, cards: int) -> Any:
    name = operator._schema.name

    def make(*args: Any, **kwargs: Any) -> Any:
        if not cards:
            raise RuntimeError("No NPUs are available")
        state.counts.operators[name] += 1
        index = index_of(kwargs.get("device"))
        plain = {**kwargs, "device": torch.device("cpu")}
        plain.pop("pin_memory", None)
        result = wrap(operator(*args, **plain), index)
        if state.capture is not None and not name.startswith("aten::empty"):
            state.capture.operators.append((operator, args, {**plain, "device": torch.device("npu", index)}, [result]))
        return result

    return make


def _attend(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attn_mask: torch.Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> torch.Tensor:
    """F.scaled_dot_product_attention with the kernels that torch_npu 2.13.0 chooses (see tests/npu/torch_npu).

    Four dimensions and a boolean mask or none: the fused operator. Anything else, and all on cards before the 910B,
    which have no bfloat16: matrix products and a softmax.
    """
    boolean = attn_mask is None or attn_mask.dtype == torch.bool
    fuses: bool = torch.npu.is_bf16_supported()  # pyright: ignore[reportAttributeAccessIssue]
    if not fuses or query.dim() != 4 or not boolean or is_causal or query.shape[-1] > 512:
        state.counts.operators["unfused attention"] += 1
        return F.scaled_dot_product_attention(
            query, key, value, attn_mask, dropout_p, is_causal, scale=scale, enable_gqa=enable_gqa
        )
    left_out: torch.Tensor | None = None
    if attn_mask is not None:
        if attn_mask.dim() == 4 and 1 in attn_mask.shape[-2:] and query.shape[-2] > 1:
            state.counts.operators["expansion of a mask"] += 1
            attn_mask = attn_mask.expand(*query.shape[:3], key.shape[2])
        left_out = torch.logical_not(attn_mask)  # True is left out by the fused operator
    kernel = state.references["npu::npu_fusion_attention_v3"]
    factor = query.shape[-1] ** -0.5 if scale is None else scale
    return kernel(query, key, value, query.shape[1], "BNSD", atten_mask=left_out, scale=factor)[0]


def _install_torch_npu() -> None:
    library = torch.library.Library("npu", "DEF")
    _kept.append(library)
    module: Any = types.ModuleType("torch_npu")
    module.__version__ = torch.__version__.split("+")[0]
    module.__path__ = []
    module.__spec__ = importlib.machinery.ModuleSpec("torch_npu", None)
    for name, schema in SCHEMAS.items():
        library.define(schema)
        library.impl(name, KERNELS[name], "Meta")
        state.references[f"npu::{name}"] = KERNELS[name]
        setattr(module, name, getattr(torch.ops.npu, name))
    module.npu = torch.npu  # pyright: ignore[reportAttributeAccessIssue]
    state.references["aten::scaled_dot_product_attention"] = _attend
    sys.modules["torch_npu"] = module
    # diffusers reads the metadata of installed packages.
    site = tempfile.TemporaryDirectory()
    _kept.append(site)
    metadata = Path(site.name) / f"torch_npu-{module.__version__}.dist-info" / "METADATA"
    metadata.parent.mkdir()
    metadata.write_text(f"Metadata-Version: 2.1\nName: torch_npu\nVersion: {module.__version__}\n", encoding="utf-8")
    sys.path.append(site.name)


class _Event:
    def __init__(self, enable_timing: bool = False, **options: Any) -> None:
        self.time = 0.0
        self.copies: list[copies.Copy] = []

    def record(self, stream: Any = None) -> None:
        self.time = time.perf_counter()
        self.copies = copies.of(state.current if stream is None else stream.device.index)

    def elapsed_time(self, other: _Event) -> float:
        return (other.time - self.time) * 1e3

    def synchronize(self) -> None:
        copies.end(self.copies)


class _Stream:
    def __init__(self, device: Any = None, **options: Any) -> None:
        self.device = torch.device("npu", index_of(device))

    def synchronize(self) -> None:
        copies.wait(self.device.index)

    def wait_stream(self, other: Any) -> None:
        pass

    def __enter__(self) -> _Stream:
        return self

    def __exit__(self, *error: Any) -> None:
        pass


class _Device:
    def __init__(self, device: Any) -> None:
        self.index = device if isinstance(device, int) else index_of(device)

    def __enter__(self) -> None:
        self.before, state.current = state.current, self.index

    def __exit__(self, *error: Any) -> None:
        state.current = self.before


def _torch_npu_module(cards: int) -> Any:
    """``torch.npu``. SETTINGS contains what each thread has set."""
    module: Any = types.ModuleType("torch.npu")
    module.SETTINGS = {}

    def set_in_thread(**settings: Any) -> None:
        module.SETTINGS.setdefault(threading.get_ident(), {}).update(settings)

    class Config:
        def __setattr__(self, name: str, value: Any) -> None:
            set_in_thread(**{name: value})

    def set_device(device: Any) -> None:
        state.current = device if isinstance(device, int) else index_of(device)
        if state.current >= cards:
            raise RuntimeError(f"npu:{state.current} does not exist")
        set_in_thread(device=state.current)

    def synchronize(device: Any = None) -> None:
        state.counts.waits["synchronize"] += 1
        copies.wait(device if isinstance(device, int) else index_of(device))

    def memory(device: Any = None) -> Memory:
        return state.memory[device if isinstance(device, int) else index_of(device)]

    def reset_peak(device: Any = None) -> None:
        memory(device).peak = memory(device).now

    module.is_available = lambda: cards > 0
    module.device_count = lambda: cards
    module.current_device = lambda: state.current
    module.is_initialized = lambda: True
    module._is_in_bad_fork = lambda: False
    module._lazy_init = lambda: None
    module.is_bf16_supported = lambda *a, **k: True
    module.get_amp_supported_dtype = lambda: [torch.float16, torch.bfloat16]
    module.synchronize = synchronize
    module.empty_cache = lambda: None
    module.set_device = set_device
    module.manual_seed = module.manual_seed_all = lambda seed: None
    module.memory_allocated = lambda device=None: memory(device).now
    module.max_memory_allocated = lambda device=None: memory(device).peak
    module.reset_peak_memory_stats = reset_peak
    module.mem_get_info = lambda device=None: (memory(device).total - memory(device).now, memory(device).total)
    module.memory_stats = lambda device=None: {
        f"{kind}_bytes.all.current": memory(device).now for kind in ("reserved", "active", "allocated")
    }
    module.get_device_name = lambda *a: "Ascend910B3 (simulated)"
    module.Event, module.Stream, module.device = _Event, _Stream, _Device
    module.current_stream = module.default_stream = lambda *a: _Stream()
    module.stream = lambda stream: stream
    module.set_compile_mode = lambda **settings: set_in_thread(**settings)
    module.config = Config()
    module.NPUGraph, module.graph = NPUGraph, graph
    return module
