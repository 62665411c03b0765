"""Files that cannot be used are refused by their headers, in one form of errors."""

from __future__ import annotations

import json
import pickle
import random
import re
import struct
from pathlib import Path

import pytest
import torch
from lora_files import Example, largest_difference, merged, save, state
from platforms import not_on_windows

from deepgen_npu import LoraError
from deepgen_npu.lora.file import inspect


Q = "transformer_blocks.0.attn.to_q"


@pytest.fixture(scope="module")
def shapes(loaded) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in loaded[1].items()}


@pytest.fixture(scope="module")
def example(loaded) -> Example:
    return Example.of(loaded[0].transformer)


def zeros(**sizes: tuple[int, ...]) -> dict[str, torch.Tensor]:
    """Tensors of to_q of the first block, by the ends of their keys; ``__`` is a dot."""
    return {f"diffusion_model.{Q}.{end.replace('__', '.')}": torch.zeros(size) for end, size in sizes.items()}


PAIR = {"lora_up__weight": (32, 2), "lora_down__weight": (2, 32)}


# Files for other models, by the names and shapes that they have


FLUX = {
    "lora_unet_double_blocks_0_img_attn_qkv.lora_down.weight": (4, 3072),
    "lora_unet_double_blocks_0_img_attn_qkv.lora_up.weight": (9216, 4),
    "lora_unet_single_blocks_0_linear1.lora_down.weight": (4, 3072),
}
SDXL = {
    "lora_unet_down_blocks_1_attentions_0_transformer_blocks_0_attn1_to_q.lora_down.weight": (4, 640),
    "lora_unet_down_blocks_1_attentions_0_transformer_blocks_0_attn1_to_q.lora_up.weight": (640, 4),
    "lora_te1_text_model_encoder_layers_0_mlp_fc1.lora_down.weight": (4, 768),
}
FLUX_OF_DIFFUSERS = {
    "transformer.transformer_blocks.0.attn.to_q.lora_A.weight": (4, 3072),
    "transformer.transformer_blocks.0.attn.to_q.lora_B.weight": (3072, 4),
    "transformer.single_transformer_blocks.0.attn.to_q.lora_A.weight": (4, 3072),
}


@pytest.mark.parametrize(
    ("sizes", "words"),
    [
        (FLUX, "'lora_unet_double_blocks_0_img_attn_qkv.lora_down.weight', and seems to be made for FLUX."),
        (SDXL, "fc1.lora_down.weight', and seems to be made for Stable Diffusion 1.5 or SDXL."),
        (
            {"text_encoder.layers.0.lora_A.weight": (4, 8)},
            "the first is 'text_encoder.layers.0.lora_A.weight'. C",
        ),
    ],
)
def test_a_file_for_another_model_is_refused_by_what_it_lacks(shapes, tmp_path, sizes, words):
    path = save(tmp_path / "a.safetensors", {name: torch.zeros(size) for name, size in sizes.items()})
    with pytest.raises(LoraError) as error:
        inspect(path, shapes)
    start = (
        f"{path} is not made for this model: it lacks every layer of DeepGen's DiT, which is SD3.5-medium. None of "
    )
    assert str(error.value).startswith(f"{start}its {len(sizes)} keys names one, as ") and words in str(error.value)
    assert str(error.value).endswith(" Choose a LoRA for SD3.5-medium or for DeepGen.")


def test_a_file_of_another_width_is_refused(shapes, tmp_path):
    path = save(tmp_path / "a.safetensors", {name: torch.zeros(size) for name, size in FLUX_OF_DIFFUSERS.items()})
    words = (
        f"{path} is not made for this model. Of transformer.transformer_blocks.0.attn.to_q, its LoRA must change a "
        "weight of the shape [32, 32], got [3072, 3072]. Choose a LoRA for SD3.5-medium or for DeepGen."
    )
    with pytest.raises(LoraError, match=f"^{re.escape(words)}$"):
        inspect(path, shapes)


