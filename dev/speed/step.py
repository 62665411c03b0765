"""A denoising step of ours, eager and captured, against the original's way of one.

    python -m dev.speed step

On a card the DiT has its published size, with random weights; on a CPU it is tiny, which only shows that this works.
All share the weights, the inputs and Euler's method; two rows, for prompt and negative prompt.

- *original*: the stock diffusers model, called in every step; with references the stock blocks, with the tokens of
  target and references (`predict_velocity`). Every step computes the modulation of its timestep, and the tokens of
  context and references.
- *eager*: what does not change is computed before the first step; the host launches the operators.
- *captured*: the same as one graph of the device.

They take turns, round by round; times are medians of the rounds, of a step. The work is that of ours for all
(`deepgen_npu.tools.work`): what the original computes beyond it counts for nothing.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from deepgen_npu.devices import on_device, resolve_device, resolve_dtype, synchronize
from deepgen_npu.dtypes import dtype_name
from deepgen_npu.graphs import Graphs, StepOfRun
from deepgen_npu.model.transformer import PreparedTransformer, predict_velocity
from deepgen_npu.tools.peaks import peak_of
from deepgen_npu.tools.random_model import RandomModel
from deepgen_npu.tools.specs import header, name_of
from deepgen_npu.tools.work import step_flops
from dev.markdown import head, row, say


CONTEXT_TOKENS = 160
GUIDANCE = 4.0
TASKS = {"text to image": 0, "edit, 1 reference": 1}
"""Number of references."""

Step = Callable[[Tensor, int], Tensor]
"""From latents [1, C, h, w] and the number of a step to the velocities [2, C, h, w] of both prompts."""


def table(
    device: str = "auto",
    size: str | None = None,
    dtype: str = "auto",
    side: int | None = None,
    steps: int = 10,
    rounds: int = 5,
) -> str:
    """Measure; the table in Markdown.

    Args:
        device: Where.
        size: Of the model, a key of `model_sizes.SIZES`; None is published on a card and tiny on a CPU.
        dtype: Of the weights.
        side: Of the images in pixels; None is the size that the model was trained with.
        steps: Of a round.
        rounds: Of each contestant.
    """
    where = resolve_device(device)
    kind = resolve_dtype(dtype, where)
    size = size or ("tiny" if where.type == "cpu" else "published")
    say(f"Drawing the weights of a DiT of the size {size} on {where}")
    model = RandomModel.of_size(size)
    transformer = model.load_part("transformer", kind, where)
    # The stock model wants its table of positions where it is.
    buffers = transformer.pos_embed._buffers
    buffers["pos_embed"] = buffers["pos_embed"].to(where)
    side = side or model.checkpoint.sizes.match_aspect(1, 1, editing=True)[0]
    card, lines = name_of(where), head("task", "step", "ms", "it/s", "against the original", "TFLOPS", "of the peak")
    apart: dict[str, float] = {}
    for task, references in TASKS.items():
        with torch.inference_mode(), on_device(where):
            setup = Setup.of(model, transformer, where, kind, side, references, steps)
            ways = setup.ways()
            say(f"Measuring {task}: {', '.join(ways)}")
            apart[task] = setup.difference(ways)
            seconds = _in_turns(setup, ways, rounds)
        flops = setup.flops()
        for way, found in seconds.items():
            reached, peak = flops / found / 1e12, peak_of(card, dtype_name(kind))
            share = f"{reached / peak.tflops:.1%}" if peak else "not known"
            faster = f"{seconds['original'] / found:.2f} x"
            lines.append(row(task, way, f"{found * 1e3:.2f}", f"{1 / found:.2f}", faster, f"{reached:.3g}", share))
    facts = {"Device": f"{where} ({card})", "Model": f"DiT of the size {size}, {dtype_name(kind)}"}
    run = f"{side} x {side}, {CONTEXT_TOKENS} context tokens, guidance {GUIDANCE:g}, {rounds} rounds of {steps} steps"
    same = "; ".join(f"{task} {difference:.1e}" for task, difference in apart.items())
    note = f"Latents after {steps} steps differ from the original's by at most, relative to their largest: {same}."
    return "\n".join([header(**facts, Run=run), *lines, "", note])


def _in_turns(setup: Setup, ways: Mapping[str, Step], rounds: int) -> dict[str, float]:
    """Median seconds of a step of each."""
    seconds: dict[str, list[float]] = {way: [] for way in ways}
    for _ in range(rounds):
        for way, step in ways.items():
            synchronize(setup.latents.device)
            start = time.perf_counter()
            setup.run(step)
            synchronize(setup.latents.device)
            seconds[way].append((time.perf_counter() - start) / setup.steps)
    return {way: statistics.median(found) for way, found in seconds.items()}


@dataclass(frozen=True)
class Setup:
    """The inputs of a run, which all contestants share.

    Attributes:
        transformer: The DiT.
        latents: Noise [1, C, h, w].
        context: [2, L, joint_attention_dim].
        pooled: [2, pooled_projection_dim].
        references: Each [2, C, h, w].
        sigmas: Noise levels [steps + 1], on the host.
    """

    transformer: Any
    latents: Tensor
    context: Tensor
    pooled: Tensor
    references: list[Tensor]
    sigmas: Tensor

    @classmethod
    def of(
        cls,
        model: RandomModel,
        transformer: Any,
        device: torch.device,
        dtype: torch.dtype,
        side: int,
        references: int,
        steps: int,
    ) -> Setup:
        """Random inputs for images of ``side`` pixels."""
        generator, config = torch.Generator().manual_seed(0), model.checkpoint.configs["transformer"]
        cells = side // model.checkpoint.sizes.vae_factor

        def random(*shape: int) -> Tensor:
            return torch.randn(shape, generator=generator).to(device, dtype)

        image = config["in_channels"], cells, cells
        return cls(
            transformer,
            random(1, *image),
            random(2, CONTEXT_TOKENS, config["joint_attention_dim"]),
            random(2, config["pooled_projection_dim"]),
            [random(1, *image).repeat(2, 1, 1, 1) for _ in range(references)],
            torch.linspace(1, 0, steps + 1),
        )

    @property
    def steps(self) -> int:
        """Of a run."""
        return len(self.sigmas) - 1

    def flops(self) -> int:
        """Of a step of ours."""
        height, width = self.latents.shape[-2:]
        references = [(height, width)] * len(self.references)
        return step_flops(self.transformer.config, (height, width), CONTEXT_TOKENS, references)

    def ways(self) -> dict[str, Step]:
        """The contestants; without the captured one on a CPU."""
        found = {"original": self._original(), "eager": self._ours(captured=False)}
        if self.latents.device.type != "cpu":
            found["captured"] = self._ours(captured=True)
        return found

    def _original(self) -> Step:
        timesteps = (1000 * self.sigmas[:-1]).to(self.latents.device, self.latents.dtype)

        def step(latents: Tensor, number: int) -> Tensor:
            both, timestep = torch.cat([latents] * 2), timesteps[number].expand(2)
            if self.references:
                given = both, timestep, self.context, self.pooled, self.references
                return predict_velocity(self.transformer, *given)
            return self.transformer(both, self.context, self.pooled, timestep, return_dict=False)[0]

        return step

    def _ours(self, captured: bool) -> Step:
        timesteps = (1000 * self.sigmas[:-1]).to(self.latents.device, self.latents.dtype)
        height, width = self.latents.shape[-2:]
        given = timesteps, self.context, self.pooled, self.references, height, width
        prepared = PreparedTransformer(self.transformer, *given)
        evaluate = StepOfRun(Graphs(), captured, prepared, prepared.prepared, self.transformer)
        return lambda latents, number: evaluate(latents, prepared.modulation(number))

    def run(self, step: Step) -> Tensor:
        """Latents [1, C, h, w] after all steps, by Euler's method."""
        latents = self.latents
        for number in range(self.steps):
            negative, positive = step(latents, number).chunk(2)
            velocity = negative + GUIDANCE * (positive - negative)
            latents = latents + float(self.sigmas[number + 1] - self.sigmas[number]) * velocity
        return latents

    def difference(self, ways: Mapping[str, Step]) -> float:
        """How far the others are from the original. It is also the warm-up of all."""
        results = [self.run(step).float() for step in ways.values()]
        largest = float(results[0].abs().max())
        return max(float((result - results[0]).abs().max()) / largest for result in results[1:])
