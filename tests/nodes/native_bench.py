"""ComfyUI in this process on a simulated NPU, without a server, for probes of the native model.

Run a probe in ComfyUI's interpreter with the folders of the pack, of ComfyUI and of checkpoints, and what to do.
Import this first: it sets up the device before anything imports torch.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from load_module import launch, load_pack
from log_records import Records as Records


PACK, COMFYUI, MODELS, *PARTS = sys.argv[1:]
launch().enter(COMFYUI, simulated_npu=64 * 1024, cards=2)

import comfy.model_management as mm  # noqa: E402
import comfy.sample  # noqa: E402
import torch  # noqa: E402


load_pack(PACK)
lazy_pipeline = importlib.import_module("pack.nodes.lazy_pipeline")
core_conditioning = importlib.import_module("pack.nodes.native.conditioning")
stages = importlib.import_module("pack.nodes.stages")
simulated = sys.modules["dev.npu_simulator.simulated"]
state = simulated.state
NPU = torch.device("npu", 0)


def opened(name: str, dtype: str = "float32", capture_graph: bool = False, **more: Any) -> Any:
    """What DeepGen Loader makes of a checkpoint in the folder of checkpoints."""
    return lazy_pipeline.LazyPipeline(Path(MODELS) / name, dtype, capture_graph, **more)


def encoded(model: Any, references: int = 0, side: int = 64, prompt: str = "a red circle") -> Any:
    """Conditioning of a short prompt, with references that differ."""
    from PIL import Image

    images = [Image.effect_mandelbrot((side, side), (-2, -1.5, 1 + index, 1.5), 60) for index in range(references)]
    with torch.inference_mode():
        return stages.encode(model, prompt, "blurry", [[one.convert("RGB") for one in images]], side, side)


def sampled(model: Any, conditionings: Any, steps: int = 4, **options: Any) -> torch.Tensor:
    """Latents, as the nodes make them."""
    with torch.inference_mode():
        return stages.sample(model, conditionings, seed=1, steps=steps, cfg=4.0, **options)["samples"]


def counted(run: Callable[[int], Any]) -> dict[str, int]:
    """Launches, copies and waits of one step: what a second step adds. ``run`` gets a number of steps."""

    def count(steps: int) -> dict[str, int]:
        simulated.reset()
        run(steps)
        counts = state.counts
        return {
            "launches": counts.launches(),
            "copies": counts.host_to_device[0],
            "copies back": counts.device_to_host[0],
            "waits": sum(counts.waits.values()),
        }

    run(1)  # what is done once
    one, two = count(1), count(2)
    return {name: two[name] - one[name] for name in one}


def unload() -> None:
    """Everything off the card."""
    mm.unload_all_models()
    mm.soft_empty_cache()


def peak_while(run: Callable[[], Any]) -> int:
    """Most bytes allocated on the card while something runs."""
    memory = state.memory[0]
    memory.peak = memory.now
    run()
    return memory.peak


@contextmanager
def replaced(owner: Any, name: str, value: Any):
    before = getattr(owner, name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        setattr(owner, name, before)


def distance(one: torch.Tensor, other: torch.Tensor) -> float:
    return float((one.cpu() - other.cpu()).abs().max())


def error_of(run: Any) -> str:
    try:
        run()
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return ""


def core_sample(
    patcher: Any,
    conditionings: Any,
    sampler: str = "euler",
    steps: int = 4,
    shape: Any = None,
    cfg: float = 4.0,
    **more: Any,
):
    """Latents, as KSampler makes them."""
    positive, negative = core_conditioning.to_core(conditionings, patcher.get_model_object("latent_format"))
    latent = torch.zeros(shape or (1, 16, 8, 8))
    noise = comfy.sample.prepare_noise(latent, 1)
    arguments = {"positive": positive, "negative": negative, "latent_image": latent, "disable_pbar": True, "seed": 1}
    with torch.inference_mode():
        return comfy.sample.sample(patcher, noise, steps, cfg, sampler, "normal", **{**arguments, **more})
