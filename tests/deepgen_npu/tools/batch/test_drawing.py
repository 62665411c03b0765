"""An image depends on its row alone, and is the one that `generate` and `edit` draw."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
import torch
from batch_files import SMALL
from golden import TINY
from lora_files import Example
from PIL import Image
from stderr import error_in

from deepgen_npu import DeepGenPipeline, cli
from deepgen_npu.cli import image_run
from deepgen_npu.image_files import open_image
from deepgen_npu.lora.file import LoraChoice
from deepgen_npu.memory import OutOfDeviceMemory
from deepgen_npu.tools.specs import DeviceSpec, ModelSpec


ROWS: list[dict[str, Any]] = [
    {"id": "plain", "prompt": "a cat", "seed": 3},
    {"id": "other", "prompt": "a longer text", "negative_prompt": "blur", "seed": 5, "height": 96, "cfg": 2},
    {"id": "edit", "prompt": "make it blue", "images": ["x.png", "y.png"], "seed": 3, "steps": 3, "guidance_every": 2},
    {"id": "mask", "prompt": "make it blue", "images": ["x.png"], "mask": "m.png", "seed": 3},
    {"id": "kept", "prompt": "make it blue", "images": ["x.png", "y.png"], "keep_unchanged": True, "seed": 3},
    {"id": "padded", "prompt": "make it blue", "images": ["x.png"], "follow_input": "pad", "seed": 3},
    {"id": "stretched", "prompt": "make it blue", "images": ["x.png"], "follow_input": "stretch", "seed": 3},
    {"id": "three", "prompt": "a cat", "seed": 3, "n": 3},
    {"id": "three edits", "prompt": "make it blue", "images": ["x.png", "y.png"], "seed": 3, "n": 3, "steps": 3,
     "guidance_every": 2},
]  # fmt: skip
OPTIONS = {
    "negative_prompt": "--negative_prompt",
    "seed": "--seed",
    "height": "--height",
    "cfg": "--guidance_scale",
    "steps": "--num_inference_steps",
    "guidance_every": "--guidance_every",
    "mask": "--mask",
    "follow_input": "--follow_input",
}


@pytest.fixture
def references(batch):
    """Files that rows name."""
    ramp = Image.linear_gradient("L").resize((80, 64))
    Image.merge("RGB", [ramp, ramp.transpose(Image.Transpose.ROTATE_180), ramp]).save(batch.folder / "x.png")
    Image.new("RGB", (64, 48), "orange").save(batch.folder / "y.png")
    mask = Image.new("L", (80, 64))
    mask.paste(255, (8, 8, 40, 40))
    mask.save(batch.folder / "m.png")
    return batch


def arguments(row: dict[str, Any]) -> list[str]:
    """Of `generate` or `edit`, for the same image."""
    images = row.get("images", [])
    given = ["edit", "--input_image", *images] if images else ["generate"]
    given += ["--model_path", str(TINY), "--prompt", row["prompt"], *SMALL]
    for name, option in OPTIONS.items():
        given += [option, str(row[name])] if name in row else []
    return given + (["--keep_unchanged"] if row.get("keep_unchanged") else [])


def test_images_are_those_of_generate_and_edit(references, pipe, monkeypatch, tmp_path):
    """To the bit; and the texts of the files say the same, and more."""
    batch = references
    batch.rows(*ROWS)
    assert batch.run() == 0
    batch.require_whole()
    lines = batch.last()
    pipe.encodings.max_bytes = 0
    pipe.encodings.clear()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(image_run, "_read", lambda *options: pipe)
    for row in ROWS:
        if "n" in row:
            continue
        assert cli.main([*arguments(row), "--output_image", "one.png"]) == 0
        with Image.open("one.png") as expected, Image.open(batch.output / lines[row["id"]]["files"][0]) as found:
            assert np.array_equal(found, expected), row["id"]
            text, wanted = json.loads(found.text["deepgen"]), json.loads(expected.text["deepgen"])  # pyright: ignore
        stored = text.pop("batch")
        assert text == wanted, row["id"]
        assert stored["id"] == row["id"] and stored["fingerprint"] == lines[row["id"]]["fingerprint"]
    assert json.loads(found_text(batch, "edit"))["guidance_every"] == 2
    assert "guidance_every" not in found_text(batch, "plain")
    assert lines["mask"]["width"] == 80 and lines["mask"]["height"] == 64 and lines["padded"]["height"] == 307
    assert lines["kept"]["kept"] and lines["kept"]["kept"] == [json.loads(found_text(batch, "kept"))["kept"]]
    assert "kept" not in lines["plain"] and set(lines["edit"]["references"]) == {
        str(batch.folder / name) for name in ("x.png", "y.png")
    }
    for number, name in enumerate(lines["three"]["files"]):
        with Image.open(batch.output / name) as image:
            text = json.loads(image.text["deepgen"])  # pyright: ignore
        assert (text["seed"], text["index"], text["batch"]["settings"]["n"]) == (3 + number, number, 3)
    # Further images are those of the next seeds, the first that of a row with one.
    for name, one in (("three", "plain"), ("three edits", "edit")):
        assert lines[name]["seeds"] == [3, 4, 5] and lines[name]["sha256"][:1] == lines[one]["sha256"]
        assert len(set(lines[name]["sha256"])) == 3


def test_a_line_can_be_made_of_its_images(references):
    """All of it but when, where and how long."""
    batch = references
    batch.rows(*(row for row in ROWS if row["id"] in ("kept", "mask", "edit", "three")))
    assert batch.run() == 0
    before = batch.last()
    (batch.output / "manifest.jsonl").unlink()
    assert batch.run() == 0
    of_a_draw = ("attempts", "seconds", "finished", "node", "device")
    for name, line in batch.last().items():
        assert line.pop("attempts") == 0 and line.pop("finished")
        assert line == {key: value for key, value in before[name].items() if key not in of_a_draw}
    batch.require_whole()


def found_text(batch, name: str) -> str:
    with Image.open(batch.output / batch.last()[name]["files"][0]) as image:
        return image.text["deepgen"]  # pyright: ignore


def test_neither_neighbours_nor_their_order_count(references):
    """Nor how many images a row has: three rows with a seed each are one with three."""
    batch = references
    rows = [{**row, "id": f"{row['id']} {seed}", "seed": seed, "n": 1} for row in ROWS[-2:] for seed in (4, 5)]
    batch.rows(*ROWS, *rows)
    assert batch.run() == 0
    first = {name: line["sha256"] for name, line in batch.last().items()}
    for name in ("three", "three edits"):
        assert first[name][1:] == [*first[f"{name} 4"], *first[f"{name} 5"]]
    batch.output = batch.folder / "second"
    batch.rows(*reversed([*ROWS, *rows[::2]]))
    assert batch.run() == 0
    second = {name: line["sha256"] for name, line in batch.last().items()}
    assert second == {name: first[name] for name in second} and len(second) == len(ROWS) + 2


def test_images_of_a_row_share_one_encoding(batch, pipe):
    """And rows with the same prompt, too."""
    calls = []
    hook = pipe.connector.register_forward_hook(lambda *given: calls.append(1))
    batch.rows({"prompt": "a text", "n": 3}, {"prompt": "a text"}, {"prompt": "another text"})
    try:
        assert batch.run() == 0 and len(calls) == 2
    finally:
        hook.remove()


def test_damage_behind_the_header_is_found_when_its_row_comes(references):
    batch = references
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    Image.fromarray(noise).save(batch.folder / "cut.png")
    content = (batch.folder / "cut.png").read_bytes()
    (batch.folder / "cut.png").write_bytes(content[:5000])
    batch.rows(
        {"prompt": "a", "image": "cut.png"}, {"prompt": "a", "image": "x.png", "mask": "cut.png"}, {"prompt": "b"}
    )
    assert batch.run() == 1
    lines = batch.last()
    for name in ("00000000", "00000001"):
        assert lines[name]["error"].startswith(f"{batch.folder / 'cut.png'} cannot be read as an image (")
    assert lines["00000002"]["status"] == "ok"


def failing(monkeypatch: pytest.MonkeyPatch, error: BaseException, rows: set[int]) -> list[int]:
    """Rows whose denoising fails, by their order; what was called."""
    calls: list[int] = []
    true_denoise = DeepGenPipeline.denoise

    def denoise(pipe, *arguments, **options):
        calls.append(len(calls))
        if calls[-1] in rows:
            raise error
        return true_denoise(pipe, *arguments, **options)

    monkeypatch.setattr(DeepGenPipeline, "denoise", denoise)
    return calls


@pytest.mark.parametrize("error", [OutOfDeviceMemory("Too little; 64 x 64 fits."), MemoryError("of the host")])
def test_three_rows_without_memory_end_a_run(batch, capsys, monkeypatch, error):
    """One after the other: then it is not theirs. Two are two rows."""
    batch.rows(*({"prompt": f"p{number}"} for number in range(7)))
    with monkeypatch.context() as patch:
        calls = failing(patch, error, {0, 1, 3, 4, 5})
        assert batch.run() == 2 and len(calls) == 6
    said = error_in(capsys.readouterr().err)
    assert said == f"error: 3 rows, one after the other, found too little memory. {error}"
    statuses = {line["row"]: line["status"] for line in batch.lines()}
    assert statuses == {0: "error", 1: "error", 2: "ok", 3: "error"} | ({4: "error"} if 4 in statuses else {})
    assert batch.last()["00000000"]["error"] == str(error)
    assert batch.run() == 0
    batch.require_whole()


@pytest.mark.parametrize("error", [ValueError("no"), TypeError("no"), FloatingPointError("no"), MemoryError()])
def test_the_fault_of_a_row_is_a_line(batch, monkeypatch, error):
    batch.rows({"prompt": "a", "n": 2}, {"prompt": "b"})
    failing(monkeypatch, error, {1})
    assert batch.run() == 1
    assert batch.last()["00000000"]["error"] == (str(error) or type(error).__name__)
    assert batch.images() == {"00000001.png"}, "no image of a row that failed"


def test_no_part_stays_on_the_device_after_a_row(batch, pipe, monkeypatch):
    """Also of one that failed."""
    calls = []
    monkeypatch.setattr(pipe.placement, "release", lambda: calls.append(1))
    batch.rows({"prompt": "a", "n": 2}, {"prompt": "b"})
    failing(monkeypatch, ValueError("no"), {1})
    assert batch.run() == 1 and len(calls) == 2


def test_what_no_row_can_be_blamed_for_is_no_line(batch, monkeypatch):
    batch.rows({"prompt": "a"})
    failing(monkeypatch, RuntimeError("an operator of a card failed"), {0})
    with pytest.raises(RuntimeError, match="an operator"):
        batch.run()
    assert not batch.lines() and ".lock" not in batch.files()


def test_latents_that_are_not_numbers_are_an_error(batch, monkeypatch):
    batch.rows({"prompt": "a"}, {"prompt": "b"})
    true_denoise = DeepGenPipeline.denoise
    calls = []

    def denoise(pipe, *arguments, **options):
        calls.append(1)
        latents = true_denoise(pipe, *arguments, **options)
        return latents * torch.nan if len(calls) == 1 else latents

    monkeypatch.setattr(DeepGenPipeline, "denoise", denoise)
    assert batch.run() == 1
    assert "NaN" in batch.last()["00000000"]["error"] and batch.images() == {"00000001.png"}
    assert open_image(batch.output / batch.last()["00000001"]["files"][0]).size == (64, 64)


def test_lora_and_tiles_are_those_of_the_options(batch, pipe, monkeypatch):
    """Set on the pipeline, and said in the texts."""
    path = Example.of(pipe.transformer, 1).save(batch.folder / "l.safetensors")
    seen: list[tuple[ModelSpec, DeviceSpec]] = []
    monkeypatch.setattr(ModelSpec, "load", lambda self, place: seen.append((self, place)) or (pipe, None))
    tiled = []
    monkeypatch.setattr(pipe, "enable_vae_tiling", lambda: tiled.append(1))
    batch.rows({"prompt": "a"})
    assert batch.run("--lora", f"{path}:0.5", "--vae_tiling", "--offload", "--capture_graph") == 0
    ((model, place),) = seen
    assert model.loras == (LoraChoice(path, 0.5),) and tiled
    assert (str(place.device), place.dtype, place.offload, place.capture_graph) == ("cpu", torch.float32, True, True)
    said = json.loads(found_text(batch, "00000000"))
    assert said["loras"] == [{"name": "l.safetensors", "strength": 0.5}] and said["vae_tiling"] is True
