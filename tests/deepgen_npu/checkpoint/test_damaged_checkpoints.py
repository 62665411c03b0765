"""Damaged and hostile checkpoints: one clear error at once, or a model that works. Inputs are drawn, never listed."""

from __future__ import annotations

import contextlib
import json
import struct
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import damage
import pytest
import torch
from golden import TINY
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from platforms import not_on_windows
from property_settings import cases, drawn
from safetensors import SafetensorError, safe_open

from deepgen_npu import Checkpoint, CheckpointError, DeepGenPipeline
from deepgen_npu.checkpoint.safetensors_header import read_safetensors_header
from deepgen_npu.checkpoint.tokenizer_files import TokenizerFiles
from deepgen_npu.locations import DEMO_FOLDER


# Also, messages name files with / here.
pytestmark = not_on_windows("links need rights that users do not have")
SOURCES = (TINY, DEMO_FOLDER)
CONFIGS = (
    "vlm/config.json",
    "connector/config.json",
    "transformer/config.json",
    "vae/config.json",
    "scheduler/scheduler_config.json",
)
LANGUAGE = ("tokenizer/tokenizer_config.json", "tokenizer/vocab.json", "prompt_template.json")
WEIGHTS = (
    "vlm/model-00001-of-00002.safetensors",
    "vlm/model-00002-of-00002.safetensors",
    "connector/model.safetensors",
    "transformer/diffusion_pytorch_model.safetensors",
    "vae/diffusion_pytorch_model.safetensors",
)
INDEX = "vlm/model.safetensors.index.json"
ALL = (*CONFIGS, *LANGUAGE, *WEIGHTS, INDEX, "tokenizer/merges.txt", "model_index.json")
# Reading the headers takes a few hundredths; the rest is room for a busy machine.
SECONDS = 5

sources = st.sampled_from(SOURCES)


@contextmanager
def copied(source: Path) -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as folder:
        yield damage.linked(source, Path(folder) / "model")


def says(folder: Path) -> tuple[object, ...]:
    """All of a checkpoint that decides what is drawn, but the weights."""
    checkpoint, tokenizer = Checkpoint.open(folder), TokenizerFiles.read(folder)
    return (
        checkpoint.configs,
        checkpoint.sizes,
        (tokenizer.vocabulary, tokenizer.merges, tokenizer.added, tokenizer.names),
        checkpoint.prompt_template,
    )


INTACT = {source: says(source) for source in SOURCES}


def draw_image(folder: Path) -> None:
    """Load everything, draw and edit: finite images."""
    pipe = DeepGenPipeline.from_pretrained(folder, torch_dtype=torch.float32, device="cpu")
    pipe.set_progress_bar_config(disable=True)
    side = pipe.sizes.editing_multiple
    for image in (None, Image.new("RGB", (side, side), "red")):
        pixels = pipe("a cat", image, height=side, width=side, num_inference_steps=2, seed=0, output_type="pt").images
        assert torch.isfinite(pixels).all()


def require_clear(kind: str, source: Path, folder: Path, name: str) -> None:
    """The invariant: an error that names the file, at once; or what is read is as intact; or it works."""
    drawn[f"checkpoints: {kind}"] += 1
    start = time.monotonic()
    try:
        found = says(folder)
    except CheckpointError as error:
        message = str(error)
        # What is wrong between an index, its shards and a config is named by their folder.
        assert name in message or str(folder / Path(name).parent) in message, message
        assert len(message) < 3000 and "Traceback" not in message
        message.encode()
        found = None
    assert time.monotonic() - start < SECONDS
    if found not in (None, INTACT[source]):
        draw_image(folder)


def json_of(file: Path) -> object:
    return json.loads(file.read_text(encoding="utf-8"))


@pytest.mark.slow
@cases(110)
@given(data=st.data(), source=sources, name=st.sampled_from(CONFIGS))
def test_any_value_of_any_config(data, source, name):
    with copied(source) as folder:
        damage.put(folder / name, damage.text(data.draw, json_of(source / name)).encode())
        require_clear("values in configs", source, folder, name)


@pytest.mark.slow
@cases(60)
@given(data=st.data(), source=sources, name=st.sampled_from((*LANGUAGE, "model_index.json", INDEX)))
def test_any_value_of_tokenizer_template_and_index(data, source, name):
    with copied(source) as folder:
        damage.put(folder / name, damage.text(data.draw, json_of(source / name)).encode())
        require_clear("values elsewhere", source, folder, name)


@cases(50)
@given(data=st.data(), source=sources, name=st.sampled_from((*CONFIGS, *LANGUAGE, "tokenizer/merges.txt", INDEX)))
def test_any_byte_of_a_text_file(data, source, name):
    with copied(source) as folder:
        damage.put(folder / name, damage.damaged_bytes(data.draw, (source / name).read_bytes()))
        require_clear("bytes of text files", source, folder, name)


@cases(30)
@given(data=st.data(), source=sources, name=st.sampled_from(ALL))
def test_something_else_in_the_place_of_a_file(data, source, name):
    with copied(source) as folder:
        damage.something_else(data.draw, folder / name)
        require_clear("no file", source, folder, name.replace(".index.json", ""))


def judged(file: Path) -> None:
    """Never less strict than the safetensors library."""
    try:
        with safe_open(file, "pt") as opened:
            names = set(opened.keys())
    except (SafetensorError, OSError):
        names = None
    with contextlib.suppress(CheckpointError):
        assert set(read_safetensors_header(file)) == names


@cases(80)
@given(data=st.data(), name=st.sampled_from(WEIGHTS[2:]))
def test_any_field_of_a_header(data, name):
    content = (TINY / name).read_bytes()
    (length,) = struct.unpack("<Q", content[:8])
    header = damage.text(data.draw, json.loads(content[8 : 8 + length])).encode()
    with copied(TINY) as folder:
        damage.put(folder / name, struct.pack("<Q", len(header)) + header + content[8 + length :])
        judged(folder / name)
        require_clear("fields of headers", TINY, folder, name)


@cases(60)
@given(data=st.data(), name=st.sampled_from(WEIGHTS[2:]))
def test_any_byte_of_a_header(data, name):
    content = (TINY / name).read_bytes()
    (length,) = struct.unpack("<Q", content[:8])
    with copied(TINY) as folder:
        damaged = damage.damaged_bytes(data.draw, content[: 8 + length])
        damage.put(folder / name, damaged + content[8 + length :])
        judged(folder / name)
        require_clear("bytes of headers", TINY, folder, name)


def test_what_is_drawn_stays_the_same():
    """The sentinel: none of the cases above leaves anything behind in this process."""
    for source, intact in INTACT.items():
        assert says(source) == intact
    draw_image(TINY)


@pytest.mark.parametrize("source", SOURCES)
def test_nothing_is_changed_by_the_checks(source):
    assert Checkpoint.open(source).stored_configs["vae"] == json_of(source / "vae/config.json")
