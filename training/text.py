"""Stage 2: the text side. ``python -m training text``.

VLM, meta queries, connector and vision tower learn to represent, in the input of the DiT, every fact of a caption or
of an instruction and its image. Linear heads read the facts; they are discarded afterwards.
"""

from __future__ import annotations

import random
from collections import Counter, defaultdict
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from deepgen_npu import DeepGenPipeline

from .edits import FIRST_KINDS, FURTHER_KINDS, Edit, random_edit
from .encode import NEGATIVES, embed, texts_of_captions, texts_of_edits
from .model import load, save_part
from .progress import Log, cosine, optimizer_step
from .resume import Saved
from .scenes import Domain, random_scene
from .slots import CLASSES, of_caption, of_edit
from .wording import LANGUAGES, STOPS, as_sentence, capitalised_words, caption, instruction, random_mentioned


BATCH = 64
LEARNING_RATE = 2e-3
SENTENCE_STEPS = 300

SCENES = Domain(further_shapes=0.4, other_sizes=0.35, two_things=0.35)
"""More of the extended scenes than the DiT gets: here they cost no time."""


class Heads(nn.Module):
    """For each slot a linear classifier on the pooled vector, and one on the mean of the query positions."""

    def __init__(self, pipe: DeepGenPipeline):
        super().__init__()
        self.queries = pipe.connector.num_queries
        classes = sum(map(len, CLASSES.values()))
        self.pooled = nn.Linear(pipe.connector.projector_2.out_features, classes)
        self.sequence = nn.Linear(pipe.connector.projector_3.out_features, classes)

    def forward(self, sequence: Tensor, pooled: Tensor) -> tuple[Tensor, Tensor]:
        """Logits [b, classes] of both, from [b, L + queries, width] and [b, pooled width]."""
        return self.pooled(pooled), self.sequence(sequence[:, -self.queries :].mean(1))


def train(folder: Path, state: Path, seconds: float, seed: int, log: Log) -> None:
    """Train VLM and connector of ``folder`` and write their weights.

    Args:
        folder: The checkpoint.
        state: The file with the state of the training.
        seconds: Of training, over all runs.
        seed: Of the texts.
        log: For losses and results.
    """
    torch.manual_seed(seed)
    pipe = load(folder)
    heads = Heads(pipe)
    parameters = trainable(pipe) + list(heads.parameters())
    for parameter in parameters:
        parameter.requires_grad_(True)
    optimizer = torch.optim.AdamW(parameters, lr=LEARNING_RATE, betas=(0.9, 0.98), weight_decay=0.02)
    run = Saved(state, vlm=pipe.vlm, connector=pipe.connector, heads=heads, optimizer=optimizer)
    rng = random.Random(f"{seed} {run.step}")
    for part in run.until(seconds):
        texts, edits, slots = batch(pipe, rng, SCENES, editing=run.step % 2 == 1)
        loss, right = loss_and_accuracy(heads(*embed(pipe, texts, edits)), slots)
        optimizer_step(optimizer, loss, LEARNING_RATE * min(1.0, (run.step + 1) / 100) * cosine(part))
        if run.step % 100 < 2:
            log.write(
                stage="text",
                step=run.step,
                seconds=run.seconds,
                task="edit" if edits else "generate",
                loss=float(loss.detach()),
                right=sum(right.values()) / len(right),
            )
    for parameter in parameters:
        parameter.requires_grad_(False)
    # At most as many steps as the stage itself had: tests run it for seconds.
    loss = begin_and_end_sentences(pipe, rng, min(SENTENCE_STEPS, run.step))
    log.write(stage="text", sentences=loss)
    for part_name in ("vlm", "connector"):
        model = getattr(pipe, part_name)
        if part_name == "vlm":
            model.to(torch.bfloat16)
        save_part(folder, part_name, model.state_dict())
    pipe = load(folder)
    for language in LANGUAGES:
        log.write(stage="text", language=language, **measure_accuracy(pipe, heads, seed + 1, language))


