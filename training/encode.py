"""The stage 1 of the pipeline, from texts and references to embeddings, for batches of different rows."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from deepgen_npu import DeepGenPipeline
from deepgen_npu.model.vision_language import stacked_hidden_states
from deepgen_npu.model.vision_tower import encode_references
from deepgen_npu.prompts import EDIT_NEGATIVE_PROMPT, tokenize

from .edits import Edit
from .scenes import Scene, pixels


NEGATIVES = ("", EDIT_NEGATIVE_PROMPT)


def image_tensor(scenes: Sequence[Scene]) -> Tensor:
    """Rendered scenes [n, 3, H, W] in [-1, 1], as ``to_pixels`` of the pipeline returns images."""
    return to_tensor([pixels(scene) for scene in scenes])


def to_tensor(images: Sequence[np.ndarray]) -> Tensor:
    """Images [H, W, 3] (uint8) as [n, 3, H, W] in [-1, 1]."""
    return torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).float() / 255 * 2 - 1


def texts_of_captions(pipe: DeepGenPipeline, captions: Sequence[str]) -> list[str]:
    """Captions in the prompt template."""
    return [pipe.prompt_template.for_generation(caption) for caption in captions]


def texts_of_edits(pipe: DeepGenPipeline, instructions: Sequence[str], edits: Sequence[Edit]) -> list[str]:
    """Instructions in the prompt template, with the image tokens of the references of their edits."""
    cells = image_cells(pipe, edits)
    return [
        pipe.prompt_template.for_editing(instruction, [rows * columns for rows, columns in cells])
        for instruction in instructions
    ]


def image_cells(pipe: DeepGenPipeline, edits: Sequence[Edit]) -> list[tuple[int, int]]:
    """(rows, columns) of the references in merge cells: the same for all edits."""
    cell = pipe.sizes.vision_cell
    return [(scene.height // cell, scene.width // cell) for scene in edits[0].sources]


def length(pipe: DeepGenPipeline, text: str) -> int:
    """Number of tokens."""
    return len(pipe.tokenizer(text)["input_ids"])


def embed(
    pipe: DeepGenPipeline, texts: Sequence[str], edits: Sequence[Edit] = (), pad_to: int = 0
) -> tuple[Tensor, Tensor]:
    """Run VLM and connector.

    Args:
        pipe: The pipeline.
        texts: In the prompt template.
        edits: Of the texts, if any. Their sources are the references, the same number for all.
        pad_to: Left-pad to at least this number of tokens, as a longer text in the batch would.

    Returns:
        The sequence [n, L + queries, joint_attention_dim] and the pooled vector [n, pooled_projection_dim].
    """
    input_ids, valid = tokenize(pipe.tokenizer, texts)
    if (missing := pad_to - input_ids.shape[1]) > 0:
        input_ids = torch.nn.functional.pad(input_ids, (missing, 0), value=pipe.tokenizer.pad_token_id)
        valid = torch.nn.functional.pad(valid, (missing, 0), value=False)
    features, cells = None, []
    if edits:
        cells = image_cells(pipe, edits)
        references = image_tensor([scene for edit in edits for scene in edit.sources])
        features = encode_references(pipe.vlm, references)  # [edits x references, tokens, hidden]
        features = features.reshape(len(edits), -1, features.shape[-1])
    states = stacked_hidden_states(pipe.vlm, input_ids, valid, pipe.connector.meta_queries, features, cells)
    return pipe.connector(states)