@pytest.mark.parametrize(
    ("tensors", "words"),
    [
        (zeros(lora_up__weight=(32, 2)), "is not complete: diffusion_model.{Q}.lora_up.weight has no down beside it."),
        (zeros(lora_down__weight=(2, 32)), "lora_down.weight has no up beside it."),
        (zeros(hada_w1_a=(32, 2), hada_w1_b=(2, 32), hada_w2_a=(32, 2)), "hada_w1_a has no hada_w2_b beside it."),
        (zeros(lokr_w1=(4, 4)), "is not complete: diffusion_model.{Q} has only one of lokr_w1 and lokr_w2."),
        (zeros(lokr_w1=(4, 4), lokr_w2_a=(8, 2)), "lokr_w2_a has no lokr_w2_b beside it."),
        (zeros(dora_scale=(32,), diff_b=(32,)), "dora_scale has no up beside it."),
        (zeros(**PAIR, lokr_w1=(4, 4), lokr_w2=(8, 8)), "changes diffusion_model.{Q} in two ways at once: "),
        (zeros(lokr_w1=(4, 4), lokr_w1_a=(4, 1), lokr_w1_b=(1, 4), lokr_w2=(8, 8)), "in two ways at once: "),
        (zeros(oft_blocks=(4, 8, 8)), "{Q}.oft_blocks, of a kind of adapter that is not supported; LoRA, DoRA, LoHa,"),
        (zeros(**PAIR, lora_A__weight=(2, 32)), ", which mean the same. Save its adapters in a file each."),
        (
            {f"{Q}.lora_{side}.{name}.weight": torch.zeros(2, 32) for side in "AB" for name in ("one", "two")},
            ".lora_A.two.weight, which mean the same.",
        ),
        ({**zeros(**PAIR), **{f"transformer.{Q}.lora_A.weight": torch.zeros(2, 32)}}, "which mean the same."),
        (zeros(lora_up__weight=(32, 2), lora_down__weight=(3, 32)), "the tensors of its LoRA do not fit each other: "),
        (zeros(lora_up__weight=(32,), lora_down__weight=(1, 32)), "do not fit each other: down [1, 32], up [32]."),
        (zeros(lora_up__weight=(32, 0), lora_down__weight=(0, 32)), "its down must have elements, got [0, 32]."),
        (zeros(lora_up__weight=(48, 2), lora_down__weight=(2, 32)), "of the shape [32, 32], got [48, 32]."),
        (zeros(lokr_w1=(4, 4), lokr_w2=(8, 4)), "of the shape [32, 32], got [32, 16]."),
        (zeros(lokr_w1=(4, 4), lokr_w2=(8, 8, 1)), "the tensors of its LoKr do not fit each other"),
        (zeros(hada_w1_a=(32, 2), hada_w1_b=(2, 32), hada_w2_a=(32, 2), hada_w2_b=(3, 32)), "of its LoHa do not fit"),
        (zeros(**PAIR, dora_scale=(31,)), "its dora_scale must have 32 values, got 31."),
        (zeros(**PAIR, diff_b=(31,)), "its diff_b must change a bias of 32 values, got 31."),
        (zeros(diff=(32, 31)), "its diff must change a weight of the shape [32, 32], got [32, 31]."),
        (zeros(**PAIR, alpha=(2,)), "{Q}.alpha must be one number, got [2]."),
        (
            {name: tensor.to(torch.int8) for name, tensor in zeros(**PAIR).items()},
            "must be a float, got 'I8'.",
        ),
        (zeros(weight=(32, 32), bias=(32,)), "is no LoRA: it lacks adapters, and has weights of a whole model."),
    ],
)
def test_what_is_wrong_with_a_file_is_named(shapes, tmp_path, tensors, words):
    path = save(tmp_path / "a.safetensors", tensors)
    with pytest.raises(LoraError, match=re.escape(words.format(Q=Q))) as error:
        inspect(path, shapes)
    assert str(error.value).startswith(str(path))


