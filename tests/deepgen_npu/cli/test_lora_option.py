"""``--lora FILE[:STRENGTH]``: how it is read, what it gives, where it is written down."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from golden import TINY
from lora_files import Example, save
from PIL import Image
from platforms import not_on_windows
from stderr import error_in
from tables import rows

from deepgen_npu import DeepGenPipeline, cli
from deepgen_npu.cli.options import OptionError, lora
from deepgen_npu.lora.file import LoraChoice


COLONS = not_on_windows("its names have no colon")
ROOT = Path(__file__).parents[3]
RUN = ["--model_path", str(TINY), "--device", "cpu", "--height", "64", "--width", "64", "--num_inference_steps", "2"]
EXACT = [*RUN, "--dtype", "float32"]


@pytest.fixture
def files(pipe, tmp_path) -> tuple[str, str]:
    """Two LoRAs, of which one is a folder."""
    first = Example.of(pipe.transformer, seed=1).save(tmp_path / "first.safetensors", "kohya")
    (tmp_path / "second").mkdir()
    Example.of(pipe.transformer, seed=2).save(tmp_path / "second" / "pytorch_lora_weights.safetensors")
    return str(first), str(tmp_path / "second")


@pytest.mark.parametrize(
    ("text", "path", "strength"),
    [
        ("a.safetensors", "a.safetensors", 1.0),
        ("a.safetensors:0.5", "a.safetensors", 0.5),
        ("a.safetensors:-1", "a.safetensors", -1.0),
        pytest.param("a:0.3.safetensors:1e1", "a:0.3.safetensors", 10.0, marks=COLONS),
        (r"C:\loras\x.safetensors", r"C:\loras\x.safetensors", 1.0),
        (r"C:\loras\x.safetensors:.5", r"C:\loras\x.safetensors", 0.5),
        pytest.param("a.safetensors:", "a.safetensors:", 1.0, marks=COLONS),
        pytest.param("a.safetensors:strong", "a.safetensors:strong", 1.0, marks=COLONS),
    ],
)
def test_only_a_number_after_the_last_colon_is_a_strength(tmp_path, monkeypatch, text, path, strength):
    monkeypatch.chdir(tmp_path)
    assert lora("--lora")(text) == LoraChoice(Path(path), strength)


@COLONS
def test_a_file_of_that_name_is_meant_as_it_is(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("a:0.5", "b"):
        Path(name).touch()
    assert lora("--lora")("a:0.5") == LoraChoice(Path("a:0.5"), 1.0)
    assert lora("--lora")("a:0.5:2") == LoraChoice(Path("a:0.5"), 2.0)
    words = "the strength of --lora b must be a number from -100 to 100, got 'strong'."
    with pytest.raises(OptionError, match=f"^{re.escape(words)}$"):
        lora("--lora")("b:strong")


def test_the_image_is_the_librarys_and_says_how_it_was_made(files, tmp_path, capsys):
    output = tmp_path / "a.png"
    arguments = ["--prompt", "a cat", "--lora", files[0], "--lora", f"{files[1]}:-0.5", "--output_image", str(output)]
    assert cli.main(["generate", *EXACT, *arguments]) == 0
    pipe = DeepGenPipeline.from_pretrained(TINY, torch_dtype=torch.float32)
    call = {"height": 64, "width": 64, "num_inference_steps": 2, "seed": 42}
    plain = pipe("a cat", **call).images[0]
    pipe.load_lora_weights(files[0])
    pipe.load_lora_weights(files[1], weight=-0.5)
    expected = pipe("a cat", **call).images[0]
    with Image.open(output) as image:
        assert np.array_equal(np.asarray(image), np.asarray(expected)) and image.tobytes() != plain.tobytes()
        loras = json.loads(image.text["deepgen"])["loras"]
    assert loras == [{"name": "first.safetensors", "strength": 1.0}, {"name": "second", "strength": -0.5}]
    shown = [line.strip() for line in capsys.readouterr().out.splitlines() if "LoRA" in line]
    assert shown == ["LoRA: first.safetensors at strength 1", "LoRA: second at strength -0.5"]


@pytest.mark.parametrize("command", ["generate", "edit"])
def test_a_file_that_cannot_be_used_is_refused_without_torch(tmp_path, command):
    key = "lora_unet_double_blocks_0_img_mod_lin.lora_up.weight"
    path = save(tmp_path / "flux.safetensors", {key: torch.ones(2, 2)})
    arguments = [command, *RUN, "--prompt", "x", "--lora", str(path)]
    if command == "edit":
        arguments += ["--input_image", str(ROOT / "assets" / "coffee.jpg")]
    code = f"import sys; sys.modules['torch'] = None; from deepgen_npu.cli import main; sys.exit(main({arguments!r}))"
    outcome = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert outcome.returncode == 2 and outcome.stdout == ""
    assert "flux.safetensors is not made for this model: it lacks every layer" in error_in(outcome.stderr)


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ("nowhere.safetensors:0.5", "There is no LoRA file nowhere.safetensors."),
        (
            "nowhere.safetensors:1000",
            "the strength of --lora nowhere.safetensors must be a number from -100 to 100, got",
        ),
        ("", "--lora must be the path of a file or folder, got ''"),
        (":0.5", "--lora must be the path of a file or folder, got ''"),
        (str(ROOT / "LICENSE"), "the file of a LoRA must be a .safetensors file, got "),
        (str(ROOT / "assets") + ":2", "must be a folder with pytorch_lora_weights.safetensors or adapter_model.safe"),
        ("a\0b", "--lora must be the path of a file or folder, got"),
    ],
)
@pytest.mark.parametrize("command", ["generate", "bench", "verify"])
def test_mistakes_are_one_error_before_anything_slow(tmp_path, monkeypatch, capsys, command, value, words):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(DeepGenPipeline, "from_checkpoint", None)
    assert cli.main([command, *RUN, "--lora", value]) == 2
    captured = capsys.readouterr()
    assert captured.out == "" and words in error_in(captured.err)
    assert list(tmp_path.iterdir()) == []


def test_a_saved_run_is_one_with_its_loras(files, tmp_path, capsys):
    """They are a part of the model: its name and its fingerprint have them."""
    folder = tmp_path / "run"
    loras = ["--lora", f"{files[0]}:0.5", "--lora", files[1]]
    assert cli.main(["verify", *EXACT, *loras, "--save", str(folder)]) == 0
    name = "tiny + first.safetensors at strength 0.5 + second at strength 1"
    assert f"- Model: {name}, fingerprint " in capsys.readouterr().out
    assert json.loads((folder / "reference.json").read_text(encoding="utf-8"))["model"] == name
    command = ["verify", "--model_path", str(TINY), "--device", "cpu", "--compare", str(folder)]
    assert cli.main([*command, *loras, "--max_difference", "0"]) == 0
    assert {cells[3] for cells in rows(capsys.readouterr().out).values()} == {"yes"}
    for others in ([], loras[:2], [*loras[2:], *loras[:2]], ["--lora", files[0], *loras[2:]]):
        assert cli.main([*command, *others]) == 2
        assert f"was made with another model: {name}, fingerprint " in error_in(capsys.readouterr().err)


def test_a_measurement_names_its_loras(files, capsys):
    arguments = ["--random-weights", "tiny", "--runs", "1", "--device", "cpu", *RUN[4:], "--lora", f"{files[0]}:2"]
    assert cli.main(["bench", *arguments, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["loras"] == [{"name": "first.safetensors", "strength": 2.0}]
