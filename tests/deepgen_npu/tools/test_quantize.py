"""``python -m deepgen_npu quantize``: the folder it writes, and that nothing is half written."""

from __future__ import annotations

import json
import os
import weakref
from pathlib import Path

import pytest
import torch
from golden import TINY
from safetensors import safe_open
from stderr import error_in

from deepgen_npu import cli
from deepgen_npu.checkpoint.folder import PARTS, Checkpoint
from deepgen_npu.locations import DEMO_FOLDER
from deepgen_npu.quantization.values import dequantize
from deepgen_npu.tools import quantize


SMALL = ["--device", "cpu", "--height", "64", "--width", "64", "--num_inference_steps", "1"]


def write(target: Path, *options: str, source: Path = TINY, title: str = "int8_convrot") -> int:
    return cli.main(["quantize", str(source), str(target), "--format", title, *options])


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    made = tmp_path_factory.mktemp("quantized") / "tiny"
    assert write(made) == 0
    return made


def names_in(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def test_the_folder_has_the_published_layout(folder):
    assert names_in(folder) == names_in(TINY)
    plain, made = Checkpoint.open(TINY), Checkpoint.open(folder)
    assert made.stored_configs == plain.stored_configs and made.index == plain.index
    for part in PARTS:
        extras = {f"{name}.{kind}" for name in made.quantized[part] for kind in ("weight_scale", "comfy_quant")}
        by_model = {quantize.model_name(part, name) for name in made.tensors[part]}
        assert by_model == extras | {quantize.model_name(part, name) for name in plain.tensors[part]}
        assert {tensor.file.name for tensor in made.tensors[part].values()} == {
            tensor.file.name for tensor in plain.tensors[part].values()
        }
    index = json.loads((folder / "vlm/model.safetensors.index.json").read_text())
    assert index["weight_map"].keys() == made.tensors["vlm"].keys()
    assert index["metadata"]["total_size"] == made.nbytes("vlm")


def test_what_is_not_quantised_is_the_same_to_the_bit(folder):
    made = Checkpoint.open(folder)
    for part in PARTS:
        for path in {tensor.file for tensor in made.tensors[part].values()}:
            before = TINY / path.relative_to(made.folder)
            with safe_open(before, "pt") as old, safe_open(path, "pt") as new:
                assert new.metadata() == old.metadata()
                for name in old.keys():  # noqa: SIM118
                    layer = made.quantized[part].get(quantize.model_name(part, name).removesuffix(".weight"))
                    tensor, given = new.get_tensor(name), old.get_tensor(name)
                    if layer is None or not name.endswith(".weight"):
                        assert tensor.dtype == given.dtype and torch.equal(tensor, given), name
                        continue
                    scale = new.get_tensor(f"{name.removesuffix('.weight')}.weight_scale")
                    back = dequantize(tensor, scale, layer, torch.float32)
                    assert (back - given.float()).norm() < 0.01 * given.float().norm(), name


def test_what_is_printed(tmp_path, capsys):
    assert write(tmp_path / "made", "--part", "transformer", title="fp8") == 0
    out, err = capsys.readouterr()
    assert "| transformer | 53 |" in out and "| vlm |" not in out
    assert "- transformer: modulation: its error reaches every token of every step: norm_out.linear, " in out
    assert "Quantising: 100%" in err
    assert cli.main(["check", str(tmp_path / "made")]) == 0
    out = capsys.readouterr().out
    assert ", 53 layers fp8\n" in out and "vlm: 488 tensors, 871.7 KiB\n" in out


@pytest.mark.parametrize("title", ["int8_convrot", "fp8"])
def test_the_demo_loses_a_quarter_of_its_size(tmp_path, title):
    assert write(tmp_path / "demo", source=DEMO_FOLDER, title=title) == 0
    parts = "transformer", "vlm"
    before, after = (
        sum(path.stat().st_size for part in parts for path in (one / part).glob("*.safetensors"))
        for one in (DEMO_FOLDER, tmp_path / "demo")
    )
    print(f"{title}: DiT and VLM of the demo {after / before:.3f} of their size")
    assert after <= 0.75 * before


def test_one_layer_at_a_time_is_in_memory(tmp_path, monkeypatch):
    alive: list[weakref.ref] = []
    most = []
    read_tensor = quantize.read_tensor

    def read(*arguments, **options):
        tensor = read_tensor(*arguments, **options)
        most.append(sum(one() is not None for one in alive))
        alive.append(weakref.ref(tensor))
        return tensor

    monkeypatch.setattr(quantize, "read_tensor", read)
    assert write(tmp_path / "made") == 0
    assert len(most) > 100 and max(most) <= 1


@pytest.mark.parametrize("where", ["early", "late"])
def test_nothing_is_half_written(tmp_path, monkeypatch, where):
    count = 0
    rounded = quantize.rounded

    def fail(*arguments):
        nonlocal count
        count += 1
        if count == (1 if where == "early" else 200):
            raise KeyboardInterrupt
        return rounded(*arguments)

    monkeypatch.setattr(quantize, "rounded", fail)
    assert write(tmp_path / "new" / "made") == 130
    assert not list(tmp_path.iterdir())


def test_a_single_file_is_not_half_written_either(tmp_path, monkeypatch):
    from deepgen_npu.tools import single_file

    monkeypatch.setattr(single_file, "require_sd3", lambda checkpoint: None)
    monkeypatch.setattr(quantize, "rounded", lambda *arguments: 1 / 0)
    assert write(tmp_path / "dit.safetensors") == 2
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("target", "options", "words"),
    [
        ("made", [], "already exists. Name a new or empty folder."),
        ("dit.safetensors", [], "SOURCE must be a model with heads of 64 and as many of them as blocks"),
        ("made", ["--part", "vlm"], "already exists"),
    ],
)
def test_what_cannot_work_is_refused(tmp_path, capsys, target, options, words):
    (tmp_path / "made").mkdir()
    (tmp_path / "made" / "file").touch()
    assert write(tmp_path / target, *options) == 2
    assert words in error_in(capsys.readouterr().err)
    assert sorted(os.listdir(tmp_path)) == ["made"]


def test_what_is_quantised_is_not_quantised_again(folder, tmp_path, capsys):
    assert write(tmp_path / "again", source=folder, title="fp8") == 2
    assert "is quantised already (int8_convrot)" in error_in(capsys.readouterr().err)
    # One part after the other is another matter.
    assert write(tmp_path / "dit", "--part", "transformer") == 0
    assert write(tmp_path / "both", "--part", "vlm", source=tmp_path / "dit", title="fp8") == 0
    made = Checkpoint.open(tmp_path / "both").quantized
    assert {layer.title for layer in made["transformer"].values()} == {"int8_convrot"}
    assert {layer.title for layer in made["vlm"].values()} == {"fp8"}


def test_commands_take_the_folder(folder, tmp_path, capsys):
    model = ["--model_path", str(folder), *SMALL]
    image = str(tmp_path / "image.png")
    assert cli.main(["generate", *model, "--output_image", image]) == 0
    assert Path(image).stat().st_size > 0
    assert cli.main(["bench", *model, "--runs", "1"]) == 0
    assert cli.main(["verify", *model]) == 0
    out = capsys.readouterr().out
    assert "Passed." in out
    assert cli.main(["bench", *model, "--format", "fp8"]) == 2
    assert "--format is of --random-weights" in error_in(capsys.readouterr().err)