class Trap:
    def __reduce__(self):
        return (Path("trap").touch, ())


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("a.pt", b"", "must be a .safetensors file, got "),
        ("a.safetensors", pickle.dumps(Trap()), "is cut off or is not a safetensors file. Download the file again."),
        ("a.safetensors", b"version https://git-lfs", "is a Git LFS pointer of 23 bytes, not the weights. Download"),
        ("a.safetensors", b"", "(0 bytes) is cut off or is not a safetensors file."),
        ("a.safetensors", struct.pack("<Q", 4) + b"null", "has a damaged safetensors header (it does not begin with"),
        ("a.safetensors", struct.pack("<Q", 2) + b"{}", "has a damaged safetensors header (it lists no tensor)."),
        ("folder/x.safetensors", b"", "must be a folder with pytorch_lora_weights.safetensors or adapter_model.safet"),
    ],
)
def test_files_that_cannot_be_read(shapes, tmp_path, monkeypatch, name, content, words):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(content)
    with pytest.raises(LoraError, match=re.escape(words)):
        inspect(path.parent if "/" in name else path, shapes)
    assert not Path("trap").exists()


@not_on_windows("it has no such names")
def test_places_that_are_no_files(shapes, tmp_path):
    link = tmp_path / "a.safetensors"
    link.symlink_to(tmp_path / "nothing.safetensors")
    with pytest.raises(LoraError, match=r"^There is no LoRA file .*a\.safetensors\.$"):
        inspect(link, shapes)
    with pytest.raises(LoraError, match="must be a regular file, got a device"):
        (tmp_path / "b.safetensors").symlink_to("/dev/zero")
        inspect(tmp_path / "b.safetensors", shapes)
    with pytest.raises(LoraError, match=r"^There is no LoRA file ~nobody-of-that-name/a: "):
        inspect("~nobody-of-that-name/a", shapes)


def test_a_long_header_is_read(shapes, example, tmp_path):
    """Trainers put the tags of all images there."""
    path = example.save(tmp_path / "a.safetensors", ss_tag_frequency=json.dumps({"a -0 tag": 1}) * 100_000)
    assert len(inspect(path, shapes).changes) == len(example.factors)


def test_damaged_bytes_are_refused_or_read(shapes, example, tmp_path):
    """Whatever stands in a header: a LoRA, or an error of ours."""
    content = example.save(tmp_path / "good.safetensors", "kohya", lora_adapter_metadata='{"transformer.r": 3}')
    content = content.read_bytes()
    path, random_ = tmp_path / "a.safetensors", random.Random(0)
    end = 8 + struct.unpack("<Q", content[:8])[0]
    refused = 0
    for _ in range(150):
        damaged = bytearray(content)
        for _ in range(random_.choice((1, 1, 2, 8))):
            at = random_.randrange(end)
            damaged[at : at + random_.choice((0, 1, 1, 5))] = random_.choice(
                (b'"', b"0", b"9", b"-0", b"[]", b"\xff", b"_", b"." * 5, content[at + 5 : at + 9], b"alpha", b"")
            )
        path.write_bytes(damaged)
        try:
            found = inspect(path, shapes)
        except LoraError as error:
            refused += 1
            assert str(path) in str(error), error
        else:
            assert len(found.changes) >= 1
    assert 50 < refused < 150


# Settings beside the tensors


def of_peft(folder: Path, example: Example, config: object, **metadata: str) -> Path:
    """A folder as PEFT saves it, without alphas in the tensors."""
    folder.mkdir()
    tensors = {key: value for key, value in example.tensors("PEFT").items() if not key.endswith(".alpha")}
    save(folder / "adapter_model.safetensors", tensors, **metadata)
    if config is not None:
        (folder / "adapter_config.json").write_text(json.dumps(config), encoding="utf-8")
    return folder


