"""The demo model: its dimensions, its tokenizer, and its folder in the published layout."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from deepgen_npu import DeepGenPipeline
from deepgen_npu.checkpoint.index_keys import LATENT_RGB_FACTORS_KEY, RANDOM_WEIGHTS_KEY, TRAINED_SIDE_KEY
from deepgen_npu.checkpoint.tokenizer_files import byte_symbols
from deepgen_npu.files import new_folder, replacing
from deepgen_npu.prompts import EDIT_NEGATIVE_PROMPT
from deepgen_npu.tools.layout import WeightFile, legacy_vlm_name, weight_files
from deepgen_npu.tools.model_sizes import PROMPT_TEMPLATE, Size, Vocabulary, make_size
from deepgen_npu.tools.random_checkpoint import write

from .preview_colours import fit as fit_preview_colours
from .scenes import SIDE
from .wording import STOPS, all_words, capitalised_words


LONGEST_TOKEN = 12
"""In bytes."""


def vocabulary() -> Vocabulary:
    """Byte-level BPE with one token for each word of the demo; anything else is spelt in bytes."""
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    # Words are already split; a regular expression would separate the space before them.
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    words = all_words() + [" " + word for word in EDIT_NEGATIVE_PROMPT.replace(".", "").replace(",", "").split()]
    trainer = trainers.BpeTrainer(
        vocab_size=2000,
        min_frequency=1,
        max_token_length=LONGEST_TOKEN,
        initial_alphabet=byte_symbols(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(words, trainer)
    merges = json.loads(tokenizer.to_str())["model"]["merges"]
    pairs = [tuple(pair.split(" ")) if isinstance(pair, str) else tuple(pair) for pair in merges]

    def symbols() -> list[str]:
        return list(dict.fromkeys([*byte_symbols(), *("".join(pair) for pair in pairs)]))

    # Capitalised words and the marks that end sentences come last and leave the other ids as they are
    # (`text.begin_and_end_sentences`).
    for word in (*STOPS, *capitalised_words()):
        first, *others = tokenizer.encode(word).tokens
        for piece in others:
            pairs.append((first, piece))
            first += piece
        tokenizer.model = models.BPE({symbol: number for number, symbol in enumerate(symbols())}, pairs)
    return Vocabulary(tuple(symbols()), tuple(" ".join(pair) for pair in pairs))


def demo_size() -> Size:
    """DeepGen 1.0 in small: every part and every kind of block, at about a thousandth of the parameters."""
    words = vocabulary()
    tokens = len(words.symbols) + len(words.special_ids)
    return make_size(
        text={
            "hidden_size": 96,
            "intermediate_size": 256,
            "num_attention_heads": 4,
            # Two states for the connector: of layers 7 and 1.
            "num_hidden_layers": 8,
            "num_key_value_heads": 2,
            "vocab_size": -(-tokens // 16) * 16,
        },
        vision={
            "depth": 3,
            "fullatt_block_indexes": [2],
            "hidden_size": 64,
            "intermediate_size": 160,
            "num_heads": 4,
        },
        connector={"hidden_size": 96, "intermediate_size": 224, "num_hidden_layers": 2, "num_attention_heads": 4},
        num_queries=8,
        transformer={
            "attention_head_dim": 32,
            "dual_attention_layers": [0, 1],
            "joint_attention_dim": 128,
            "num_attention_heads": 5,
            "num_layers": 6,
            "pooled_projection_dim": 112,
            # A token is one step of the position grid, which covers 128 pixels.
            "pos_embed_max_size": 8,
            "sample_size": 16,
        },
        vae={
            "block_out_channels": [8, 16, 32, 48],
            "layers_per_block": 1,
            "norm_num_groups": 4,
            "sample_size": SIDE,
            "scaling_factor": 1.0,
            "shift_factor": 0.0,
        },
        shard_bytes=1_400_000,
        vocabulary=words,
        # Short templates, so that most tokens are those of the prompt.
        prompt_template={
            **PROMPT_TEMPLATE,
            "INSTRUCTION": "<|im_start|>{input}<|im_end|>",
            "GENERATION": "{input}",
        },
    )


def create(folder: str | os.PathLike[str], seed: int) -> Path:
    """A folder with the demo's files and random weights."""
    return write(folder, demo_size(), seed)


def load(folder: str | os.PathLike[str]) -> DeepGenPipeline:
    """The pipeline of a folder on the CPU in float32, without progress bars."""
    pipe = DeepGenPipeline.from_pretrained(folder, torch_dtype=torch.float32)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def save_part(folder: str | os.PathLike[str], part: str, state: Mapping[str, Tensor], **config: Any) -> None:
    """Replace the weights of one part, with the names, files and dtypes of the published layout.

    Args:
        folder: Of the checkpoint.
        part: ``vlm``, ``connector``, ``transformer`` or ``vae``.
        state: The model's state dict; tensors that no file holds (buffers) are left out.
        config: Settings of the part's ``config.json`` that the training found.
    """
    folder = Path(folder)
    if part == "vlm":
        state = {legacy_vlm_name(name): tensor for name, tensor in state.items()}
    for file in _files(part):
        with replacing(folder / file.name) as unfinished:
            file.save(unfinished, state)
    if config:
        path = folder / part / "config.json"
        settings = json.loads(path.read_text(encoding="utf-8")) | config
        with replacing(path) as unfinished:
            unfinished.write_text(
                json.dumps(settings, indent=2, sort_keys=True) + "\n", encoding="utf-8", newline="\n"
            )


def _files(part: str) -> list[WeightFile]:
    return [file for file in weight_files(demo_size()) if file.part == part]


README = f"""# Coloured shapes: a demo for the DeepGen node pack

This is **not DeepGen 1.0**. It is a model of the same structure with about a thousandth of its parameters, trained
from scratch to draw and to edit one or two coloured shapes at {SIDE} x {SIDE} pixels. It has the folders, files,
tensor names and dtypes of `deepgenteam/DeepGen-1.0-diffusers`, so everything that loads the one loads the other.

The folder `training/` of the node pack makes it, and its table in `training/EVALUATION.md` says what it can do.
Licence: that of the node pack, Apache-2.0.
"""


def publish(source: str | os.PathLike[str], target: str | os.PathLike[str]) -> Path:
    """Copy a trained folder to its place in the pack, and describe the model in its README and index.

    Args:
        source: The trained folder.
        target: New, or a folder to replace.
    """
    source, target = Path(source), Path(target)
    index = json.loads((source / "model_index.json").read_text(encoding="utf-8"))
    index.pop(RANDOM_WEIGHTS_KEY, None)
    index[TRAINED_SIDE_KEY] = SIDE
    index[LATENT_RGB_FACTORS_KEY] = fit_preview_colours(load(source))
    with new_folder(target, replace=True) as unfinished:
        shutil.copytree(source, unfinished, dirs_exist_ok=True)
        text = json.dumps(index, indent=2) + "\n"
        (unfinished / "model_index.json").write_text(text, encoding="utf-8", newline="\n")
        (unfinished / "README.md").write_text(README, encoding="utf-8", newline="\n")
    return target
