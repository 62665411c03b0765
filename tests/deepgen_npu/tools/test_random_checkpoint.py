"""Random checkpoints: their layout against the reference checkpoint and the published numbers; their use."""

from __future__ import annotations

import copy
import json
import math
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from random_folders import TINY_SHA256, files_of, sha256
from safetensors.torch import load_file

from deepgen_npu import DeepGenPipeline
from deepgen_npu.checkpoint.index_keys import RANDOM_WEIGHTS_KEY
from deepgen_npu.tools import random_values
from deepgen_npu.tools.layout import WeightFile, weight_files
from deepgen_npu.tools.model_sizes import SIZES
from deepgen_npu.tools.random_checkpoint import is_random_checkpoint, write


REFERENCE = Path(__file__).parents[2] / "data" / "reference" / "tiny"
DIT = "transformer/diffusion_pytorch_model.safetensors"
# deepgenteam/DeepGen-1.0-diffusers: tensors, elements and bytes of the header.
PUBLISHED = {
    "vlm/model-00001-of-00002.safetensors": (628, 2_498_840_576, 69_600),
    "vlm/model-00002-of-00002.safetensors": (196, 1_255_782_400, 22_376),
    "connector/model.safetensors": (103, 432_449_532, 11_312),
    DIT: (909, 2_469_663_936, 105_792),
    "vae/diffusion_pytorch_model.safetensors": (244, 83_819_683, 27_528),
}


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("random") / "tiny")


