"""What a server that was started with the probe pack reports about itself."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from pathlib import Path

from dev import ROOT

from .server import PACK_NAME, ComfyServer


PACKS = {PACK_NAME: ROOT, "Probe": Path(__file__).with_name("probe_pack")}

VLM_LAYER = "Qwen2_5_VLAttention.q_proj"
VISION_LAYER = "Qwen2_5_VLVisionAttention.qkv"
DIT = "DeepGenDenoiser.proj_out"
VAE_ENCODER = "Encoder.conv_in"
VAE_DECODER = "Decoder.conv_in"


class Probe:
    """Args: server: one whose packs are `PACKS`."""

    def __init__(self, server: ComfyServer):
        self.server = server
        self._seen = self.calls()

    def calls(self) -> dict[str, int]:
        """How often each layer ran since the server's start, by "Parent.child"."""
        return self.server.get("/probe").json()["calls"]

    def new_calls(self, *names: str) -> list[int]:
        """How often these ran since the last call."""
        before, self._seen = self._seen, self.calls()
        return [self._seen.get(name, 0) - before.get(name, 0) for name in names]

    def memory(self) -> dict[str, float]:
        return self.server.get("/probe/memory").json()

    def free(self, timeout: float = 5.0) -> None:
        """Unload everything and wait for it: the worker thread does it when it next looks at its queue."""
        before = self.memory()["tensors"]
        self.server.free()
        with contextlib.suppress(TimeoutError):  # there was nothing to unload
            wait_until(lambda: self.memory()["tensors"] < before, "fewer tensors", timeout)

    def slow_down(self, **seconds: float) -> None:
        """Let each call of these layers wait first; the names as in `calls`. Without any, no more."""
        self.server.post("/probe/slow", seconds)

    def break_disk(self, part: str = "") -> None:
        """Weights in files whose path has this in it cannot be read; without it, all can again."""
        self.server.post("/probe/broken", {"part": part})

    def wait_for(self, name: str, count: int = 1, timeout: float = 60.0) -> None:
        """Until a layer ran so often since `new_calls`."""
        wait_until(lambda: self.calls().get(name, 0) - self._seen.get(name, 0) >= count, f"{count} x {name}", timeout)


def wait_until(condition: Callable[[], bool], what: str, timeout: float = 60.0) -> None:
    deadline = time.monotonic() + timeout
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(f"{what} did not come within {timeout:.0f} s")
        time.sleep(0.02)


def device_bytes(server: ComfyServer) -> int:
    """Memory of the device in use, as ComfyUI reports it."""
    (device,) = server.get("/system_stats").json()["devices"]
    return device["vram_total"] - device["vram_free"]
