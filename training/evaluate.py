"""The evaluation: whether the images of a checkpoint show what they should. ``python -m training evaluate``."""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import fields
from typing import Any

import numpy as np
import torch

from deepgen_npu import DeepGenPipeline
from deepgen_npu.conditioning import Conditioning

from . import cases
from .cases import Case
from .edits import FIRST_KINDS, FURTHER_KINDS
from .encode import embed, image_tensor, length, texts_of_captions, texts_of_edits
from .judge import Recognised, Verdict, compare, recognise
from .scenes import pixels, random_scene
from .vae import measure_reconstruction


BATCH = 50
STEPS = 50
GUIDANCE = 4.0


@torch.no_grad()
def make_images(
    pipe: DeepGenPipeline,
    wanted: Sequence[Case],
    steps: int = STEPS,
    guidance: float = GUIDANCE,
    negative_prompt: str = "",
    guidance_every: int = 1,
) -> list[np.ndarray]:
    """The images [H, W, 3] (uint8) of cases, each as it would be made alone with its seed.

    Cases whose texts have the same number of tokens, and whose images have the same size, form a batch: no text is
    padded that would not be padded alone.

    Args:
        pipe: The pipeline.
        wanted: The cases.
        steps: Of denoising.
        guidance: Scale of classifier-free guidance.
        negative_prompt: For all cases.
        guidance_every: As in `DeepGenPipeline`.
    """
    groups: dict[Any, list[int]] = defaultdict(list)
    prepared = [_text(pipe, case) for case in wanted]
    negatives = [_text(pipe, case, negative_prompt) for case in wanted]
    for number, case in enumerate(wanted):
        tokens = max(length(pipe, prepared[number]), length(pipe, negatives[number]))
        groups[length(pipe, prepared[number]), tokens, case.scene.width, case.scene.height].append(number)
    images: list[Any] = [None] * len(wanted)
    for (_, tokens, width, height), numbers in groups.items():
        for start in range(0, len(numbers), BATCH):
            some = numbers[start : start + BATCH]
            chosen = [wanted[number] for number in some]
            edits = [case.edit for case in chosen if case.edit is not None]
            embeds, pooled = embed(pipe, [prepared[number] for number in some], edits, tokens)
            negative_embeds, negative_pooled = embed(pipe, [negatives[number] for number in some], edits, tokens)
            references = []
            for index in range(len(edits[0].sources) if edits else 0):
                references.append(pipe.encode_image(image_tensor([edit.sources[index] for edit in edits])))
            conditioning = Conditioning(embeds, pooled, negative_embeds, negative_pooled, height, width, references)
            noise = torch.cat([pipe.prepare_latents(1, height, width, seed=case.seed) for case in chosen])
            latents = pipe.denoise(conditioning, noise, steps, guidance, guidance_every=guidance_every)
            made = pipe.decode(latents, "pil")
            for number, image in zip(some, made, strict=True):
                images[number] = np.asarray(image)
    return images


def _text(pipe: DeepGenPipeline, case: Case, text: str | None = None) -> str:
    text = case.text if text is None else text
    if case.edit is None:
        return texts_of_captions(pipe, [text])[0]
    return texts_of_edits(pipe, [text], [case.edit])[0]


def shares(verdicts: Iterable[Verdict]) -> dict[str, float]:
    """The part of the verdicts that are right, for each fact and for ``right``."""
    verdicts = list(verdicts)
    names = [field.name for field in fields(Verdict)] + ["right"]
    return {name: sum(getattr(verdict, name) for verdict in verdicts) / len(verdicts) for name in names}


def verdicts(images: Sequence[np.ndarray], wanted: Sequence[Case]) -> list[Verdict]:
    """The verdicts of the judge on the images of cases."""
    return [compare(recognise(image), case.scene) for image, case in zip(images, wanted, strict=True)]


def quick(pipe: DeepGenPipeline, task: str, images: int) -> dict[str, float]:
    """Evaluate the core during training, at half the steps."""
    if task == "generate":
        chosen = cases.generation("core", images, seed=7)
        return shares(verdicts(make_images(pipe, chosen, steps=25), chosen))
    chosen = [case for kind in FIRST_KINDS for case in cases.editing(kind, images // len(FIRST_KINDS), seed=7)]
    judged = verdicts(make_images(pipe, chosen, steps=25), chosen)
    return {
        kind: shares(one for one, case in zip(judged, chosen, strict=True) if case.group == kind)["right"]
        for kind in FIRST_KINDS
    }


def judge_itself(count: int = 1000, seed: int = 3) -> dict[str, float]:
    """The part of rendered scenes of which the judge recognises everything."""
    rng = random.Random(seed)
    scenes = {name: [random_scene(rng, domain) for _ in range(count)] for name, domain in cases.JUDGED.items()}
    return {
        name: sum(compare(recognise(pixels(scene)), scene).right for scene in some) / count
        for name, some in scenes.items()
    }


def everything(pipe: DeepGenPipeline, seed: int = 11) -> dict[str, Any]:
    """All numbers of the table, as a nested dict for JSON."""
    result: dict[str, Any] = {"judge": judge_itself(), "vae": measure_reconstruction(pipe.vae, seed)}
    counts = {"core": 500}
    result["generate"] = {
        group: _by_language(pipe, cases.generation(group, counts.get(group, 100), seed)) for group in cases.GROUPS
    }
    result["edit"] = {
        kind: _by_language(pipe, cases.editing(kind, 120 if kind in FIRST_KINDS else 60, seed))
        for kind in (*FIRST_KINDS, *FURTHER_KINDS)
    }
    result["guidance"] = guidance_effect(pipe, seed)
    result["negative"] = negative_prompt_effect(pipe, seed)
    return result


def _by_language(pipe: DeepGenPipeline, chosen: Sequence[Case]) -> dict[str, Any]:
    judged = verdicts(make_images(pipe, chosen), chosen)
    result: dict[str, Any] = {"images": len(chosen), **shares(judged)}
    for language in ("en", "zh"):
        result[language] = shares(one for one, case in zip(judged, chosen, strict=True) if case.language == language)
    return result


def guidance_effect(pipe: DeepGenPipeline, seed: int, count: int = 100) -> dict[str, dict[str, float]]:
    """For some guidance scales, what images show and how much they differ from those at `GUIDANCE`.

    ``difference`` is the mean absolute difference in levels of 0 to 255, with the same noise.
    """
    chosen = cases.generation("core", count, seed)
    made = {scale: make_images(pipe, chosen, guidance=scale) for scale in (1.0, 2.0, GUIDANCE, 7.0)}
    usual = np.stack(made[GUIDANCE]).astype(float)
    return {
        str(scale): {
            **shares(verdicts(images, chosen)),
            "difference": float(np.abs(np.stack(images).astype(float) - usual).mean()),
        }
        for scale, images in made.items()
    }


def negative_prompt_effect(pipe: DeepGenPipeline, seed: int, count: int = 120) -> dict[str, float]:
    """How often a shape whose colour the prompt leaves open is red: without a negative prompt, and with "red"."""
    chosen = cases.open_colour(count, seed)

    def red(found: Recognised) -> bool:
        return any(thing.colour == "red" for thing in found.things)

    return {
        name: sum(red(recognise(image)) for image in make_images(pipe, chosen, negative_prompt=negative)) / count
        for name, negative in (("none", ""), ("red", "red"))
    }