@pytest.fixture(scope="module")
def pipe(tiny: Path) -> DeepGenPipeline:
    pipe = DeepGenPipeline.from_pretrained(tiny, torch_dtype=torch.float32)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def header_of(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(struct.unpack("<Q", file.read(8))[0])


def header_length(file: WeightFile) -> int:
    """Bytes of the JSON before the data, which the format pads to a multiple of 8."""
    entries: dict[str, Any] = {"__metadata__": {"format": "pt"}} if file.metadata else {}
    offset = 0
    for name, shape in file.shapes.items():
        end = offset + math.prod(shape) * file.torch_dtype.itemsize
        entries[name] = {"dtype": file.dtype, "shape": list(shape), "data_offsets": [offset, end]}
        offset = end
    return -(-len(json.dumps(entries, separators=(",", ":"))) // 8) * 8


def keys_of(content: Any, prefix: str = "") -> set[str]:
    """The paths of all keys of a JSON object."""
    if not isinstance(content, dict):
        return set()
    return {f"{prefix}/{key}" for key in content}.union(
        *(keys_of(value, f"{prefix}/{key}") for key, value in content.items())
    )


def reference_image(side: int, red: int, green: int, blue: int) -> Image.Image:
    pixels = np.full((side, side, 3), (red, green, blue), dtype=np.uint8)
    pixels[: side // 2, : side // 3] = 255 - pixels[0, -1]
    return Image.fromarray(pixels)


# The layout


def test_files_are_those_of_the_reference_and_a_readme(tiny: Path) -> None:
    assert set(files_of(tiny)) == {*files_of(REFERENCE), "README.md"}


@pytest.mark.parametrize("name", [name for name in PUBLISHED if name != DIT])
def test_weights_have_the_layout_of_the_reference(tiny: Path, name: str) -> None:
    # Names, dtypes, shapes, order, offsets and metadata at once.
    assert header_of(tiny / name) == header_of(REFERENCE / name)
    assert (tiny / name).stat().st_size == (REFERENCE / name).stat().st_size


def test_dit_differs_from_the_reference_in_its_position_table_only(tiny: Path) -> None:
    written, reference = (json.loads(header_of(folder / DIT)) for folder in (tiny, REFERENCE))
    assert list(written) == list(reference)
    table = "pos_embed.pos_embed"
    assert (written[table]["shape"], reference[table]["shape"]) == ([1, 64 * 64, 32], [1, 24 * 24, 32])
    for name in written.keys() - {table, "__metadata__"}:
        for key in ("dtype", "shape"):
            assert written[name][key] == reference[name][key], name


@pytest.mark.parametrize(
    "name", [name for name in files_of(REFERENCE) if name.endswith(".json") and "index" not in name]
)
def test_configs_have_the_keys_of_the_reference(tiny: Path, name: str) -> None:
    written, reference = (json.loads((folder / name).read_text("utf-8")) for folder in (tiny, REFERENCE))
    assert keys_of(written) == keys_of(reference)


@pytest.mark.parametrize(
    "name",
    [
        "prompt_template.json",
        "connector/config.json",
        "tokenizer/tokenizer_config.json",
        "tokenizer/vocab.json",
        "vlm/model.safetensors.index.json",
    ],
)
def test_files_without_library_versions_say_what_the_reference_says(tiny: Path, name: str) -> None:
    written, reference = (json.loads((folder / name).read_text("utf-8")) for folder in (tiny, REFERENCE))
    assert written == reference


def test_the_checkpoint_says_that_it_is_random(tiny: Path) -> None:
    index = json.loads((tiny / "model_index.json").read_text("utf-8"))
    assert index.pop(RANDOM_WEIGHTS_KEY) is True
    assert index == json.loads((REFERENCE / "model_index.json").read_text("utf-8"))
    readme = (tiny / "README.md").read_text("utf-8")
    assert readme.count("\n") == 1 and readme.startswith("Random weights")
    assert is_random_checkpoint(tiny)
    assert not is_random_checkpoint(REFERENCE)


def test_code_in_the_folder_raises(tiny: Path) -> None:
    with pytest.raises(RuntimeError, match="remote code"):
        exec((tiny / "deepgen_pipeline.py").read_text("utf-8"), {})


# The values


def test_the_same_seed_gives_the_same_bytes(tiny: Path) -> None:
    assert sha256(tiny) == TINY_SHA256


def test_the_size_of_the_pieces_does_not_change_the_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(random_values, "_PIECE", 1000)
    assert sha256(write(tmp_path / "pieces")) == TINY_SHA256


def test_another_seed_gives_other_weights(tiny: Path, tmp_path: Path) -> None:
    other = write(tmp_path / "other", seed=1)
    for name in PUBLISHED:
        ours, theirs = load_file(tiny / name), load_file(other / name)
        same = {key for key in ours if torch.equal(ours[key], theirs[key])}
        assert same == ({"pos_embed.pos_embed"} if name == DIT else set())


def test_weights_are_as_large_as_their_fan_in_wants(tiny: Path) -> None:
    for name in PUBLISHED:
        for key, tensor in load_file(tiny / name).items():
            values = tensor.float()
            if key == "pos_embed.pos_embed":
                continue
            assert values.std() > 0, key
            if tensor.ndim > 1:
                scaled = values.std().item() * math.sqrt(values[0].numel())
                assert 0.8 < scaled < 2.5, key
            elif key.endswith(".weight"):
                assert (values - 1).abs().max() < 0.1, key
            else:
                assert values.abs().max() < 0.1, key


def test_padding_has_an_embedding_and_no_id_that_would_clear_it(tiny: Path, pipe: DeepGenPipeline) -> None:
    assert not any("pad_token_id" in key for key in keys_of(json.loads((tiny / "vlm/config.json").read_text())))
    pad = pipe.tokenizer.pad_token_id
    assert pad == 256
    stored = load_file(tiny / "vlm/model-00001-of-00002.safetensors")["model.embed_tokens.weight"][pad].float()
    assert stored.std() > 0.1
    assert torch.equal(pipe.vlm.model.language_model.embed_tokens.weight[pad], stored)


def test_the_position_table_is_the_one_that_the_model_makes(tiny: Path) -> None:
    from diffusers import SD3Transformer2DModel

    config = json.loads((tiny / "transformer/config.json").read_text("utf-8"))
    made = SD3Transformer2DModel.from_config(config).pos_embed.pos_embed
    stored = load_file(tiny / DIT)["pos_embed.pos_embed"]
    assert torch.equal(stored, made.to(torch.bfloat16))


def test_the_largest_tensors_come_in_pieces() -> None:
    transformer = SIZES["published"].configs["transformer"]
    generator = torch.Generator("cpu").manual_seed(0)
    embedding = next(random_values.random_values("x.weight", (151936, 2048), transformer, generator))
    row = next(random_values.random_values("pos_embed.pos_embed", (), transformer, generator))
    assert embedding.numel() == 4 * 2**20
    assert row.shape == (384, 1536)


# The other sizes


def test_published_size_has_the_published_tensors() -> None:
    files = {file.name: file for file in weight_files("published")}
    seen = {name: (len(file.shapes), file.elements, header_length(file)) for name, file in files.items()}
    assert seen == PUBLISHED
    assert sum(file.elements for file in files.values()) == 6_740_556_127
    assert {name: file.dtype for name, file in files.items()} == {
        name: "F32" if name.startswith("connector") else "BF16" for name in PUBLISHED
    }
    first, second = (files[f"vlm/model-0000{number}-of-00002.safetensors"].shapes for number in (1, 2))
    assert first["model.embed_tokens.weight"] == (151936, 2048)
    assert first["visual.merger.mlp.2.weight"] == (2048, 5120)
    assert "model.layers.19.mlp.up_proj.weight" in first
    assert "model.layers.19.mlp.down_proj.weight" in second
    assert files[DIT].shapes["pos_embed.pos_embed"] == (1, 147456, 1536)
    assert files["connector/model.safetensors"].shapes["projector_1.weight"] == (2048, 12288)


def test_benchmark_size_has_the_published_proportions() -> None:
    def shares(size: str) -> tuple[int, dict[str, float]]:
        elements: dict[str, int] = {}
        for file in weight_files(size):
            elements[file.part] = elements.get(file.part, 0) + file.elements
            for name in ("model.embed_tokens.weight", "pos_embed.pos_embed"):
                if name in file.shapes:
                    elements[name] = math.prod(file.shapes[name])
        total = sum(elements[part] for part in ("vlm", "connector", "transformer", "vae"))
        return total, {name: count / total for name, count in elements.items()}

    total, benchmark = shares("benchmark")
    assert total * 2 >= 2 * 2**30
    assert benchmark == pytest.approx(shares("published")[1], abs=0.03)
    assert max(benchmark, key=lambda name: benchmark[name]) == "vlm"
    for name in ("model.embed_tokens.weight", "pos_embed.pos_embed"):
        assert benchmark[name] > 0.03
    assert [len(file.shapes) for file in weight_files("benchmark") if file.part != "vlm"] == [103, 909, 244]
    assert len([file for file in weight_files("benchmark") if file.part == "vlm"]) == 2


def test_libraries_do_not_change_the_sizes() -> None:
    before = copy.deepcopy(SIZES)
    weight_files("tiny")
    assert before == SIZES


def test_an_unknown_size_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="size must be one of tiny, benchmark, published, got 'huge'"):
        write(tmp_path / "model", size="huge")
    assert not list(tmp_path.iterdir())


# Images


def generated(pipe: DeepGenPipeline, prompt: str, side: int, image: Image.Image | None = None) -> np.ndarray:
    output = pipe(prompt, image=image, height=side, width=side, num_inference_steps=2, seed=0, output_type="np")
    pixels = np.asarray(output.images)
    assert pixels.shape == (1, side, side, 3)
    assert np.isfinite(pixels).all()
    assert pixels.std() > 0.05
    return pixels


def difference(first: np.ndarray, second: np.ndarray) -> float:
    """Mean absolute difference in steps of 8-bit images."""
    return float(np.abs(first - second).mean() * 255)


@pytest.mark.parametrize("side", [64, 512])
def test_images_follow_the_prompt(pipe: DeepGenPipeline, side: int) -> None:
    first = generated(pipe, "a red cube", side)
    assert difference(first, generated(pipe, "two dogs in the snow", side)) > 8
    assert difference(first, generated(pipe, "a red cube", side)) == 0


@pytest.mark.parametrize("side", [64, 512])
def test_edits_follow_prompt_and_reference(pipe: DeepGenPipeline, side: int) -> None:
    red, blue = reference_image(side, 200, 30, 30), reference_image(side, 20, 130, 230)
    first = generated(pipe, "make it blue", side, red)
    assert difference(first, generated(pipe, "make it blue", side, blue)) > 8
    assert difference(first, generated(pipe, "add a hat", side, red)) > 8
    assert difference(first, generated(pipe, "make it blue", side)) > 8


def test_default_and_largest_sizes_are_allowed(pipe: DeepGenPipeline) -> None:
    assert (pipe.sizes.longest_side, pipe.sizes.trained_side) == (1024, 512)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_images_are_finite_in_half_precision(tiny: Path, dtype: torch.dtype) -> None:
    pipe = DeepGenPipeline.from_pretrained(tiny, torch_dtype=dtype)
    pipe.set_progress_bar_config(disable=True)
    generated(pipe, "a red cube", 64)
    generated(pipe, "make it blue", 64, reference_image(64, 200, 30, 30))
