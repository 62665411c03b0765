"""`DeepGen Guidance Every` on a simulated NPU, for `native_probe`: the negative prompt in every n-th evaluation."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any


# isort: off
from native_bench import MODELS, NPU, core_sample, distance, encoded, opened, replaced, simulated, state
from native_bench import Records, core_conditioning, importlib, torch
# isort: on

import comfy.sample
from diffusers import FlowMatchEulerDiscreteScheduler


plain = importlib.import_module("pack.nodes.native.plain_conditioning")
kept_guidance = importlib.import_module("pack.nodes.native.kept_guidance")
node = importlib.import_module("pack.nodes.guidance_every").DeepGenGuidanceEvery
denoising = importlib.import_module("pack.deepgen_npu.denoising")
folder = importlib.import_module("pack.deepgen_npu.checkpoint.folder")
weights = importlib.import_module("pack.deepgen_npu.checkpoint.weights")

Change = Callable[[Any], Any]
"""From a clone of a MODEL to one that is changed."""


def measured(patched: Change, wrapped: Change, by_comfyui: Callable[[dict[str, Any]], Any]) -> dict[str, Any]:
    """Against the library, captured, and where it has no effect.

    Args:
        patched: Patches weights of a MODEL, as a LoRA does.
        wrapped: Puts a wrapper around the model.
        by_comfyui: Evaluates conditionings as ComfyUI does.
    """
    model, captured = opened("tiny"), opened("tiny", capture_graph=True)
    given = encoded(model, 1)
    every = _with(model.patcher, 2)
    usual, latents = core_sample(model.patcher, given), core_sample(every, given)
    graphs = captured.patcher.model.diffusion_model.graphs
    drawn = {
        "by the library": _by_the_library(model, given, 2),
        "with 1": core_sample(_with(model.patcher, 1), given),
        "captured": core_sample(_with(captured.patcher, 2), given),
    }
    row: dict[str, Any] = {name: distance(one, usual if "1" in name else latents) for name, one in drawn.items()}
    row |= {"a change": distance(usual, latents), "graphs": sorted(kept.in_between for kept in graphs._kept.values())}
    simulated.reset()
    row["captured again"] = distance(core_sample(_with(captured.patcher, 2), given), latents)
    row["replays"] = state.counts.operators["replay of a graph"]
    row["launched"] = state.counts.operators["npu::npu_fusion_attention_v3"]
    row["steps"] = [_step(_with(model.patcher, 3), given), _step(every, given, cfg=1.0)]
    row["unguided"] = distance(*(core_sample(one, given, steps=2, cfg=1.0) for one in (every, model.patcher)))
    lora = [_with(patched(one.patcher.clone()), 2) for one in (model, captured)]
    row["with a LoRA"] = distance(*(core_sample(one, given, steps=2) for one in lora))
    row["heun"] = _evaluations(every, given)
    row |= _without_effect(model, every, given, wrapped, by_comfyui)
    return row


def _by_the_library(model: Any, given: Any, every: int) -> torch.Tensor:
    checkpoint = folder.Checkpoint.open(Path(MODELS) / "tiny")
    transformer = weights.load_part(checkpoint, "transformer", torch.float32, NPU)
    scheduler = FlowMatchEulerDiscreteScheduler.from_config(checkpoint.configs["scheduler"])
    noise = comfy.sample.prepare_noise(torch.zeros(1, 16, 8, 8), 1).to(NPU)
    moved = given[0].to(NPU, torch.float32)
    with torch.inference_mode():
        latents = denoising.denoise([transformer], scheduler, moved, noise, 4, 4.0, guidance_every=every)
    return model.patcher.get_model_object("latent_format").process_out(latents.cpu())


def _step(patcher: Any, given: Any, **more: Any) -> list[int]:
    """Launches, copies and waits of the third step."""
    found = []
    for steps in (2, 3):
        simulated.reset()
        core_sample(patcher, given, steps=steps, **more)
        counts = state.counts
        moved = counts.host_to_device[0] + counts.device_to_host[0]
        found.append((counts.launches(), moved, sum(counts.waits.values())))
    return [after - before for before, after in zip(*found, strict=True)]


def _with(patcher: Any, every: int) -> Any:
    (patched,) = node.execute(model=patcher, guidance_every=every).result
    return patched


def _evaluations(patcher: Any, given: Any) -> list[int]:
    """How many conditionings each evaluation of a sampler with two a step has."""
    seen: list[int] = []
    original = plain._denoised

    def watched(model: Any, options: Any, conds: Any, *tensors: Any) -> Any:
        seen.append(len(conds))
        return original(model, options, conds, *tensors)

    with replaced(plain, "_denoised", watched):
        core_sample(patcher, given, "heun", steps=3)
    return seen


def _without_effect(model: Any, every: Any, given: Any, wrapped: Change, by_comfyui: Any) -> dict[str, Any]:
    """How far apart are latents with and without it, and what the log says."""
    watcher = Records()
    logging.getLogger(kept_guidance.__name__).addHandler(watcher)
    positive, _ = core_conditioning.to_core(given, model.patcher.get_model_object("latent_format"))
    two = [positive[0], [positive[0][0], {**positive[0][1], "strength": 0.5}]]
    other = [model.patcher.clone(), every.clone()]
    for one in other:
        one.model_options["sampler_calc_cond_batch_function"] = by_comfyui
    ways = [(model.patcher, every, two), (*(wrapped(one.clone()) for one in (model.patcher, every)), positive)]
    ways.append((*other, positive))
    apart = [distance(*(core_sample(one, given, steps=2, positive=wanted) for one in pair)) for *pair, wanted in ways]
    core_sample(ways[1][1], given, steps=1, cfg=1.0)  # has nothing to leave out, and so nothing to say
    return {"without effect": apart, "log": watcher.messages}
