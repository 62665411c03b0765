"""A pack for ComfyUI that looks on: how often layers ran, and what the process holds. It changes nothing of others.

GET  /probe         {"calls": {"Parent.child": count}}, since the start
GET  /probe/memory  after a garbage collection: resident MB, tensors alive, bytes on the device
POST /probe/slow    {"Parent.child": seconds}: each call of it first waits so long
POST /probe/broken  {"part": text}: weights in files whose path has this text cannot be read; "" for none

Its one node, ProbeValue, sends any value to an input of any type.
"""

from __future__ import annotations

import ctypes
import errno
import gc
import json
import os
import time
from collections import Counter
from pathlib import Path

import torch
from aiohttp import web
from server import PromptServer  # pyright: ignore[reportAttributeAccessIssue]
from torch.nn.modules.module import register_module_forward_pre_hook, register_module_module_registration_hook

from .values import build


NAME = "probe_name"

calls: Counter[str] = Counter()
slow: dict[str, float] = {}
broken = ""
routes = PromptServer.instance.routes


def name_child(parent, name, child):
    """Layers do not know whose they are."""
    if child is not None:
        child.__dict__[NAME] = f"{type(parent).__name__}.{name}"


def look_on(module, arguments):
    name = module.__dict__.get(NAME)
    if name is not None:
        calls[name] += 1
        if name in slow:
            time.sleep(slow[name])


register_module_module_registration_hook(name_child)
register_module_forward_pre_hook(look_on)


fdopen = os.fdopen


def fdopen_unless_broken(descriptor, *arguments, **options):
    """A disk that fails while weights are read: their headers, which are read with a buffer, still can be."""
    path = os.readlink(f"/proc/self/fd/{descriptor}") if broken and options.get("buffering") == 0 else ""
    if broken and broken in path:
        raise OSError(errno.EIO, os.strerror(errno.EIO), path)
    return fdopen(descriptor, *arguments, **options)


os.fdopen = fdopen_unless_broken


def resident_mb() -> float:
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    return pages * 4096 / 2**20


class AnyType(str):
    """What ComfyUI compares with the type of an input: never unlike it."""

    def __ne__(self, other):
        return False

    __hash__ = str.__hash__


class ProbeValue:
    """Args: description: JSON, see `values`."""

    CATEGORY, FUNCTION, RETURN_TYPES = "probe", "make", (AnyType("*"),)

    @classmethod
    def INPUT_TYPES(cls):  # noqa: N802
        return {"required": {"description": ("STRING", {})}}

    def make(self, description):
        return (build(json.loads(description)),)


NODE_CLASS_MAPPINGS = {"ProbeValue": ProbeValue}


@routes.get("/probe")
async def get_calls(request):
    return web.json_response({"calls": dict(calls)})


@routes.get("/probe/memory")
async def get_memory(request):
    gc.collect()
    before = resident_mb()
    # What is free already and only kept by the allocator is no leak.
    ctypes.CDLL(None).malloc_trim(0)
    tensors = sum(issubclass(type(thing), torch.Tensor) for thing in gc.get_objects())
    device = torch.npu.memory_allocated() if hasattr(torch, "npu") else 0
    return web.json_response(
        {"resident_mb": before, "trimmed_mb": resident_mb(), "tensors": tensors, "device_bytes": device}
    )


@routes.post("/probe/slow")
async def post_slow(request):
    slow.clear()
    slow.update(await request.json())
    return web.json_response({})


@routes.post("/probe/broken")
async def post_broken(request):
    global broken
    broken = (await request.json())["part"]
    return web.json_response({})