def deltas(example: Example, scales) -> dict[str, torch.Tensor]:
    return {
        f"{name}.weight": (up.double().flatten(1) @ down.double().flatten(1)).reshape(len(up), *down.shape[1:])
        * scales(name, len(down))
        for name, (up, down, _) in example.factors.items()
    }


@pytest.mark.parametrize("where", ["beside", "metadata"])
@pytest.mark.parametrize(
    ("config", "scales"),
    [
        ({"lora_alpha": 6, "r": 99}, lambda name, rank: 6 / rank),
        ({"lora_alpha": 6, "use_rslora": True}, lambda name, rank: 6 / rank**0.5),
        (
            {"lora_alpha": 6, "alpha_pattern": {"attn.to_q": 1.5, r"transformer_blocks\.1\..*\.proj": 12, "out": 7}},
            lambda name, rank: (1.5 if name == Q else 12 if ".1.ff" in name else 6) / rank,
        ),
        ({}, lambda name, rank: 1),
    ],
)
def test_alphas_of_peft(own, before, example, tmp_path, where, config, scales):
    if where == "beside":
        folder = of_peft(tmp_path / "style", example, {"peft_type": "LORA", **config})
    else:
        prefixed = {f"transformer.{key}": value for key, value in config.items()}
        given = json.dumps({**prefixed, "text_encoder.lora_alpha": 100})
        folder = of_peft(tmp_path / "style", example, None, lora_adapter_metadata=given)
    assert own.load_lora_weights(folder) == "style"
    assert largest_difference(state(own.transformer), merged(before, deltas(example, scales))) <= 1e-5


def test_the_rank_of_a_whole_lokr_is_in_the_settings(own, before, tmp_path):
    """PEFT divides by it also where no tensor shows it."""
    folder = tmp_path / "style"
    folder.mkdir()
    first, second = torch.rand(4, 4), torch.rand(8, 8)
    save(
        folder / "adapter_model.safetensors",
        {f"base_model.model.{Q}.lokr_w1": first, f"base_model.model.{Q}.lokr_w2": second},
    )
    (folder / "adapter_config.json").write_text('{"peft_type": "LOKR", "alpha": 4, "r": 16}')
    own.load_lora_weights(folder)
    expected = merged(before, {f"{Q}.weight": torch.kron(first.double(), second.double()) / 4})
    assert largest_difference(state(own.transformer), expected) <= 1e-6


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"lora_alpha": "8"}, "lora_alpha must be a number from -1e+09 to 1e+09, got '8'."),
        ({"r": 0}, "r must be a number from 1 to 1e+09, got 0."),
        ({"alpha_pattern": ["x"]}, "alpha_pattern must be an object of numbers, got ['x']."),
        ({"alpha_pattern": {"(": 1}}, "a key of alpha_pattern must be a regular expression (missing ), unterminated"),
        ({"alpha_pattern": {"x": None}}, "alpha_pattern must be a number from -1e+09 to 1e+09, got None."),
        ({"init_lora_weights": "pissa_niter_4"}, "init_lora_weights must be one that leaves the model as it is, got"),
        ([], "adapter_config.json must be a JSON object, got list."),
    ],
)
def test_settings_that_cannot_be(shapes, example, tmp_path, config, words):
    folder = of_peft(tmp_path / "style", example, config)
    with pytest.raises(LoraError, match=re.escape(words)) as error:
        inspect(folder, shapes)
    assert str(error.value).startswith(str(folder / "adapter_config.json"))


@pytest.mark.parametrize("text", ["{", "[1]", "[" * 100_000, "null"])
def test_settings_in_metadata_that_cannot_be(shapes, example, tmp_path, text):
    path = example.save(tmp_path / "a.safetensors", lora_adapter_metadata=text)
    with pytest.raises(LoraError, match=r"lora_adapter_metadata (is not valid JSON|must be a JSON object)"):
        inspect(path, shapes)
