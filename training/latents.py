"""Stage 3: the DiT's training set, encoded once. ``python -m training latents``.

VLM, connector and VAE are final, so the inputs of the DiT are computed once, by the pipeline's own code for encoding,
and stored.
"""

from __future__ import annotations

import random
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from deepgen_npu import DeepGenPipeline
from deepgen_npu.files import replacing

from .edits import Edit, random_edit
from .encode import NEGATIVES, embed, image_tensor, length, texts_of_captions, texts_of_edits
from .model import load
from .progress import Log
from .scenes import CORE_AND_EXTENDED, Domain, Scene, random_scene
from .wording import LANGUAGES, caption, instruction, random_mentioned


CHUNK = 256
DROPPED = 0.1
"""Part of the texts that are replaced by a negative prompt, for classifier-free guidance."""
OPEN = 0.12
"""Part of the captions that do not mention everything."""
PADDED = 0.25
"""Part of the chunks that are padded as if they contained a longer text."""

KINDS = {
    "recolour": 0.26,
    "background": 0.2,
    "keep": 0.14,
    "replace": 0.1,
    "move": 0.1,
    "remove": 0.07,
    "add": 0.07,
    "combine": 0.06,
}
EDITED = Domain(further_shapes=0.15, other_sizes=0.1, two_things=0.12)


@dataclass
class Chunk:
    """Rows of one shape.

    Attributes:
        embeds: [n, L, joint_attention_dim].
        pooled: [n, pooled_projection_dim].
        target: [n, C, h, w] in scaled latent space.
        references: Each [n, C, h, w].
    """

    embeds: Tensor
    pooled: Tensor
    target: Tensor
    references: list[Tensor]

    def rows(self, chosen: Tensor) -> Chunk:
        """The rows with the given indices, in float32."""
        return Chunk(
            self.embeds[chosen].float(),
            self.pooled[chosen].float(),
            self.target[chosen].float(),
            [reference[chosen].float() for reference in self.references],
        )


def path(work: Path, process: int) -> Path:
    """The file of one process."""
    return work / f"latents-{process}.pt"


def write(work: Path, process: int, seed: int, captions: int, edits: int, log: Log) -> None:
    """Encode the share of one process and save it as {"generate": chunks, "edit": chunks}.

    Args:
        work: Folder of the run.
        process: Number of this process.
        seed: Of the texts and scenes.
        captions: Number of captions of this process.
        edits: Number of edits of this process.
        log: For the time it took.
    """
    start = time.monotonic()
    pipe = load(work / "checkpoint")
    rng = random.Random(f"{seed} {process}")
    torch.manual_seed(seed + process)
    chunks = {"generate": list(_generation(pipe, rng, captions)), "edit": list(_editing(pipe, rng, edits))}
    with replacing(path(work, process)) as unfinished:
        torch.save({task: [vars(chunk) for chunk in some] for task, some in chunks.items()}, unfinished)
    log.write(
        stage="latents",
        process=process,
        seconds=time.monotonic() - start,
        **{task: sum(len(chunk.target) for chunk in some) for task, some in chunks.items()},
    )


def read(work: Path, process: int) -> dict[str, list[Chunk]]:
    """What `write` stored."""
    stored = torch.load(path(work, process), weights_only=True)
    return {task: [Chunk(**chunk) for chunk in some] for task, some in stored.items()}


def _generation(pipe: DeepGenPipeline, rng: random.Random, count: int):
    groups: dict[tuple[int, int], list[tuple[str, Scene]]] = defaultdict(list)
    for _ in range(count):
        scene = random_scene(rng, CORE_AND_EXTENDED)
        text = caption(rng, scene, rng.choice(LANGUAGES), random_mentioned(rng, OPEN))
        groups[scene.width, scene.height].append((text, scene))
    for texts, scenes, pad_to in _cut(pipe, rng, groups.values(), long=0.04):
        yield _chunk(pipe, texts_of_captions(pipe, texts), [], scenes, pad_to)


def _editing(pipe: DeepGenPipeline, rng: random.Random, count: int):
    groups: dict[int, list[tuple[str, Edit]]] = defaultdict(list)
    for _ in range(count):
        kind = rng.choices(list(KINDS), list(KINDS.values()))[0]
        edit = random_edit(rng, kind, EDITED)
        groups[len(edit.sources)].append((instruction(rng, edit, rng.choice(LANGUAGES)), edit))
    # The model card of DeepGen 1.0 has a long negative prompt for editing, and so has the node.
    for texts, edits, pad_to in _cut(pipe, rng, groups.values(), long=0.15):
        texts = texts_of_edits(pipe, texts, edits)
        yield _chunk(pipe, texts, edits, [edit.target for edit in edits], pad_to)


def _cut(
    pipe: DeepGenPipeline, rng: random.Random, groups: Iterable[list[tuple[str, Any]]], long: float
) -> Iterator[tuple[list[str], Sequence[Any], int]]:
    """Cut groups of (text, scene or edit) into chunks of texts of similar length.

    Args:
        pipe: For the lengths.
        rng: For what is replaced and padded.
        groups: Of texts that can share a batch.
        long: Part of the chunks that have the long negative prompt.

    Returns:
        Texts, some of them replaced by the negative prompt; their scenes or edits; the least number of tokens.
    """
    for group in groups:
        group.sort(key=lambda one: length(pipe, one[0]))
        for start in range(0, len(group), CHUNK):
            texts, sources = zip(*group[start : start + CHUNK], strict=True)
            negative, pad_to = _padding(pipe, rng, texts, long)
            yield [negative if rng.random() < DROPPED else text for text in texts], sources, pad_to


def _padding(pipe: DeepGenPipeline, rng: random.Random, texts: Sequence[str], long: float) -> tuple[str, int]:
    """The negative prompt of a chunk, and the least number of tokens of its texts with their template."""
    if rng.random() < long:
        return NEGATIVES[1], 0
    longest = max(length(pipe, text) for text in texts)
    return NEGATIVES[0], longest + rng.randint(2, 16) if rng.random() < PADDED else 0


@torch.no_grad()
def _chunk(
    pipe: DeepGenPipeline, texts: Sequence[str], edits: Sequence[Edit], targets: Sequence[Scene], pad_to: int
) -> Chunk:
    sequence, pooled = embed(pipe, texts, edits, pad_to)
    number = len(edits[0].sources) if edits else 0
    references = [_latents(pipe, [edit.sources[index] for edit in edits]) for index in range(number)]
    return Chunk(
        sequence.to(torch.bfloat16),
        pooled.to(torch.bfloat16),
        _latents(pipe, targets),
        references,
    )


def _latents(pipe: DeepGenPipeline, scenes: Sequence[Scene]) -> Tensor:
    pieces = [scenes[start : start + 64] for start in range(0, len(scenes), 64)]
    return torch.cat([pipe.encode_image(image_tensor(piece)) for piece in pieces]).to(torch.bfloat16)