def begin_and_end_sentences(pipe: DeepGenPipeline, rng: random.Random, steps: int) -> float:
    """Make "A red circle." mean the same as "a red circle".

    Capitalised words get the embeddings of the words. The marks at the end get embeddings of their own, trained to
    leave the input of the DiT unchanged; no other weight changes.

    Returns:
        The last loss: mean squared difference of the pooled vectors and the queries, relative to their variance.
    """
    table = pipe.vlm.model.language_model.embed_tokens.weight
    one = pipe.tokenizer.convert_tokens_to_ids
    with torch.no_grad():
        for word in capitalised_words():
            table[one(word)] = table[one(word.lower())]
    stops = [pipe.tokenizer(stop)["input_ids"] for stop in STOPS]
    rows = torch.zeros(len(table), 1)
    rows[[number for numbers in stops for number in numbers]] = 1
    table.requires_grad_(True)
    # Without weight decay, rows without a gradient do not change.
    optimizer = torch.optim.Adam([table], lr=3e-3)
    queries, loss = pipe.connector.num_queries, torch.zeros(())
    for _ in range(steps):
        language = rng.choice(LANGUAGES)
        texts = [caption(rng, random_scene(rng, SCENES), language, random_mentioned(rng, 0.15)) for _ in range(BATCH)]
        with torch.no_grad():
            sequence, pooled = embed(pipe, texts_of_captions(pipe, texts))
        ended, pooled_ended = embed(pipe, texts_of_captions(pipe, [as_sentence(text, language) for text in texts]))
        loss = F.mse_loss(pooled_ended, pooled) / pooled.var()
        loss = loss + F.mse_loss(ended[:, -queries:], sequence[:, -queries:]) / sequence[:, -queries:].var()
        optimizer.zero_grad()
        loss.backward()
        table.grad.mul_(rows)
        optimizer.step()
    table.requires_grad_(False)
    return float(loss.detach())


def trainable(pipe: DeepGenPipeline) -> list[nn.Parameter]:
    """The parameters of VLM and connector."""
    return [*pipe.vlm.parameters(), *pipe.connector.parameters()]


def batch(
    pipe: DeepGenPipeline, rng: random.Random, scenes: Domain, editing: bool, language: str | None = None
) -> tuple[list[str], list[Edit], list[dict[str, str]]]:
    """Texts, their edits (none for captions), and their facts."""

    def any_language() -> str:
        return language or rng.choice(LANGUAGES)

    if not editing:
        captions, slots = [], []
        for _ in range(BATCH):
            scene, mentioned = random_scene(rng, scenes), random_mentioned(rng, 0.15)
            captions.append(caption(rng, scene, any_language(), mentioned))
            slots.append(of_caption(scene, mentioned))
        padding = rng.random()
        if padding < 0.3:  # the batch gets the length of the negative prompts
            captions[0], slots[0] = NEGATIVES[padding < 0.1], {}
        return texts_of_captions(pipe, captions), [], slots
    # Two references need more tokens than one, so they have batches of their own.
    kinds = ("combine",) if rng.random() < 0.15 else (*FIRST_KINDS, *FURTHER_KINDS[:-1])
    edits = [random_edit(rng, rng.choice(kinds), scenes) for _ in range(BATCH)]
    instructions = [instruction(rng, edit, any_language()) for edit in edits]
    slots = [of_edit(edit) for edit in edits]
    if rng.random() < 0.15:
        instructions[0], slots[0] = NEGATIVES[1], {}
    return texts_of_edits(pipe, instructions, edits), edits, slots


def loss_and_accuracy(logits: tuple[Tensor, Tensor], slots: list[dict[str, str]]) -> tuple[Tensor, dict[str, float]]:
    """The loss, and for each slot the part of the texts that both heads read correctly."""
    losses, right = [], {}
    start = 0
    for slot, names in CLASSES.items():
        rows = [row for row, facts in enumerate(slots) if slot in facts]
        if rows:
            target = torch.tensor([names.index(slots[row][slot]) for row in rows])
            own = [one[rows, start : start + len(names)] for one in logits]
            losses += [F.cross_entropy(one, target) for one in own]
            right[slot] = float(torch.stack([one.argmax(-1) == target for one in own]).all(0).float().mean())
        start += len(names)
    return torch.stack(losses).mean(), right


@torch.no_grad()
def measure_accuracy(
    pipe: DeepGenPipeline, heads: Heads, seed: int, language: str, batches: int = 6
) -> dict[str, float]:
    """The part of the facts that the heads read correctly, by slot, on held-out scenes."""
    rng = random.Random(seed)
    scenes = Domain(further_shapes=0.3, other_sizes=0.3, two_things=0.3, held_out=True)
    total: dict[str, float] = defaultdict(float)
    count: Counter[str] = Counter()
    for number in range(2 * batches):
        texts, edits, slots = batch(pipe, rng, scenes, number % 2 == 1, language)
        for slot, value in loss_and_accuracy(heads(*embed(pipe, texts, edits)), slots)[1].items():
            total[slot] += value
            count[slot] += 1
    return {slot: total[slot] / count[slot] for slot in CLASSES if count[slot]}
