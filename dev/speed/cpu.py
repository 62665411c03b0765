"""CPU time of denoising against the loops of others, with the same weights and in turns.

A DiT at full depth and 256 wide, an image of 128 x 128. CPU seconds of one thread, which other work on the machine
disturbs less than the clock.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor

from deepgen_npu.conditioning import Conditioning
from deepgen_npu.denoising import denoise, set_timesteps
from deepgen_npu.model.transformer import predict_velocity
from dev.markdown import head, row, say
from dev.speed import deep


GUIDANCE = 4.0
HEADS, SIDE, TOKENS = 4, 16, 160

OURS = "ours"
ORIGINAL = "the original's way"
DIFFUSERS = "diffusers"
"""Its pipeline has no references."""


def table(repeats: int = 5, steps: int = 3) -> str:
    """Measure.

    Args:
        repeats: Runs of each; a warm-up precedes them.
        steps: Of a run.
    """
    lines = head(
        "dtype, task", f"{OURS}, CPU s", f"{ORIGINAL} / {OURS}", f"{DIFFUSERS} / {OURS}", "largest difference"
    )
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        for dtype in (torch.float32, torch.bfloat16):
            model = deep.transformer(HEADS, 64, SIDE).to(dtype)
            for task, references in (("text to image", 0), ("edit, 1 reference", 1)):
                say(f"{dtype}, {task}")
                name = f"{str(dtype).removeprefix('torch.')}, {task}"
                lines.append(_row(name, model, deep.conditioning(model, references, TOKENS, SIDE), repeats, steps))
    finally:
        torch.set_num_threads(threads)
    return "\n".join(lines)


def _row(name: str, model: deep.SD3Transformer2DModel, given: Conditioning, repeats: int, steps: int) -> str:
    noise = deep.latents(SIDE, dtype=model.dtype)
    runs: dict[str, Callable[[], Tensor]] = {
        OURS: lambda: denoise([model], deep.scheduler(), given, noise, steps, GUIDANCE),
        ORIGINAL: lambda: loop(model, given, noise, steps, predict_velocity),
    }
    if not given.reference_latents:
        runs[DIFFUSERS] = lambda: loop(model, given, noise, steps, _of_diffusers)
    with torch.inference_mode():
        results = {one: run().float() for one, run in runs.items()}
        seconds: dict[str, list[float]] = {one: [] for one in runs}
        for number in range(repeats):
            order = list(runs) if number % 2 else list(runs)[::-1]
            for one in order:
                start = time.process_time()
                runs[one]()
                seconds[one].append(time.process_time() - start)
    apart = max(float((one - results[OURS]).abs().max()) for one in results.values())
    cells = [_ratios(seconds[one], seconds[OURS]) if one in seconds else "" for one in (ORIGINAL, DIFFUSERS)]
    return row(name, f"{statistics.median(seconds[OURS]):.2f}", *cells, f"{apart:.1e}")


def _ratios(others: list[float], ours: list[float]) -> str:
    each = [other / own for other, own in zip(others, ours, strict=True)]
    return f"{statistics.median(each):.2f} [{min(each):.2f}-{max(each):.2f}]"


Velocity = Callable[..., Tensor]
"""Of the model, latents, timesteps, prompt embeddings, pooled ones and reference latents."""


def loop(
    model: deep.SD3Transformer2DModel, given: Conditioning, latents: Tensor, steps: int, velocity: Velocity
) -> Tensor:
    """Denoise as the pipelines of diffusers and of the original do: everything in each step.

    Args:
        model: The DiT.
        given: Conditioning of one image.
        latents: [1, C, h, w] noise.
        steps: Their number.
        velocity: What evaluates the DiT, for both rows of guidance.

    Returns:
        [1, C, h, w].
    """
    scheduler = deep.scheduler()
    timesteps, _ = set_timesteps(scheduler, steps, latents, model.config["patch_size"])
    embeds = torch.cat([given.negative_prompt_embeds, given.prompt_embeds])
    pooled = torch.cat([given.negative_pooled_prompt_embeds, given.pooled_prompt_embeds])
    references = [one.repeat(2, 1, 1, 1) for one in given.reference_latents]
    for timestep in timesteps:
        both = velocity(model, torch.cat([latents] * 2), timestep.expand(2), embeds, pooled, references)
        negative, positive = both.chunk(2)
        latents = scheduler.step(negative + GUIDANCE * (positive - negative), timestep, latents, return_dict=False)[0]
    return latents


def _of_diffusers(
    model: deep.SD3Transformer2DModel, latents: Tensor, timesteps: Tensor, embeds: Tensor, pooled: Tensor, _: object
) -> Tensor:
    return model(latents, embeds, pooled, timesteps, return_dict=False)[0]
