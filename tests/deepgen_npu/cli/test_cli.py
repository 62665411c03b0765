"""The commands of the adaptation report, run as they are written there."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from golden import TINY
from PIL import Image
from platforms import linux_only, not_on_windows
from safetensors.torch import save_file
from stderr import error_in
from tensors import load_file

from deepgen_npu import CheckpointError, DeepGenPipeline, cli, locations
from deepgen_npu.cli import checkpoint, image, options
from deepgen_npu.formatting import command
from deepgen_npu.image_files import open_image, save_image
from deepgen_npu.sizes import SizeRules


ROOT = Path(__file__).parents[3]
OTHER_WORDS = not_on_windows("it has other words for this error")
GUESSED_HOMES = not_on_windows("Python guesses the home folders of other users")
NO_PROC = not_on_windows("it has no folder that is closed to everybody")
SMALL = ["--model_path", str(TINY), "--device", "cpu", "--height", "64", "--width", "64", "--num_inference_steps", "2"]


def inference(*arguments, cwd=None):
    return subprocess.run(
        [sys.executable, str(ROOT / "inference.py"), *arguments],
        capture_output=True,
        text=True,
        cwd=cwd,
        encoding="utf-8",
    )


def test_defaults_are_those_of_the_report(monkeypatch):
    seen = {}
    monkeypatch.setattr(image, "_run", lambda arguments: seen.update(vars(arguments)))
    assert cli.inference([]) == 0
    wanted = {
        "output_image": "output_deepgen.png",
        "input_image": None,
        # Those of the model: 512 for DeepGen 1.0 (the next test).
        "height": None,
        "width": None,
        "seed": 42,
        "num_inference_steps": 50,
        "guidance_scale": 4.0,
        "guidance_every": 1,
        "device": "npu",
    }
    assert {key: seen[key] for key in wanted} == wanted


def enlarge_grid(folder: Path, cells: int) -> None:
    """Positions for images of the given number of patches per side."""
    config = folder / "transformer" / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "pos_embed_max_size": cells}))
    weights = folder / "transformer" / "diffusion_pytorch_model.safetensors"
    tensors = load_file(weights)
    tensors["pos_embed.pos_embed"] = torch.zeros(1, cells * cells, tensors["pos_embed.pos_embed"].shape[-1])
    save_file(tensors, weights)


def test_the_size_is_that_of_the_model_by_default(monkeypatch, tiny):
    """512 for DeepGen 1.0, whose files do not contain it; other checkpoints store their own."""

    class Stopped(Exception):
        pass

    def stop(rules, height, width, editing):
        seen.append((height, width))
        raise Stopped

    seen = []
    monkeypatch.setattr(SizeRules, "check", stop)
    enlarge_grid(tiny, 64)
    index = tiny / "model_index.json"
    for stored, arguments in (
        ({}, []),
        ({"_deepgen_trained_side": 64}, []),
        ({"_deepgen_trained_side": 64}, ["--height", "96"]),
    ):
        index.write_text(json.dumps({**json.loads(index.read_text()), **stored}))
        with pytest.raises(Stopped):
            cli.inference(["--model_path", str(tiny), *arguments])
    assert seen == [(512, 512), (64, 64), (96, 64)]


@pytest.mark.parametrize("side", [0, -64, "64", 1.5, None, True])
def test_a_trained_side_that_is_not_one_is_refused(tiny, capsys, side):
    index = tiny / "model_index.json"
    index.write_text(json.dumps({**json.loads(index.read_text()), "_deepgen_trained_side": side}))
    assert cli.inference(["--model_path", str(tiny)]) == 2
    words = f"_deepgen_trained_side must be an integer from 16 to 384 (pixels), got {side!r}."
    assert words in capsys.readouterr().err


@pytest.mark.slow
def test_generate_then_edit(tmp_path):
    """Both commands of the report, with its arguments; the second edits what the first made."""
    first = inference(
        "--model_path", str(TINY),
        "--prompt", "a photo of a blue pizza and a yellow baseball glove",
        "--output_image", "output.png",
        "--height", "64", "--width", "96",
        "--seed", "42",
        "--num_inference_steps", "3",
        "--guidance_scale", "4.0",
        "--device", "cpu",
        cwd=tmp_path,
    )  # fmt: skip
    assert first.returncode == 0, first.stderr
    for line in ("Target device: cpu", "Loading pipeline from: ", "Inference completed in ", " it/s)"):
        assert line in first.stdout
    for part in ("vlm", "connector", "transformer", "vae"):
        assert f"  {part}: cpu, " in first.stdout
    assert "Image saved at: output.png (96 x 64, " in first.stdout
    assert "3/3" in first.stderr, "a progress bar over the steps"

    second = inference(
        "--model_path", str(TINY),
        "--prompt", "\u628a\u5929\u7a7a\u53d8\u6210\u7ea2\u8272",
        "--input_image", "output.png",
        "--output_image", "output_edit.png",
        "--height", "64", "--width", "64",
        "--seed", "42",
        "--device", "cpu",
        "--dtype", "float32",
        "--num_inference_steps", "2",
        cwd=tmp_path,
    )  # fmt: skip
    assert second.returncode == 0, second.stderr
    edited = Image.open(tmp_path / "output_edit.png")
    assert edited.size == (64, 64) and edited.mode == "RGB"
    parameters = json.loads(edited.text["deepgen"])
    assert parameters["prompt"] == "\u628a\u5929\u7a7a\u53d8\u6210\u7ea2\u8272"
    assert parameters["input_images"] == ["output.png"]
    assert parameters["seed"] == 42 and parameters["num_inference_steps"] == 2 and parameters["dtype"] == "float32"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["output.png", "output_edit.png"]


def test_the_image_is_the_pipelines(pipe, tmp_path):
    output = tmp_path / "new" / "a.png"
    assert (
        cli.main(["generate", *SMALL, "--dtype", "float32", "--prompt", "a cat", "--output_image", str(output)]) == 0
    )
    (expected,) = pipe("a cat", height=64, width=64, num_inference_steps=2, seed=42).images
    assert np.array_equal(np.asarray(Image.open(output)), np.asarray(expected))


def test_several_images_and_references(tmp_path):
    reference = tmp_path / "photo.jpg"
    Image.open(ROOT / "assets" / "coffee.jpg").save(reference)
    output = tmp_path / "a.jpg"
    arguments = ["--prompt", "x", "--num_images", "2", "--output_image", str(output), "--offload"]
    assert cli.main(["edit", *SMALL, *arguments, "--input_image", str(reference), str(reference)]) == 0
    assert sorted(path.name for path in tmp_path.glob("a*")) == ["a_1.jpg", "a_2.jpg"]


@pytest.mark.parametrize(
    ("choice", "size"),
    [
        (["--follow_input"], (384, 256)),  # the shape of 600 x 400, cut out of 384 x 320
        (["--follow_input", "stretch"], (384, 320)),  # the next multiples at the largest area of the tiny model
    ],
)
def test_an_edit_can_follow_its_input(tmp_path, choice, size):
    output = tmp_path / "a.png"
    arguments = ["--prompt", "x", *choice, "--output_image", str(output)]
    assert cli.main(["edit", *SMALL, *arguments, "--input_image", str(ROOT / "assets" / "coffee.jpg")]) == 0
    assert Image.open(output).size == size


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--device", "npu"], "torch_npu is not installed"),
        (["--device", "tpu"], "--device must be auto, npu, npu:N, cuda, cuda:N or cpu, got 'tpu'"),
        (["--height", "100"], "height must be a multiple of 16 from 16 to 384, got 100 (nearest: 96, 112)."),
        (["--seed", "-1"], "--seed must be an integer from 0 to 2**64 - 1, got -1"),
        (["--num_inference_steps", "0"], "--num_inference_steps must be an integer from 1 to 1000, got 0"),
        (["--num_images", "0"], "--num_images must be an integer from 1 to 1000, got 0"),
        (["--output_image", "a.txt"], "--output_image must end in .png, .jpg"),
        (["--output_image", "."], "--output_image must be a file name, not a folder, got '.'"),
        (["--input_image", "nothing.png"], "--input_image nothing.png does not exist."),
        (["--input_image", str(ROOT / "LICENSE")], "LICENSE cannot be read as an image: it is not PNG"),
        (["--model_path", "nowhere"], "There is no folder nowhere"),
        (["--follow_input"], "needs an --input_image"),
        (["--prompt", "<|image_pad|>"], "prompt must not contain <|image_pad|>, the model's placeholder for images."),
        (["--num_images", "1000000000"], "--num_images must be an integer from 1 to 1000, got 1000000000"),
        (["--guidance_scale", "nan"], "--guidance_scale must be a number from 0 to 100, got 'nan'"),
        (["--device", "npu:\u00b2"], "--device must be auto, npu, npu:N, cuda, cuda:N or cpu, got 'npu:\u00b2'"),
        (["--model_path", ""], "--model_path must be the path of a file or folder, got ''"),
        (
            ["--model_path", "a\0b"],
            r"--model_path must be the path of a file or folder, got 'a\x00b'. Embedded null",
        ),
        pytest.param(["--model_path", "n" * 256], "File name too long", marks=OTHER_WORDS),
        pytest.param(["--model_path", "~nobody-of-that-name"], "The home folder of that user", marks=GUESSED_HOMES),
        (["--model_path", "."], "model_index.json is missing. Run the download again:"),
        (["--output_image", "/dev/full"], "--output_image must end in .png, .jpg"),
        pytest.param(["--output_image", "/proc/new/a.png"], "/proc/new cannot be written", marks=NO_PROC),
        (["--output_image", "new/below/"], "--output_image must be a file name, not a folder, got 'new/below/'"),
        (["--output_image", "new/a.webp", "--device", "npu"], "torch_npu is not installed"),
    ],
)
def test_mistakes_are_one_error_and_write_nothing(tmp_path, monkeypatch, capsys, arguments, words):
    monkeypatch.chdir(tmp_path)
    assert cli.inference([*SMALL, *arguments]) == 2
    assert words in error_in(capsys.readouterr().err)
    assert list(tmp_path.iterdir()) == []


def test_a_disk_that_is_full_at_the_end_loses_nothing(tmp_path, monkeypatch, capsys):
    """Only the second image is saved elsewhere, and the error says where."""
    true_write = Path.write_bytes
    parts: list[Path] = []

    def write(path, content):
        parts.append(path)
        if len(parts) == 4:  # two rehearsals and the first image came before
            raise OSError(28, "No space left on device")
        return true_write(path, content)

    monkeypatch.setattr(Path, "write_bytes", write)
    output = str(tmp_path / "a.bmp")
    assert cli.main(["generate", *SMALL, "--num_images", "3", "--output_image", output]) == 2
    captured = capsys.readouterr()
    (rescued,) = tmp_path.glob("deepgen_*.png")
    second = tmp_path / "a_2.bmp"
    assert captured.err.splitlines()[-1] == (
        f"error: {second} cannot be written (No space left on device); the image is at {rescued}"
    )
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(["a_1.bmp", "a_3.bmp", rescued.name])
    assert captured.out.count("Image saved at: ") == 3 and f"Image saved at: {rescued} (64 x 64" in captured.out
    assert open_image(rescued).size == (64, 64)


@pytest.mark.slow
@linux_only("other systems have no such names")
def test_names_that_are_not_utf8_in_a_process_that_speaks_ascii(tmp_path):
    """On Linux, from an archive of another country. The input is the output."""
    name = b"\xc4\xe3\xba\xc3"
    file = tmp_path / os.fsdecode(name + b".png")
    Image.new("RGB", (64, 64), "blue").save(file)
    old = file.read_bytes()
    arguments = ["edit", *SMALL, "--prompt", "caf\u00e9".encode()]
    outcome = subprocess.run(
        [sys.executable, "-m", "deepgen_npu", *arguments, "--input_image", name + b".png"]
        + ["--output_image", name + b".png"],
        capture_output=True,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT), "PYTHONIOENCODING": "ascii", "PYTHONUTF8": "1"},
    )
    assert outcome.returncode == 0, outcome.stderr
    assert rb"Image saved at: \udcc4\udce3" in outcome.stdout and outcome.stdout.isascii()
    assert file.read_bytes() != old and len(list(tmp_path.iterdir())) == 1
    with Image.open(file) as opened:
        parameters = json.loads(opened.info["deepgen"])
    assert os.fsencode(parameters["input_images"][0]) == name + b".png"
    assert parameters["prompt"] == "caf\u00e9"


def test_commands_are_on_lines_of_their_own(capsys):
    """Text before and after is one line each; only what the library calls a command gets its own."""
    download = command("python -m deepgen_npu download --to 'new\nfolder'")
    options.complain(f"a\nb/config.json is missing. Run:{download}Or try:{command('python -m deepgen_npu doctor')}")
    assert capsys.readouterr().err.splitlines() == [
        "error: a b/config.json is missing. Run:",
        "    python -m deepgen_npu download --to 'new folder'",
        "Or try:",
        "    python -m deepgen_npu doctor",
    ]


@pytest.mark.parametrize(
    "name", ["a\n    rm -rf .\n", "a\r\n    rm -rf .\n", "a\n", "\n    x\n\x1b[2J", "\u2028    x\u2028"]
)
def test_a_file_name_adds_no_line(capsys, name):
    options.complain(f"{name} is missing. Run the download again:{command('python -m deepgen_npu download')}")
    error = capsys.readouterr().err
    first, second = error.splitlines()
    assert first.startswith("error: ") and first.endswith(" is missing. Run the download again:")
    assert second == "    python -m deepgen_npu download" and "\x1b" not in error


def test_what_a_stopped_run_reports_adds_no_line(monkeypatch, capsys):
    def stop(arguments):
        raise KeyboardInterrupt("Stopped; saved of 1 image(s): a\n    rm -rf .\n.png.")

    monkeypatch.setattr(checkpoint, "_check", stop)
    assert cli.main(["check", "x"]) == 130
    assert capsys.readouterr().err == "Stopped; saved of 1 image(s): a     rm -rf . .png.\n"


def test_errors_of_the_system_name_the_file(monkeypatch, capsys):
    for error, words in (
        (OSError(5, "Input/output error", "weights\nof.safetensors"), "weights of.safetensors: Input/output error."),
        (MemoryError(), "This machine has not enough memory."),
    ):

        def fail(arguments, error=error):
            raise error

        monkeypatch.setattr(checkpoint, "_check", fail)
        assert cli.main(["check", "x"]) == 2
        assert capsys.readouterr().err == f"error: {words}\n"


def test_what_the_library_says_goes_to_stderr(monkeypatch, capsys):
    """Such as which dtype ``auto`` is, and what capturing gains: in lines without names of modules."""
    logger = logging.getLogger("deepgen_npu")
    for name, value in {"propagate": False, "handlers": [], "level": logging.NOTSET}.items():
        monkeypatch.setattr(logger, name, value)
    monkeypatch.setattr(image, "_run", lambda arguments: logging.getLogger("deepgen_npu.devices").info("It is so."))
    assert cli.main(["generate", "--prompt", "x"]) == 0
    printed = capsys.readouterr()
    assert (printed.out, printed.err) == ("", "It is so.\n")


def test_a_switch_before_the_file_of_a_batch_has_no_value():
    words = ["batch", "--capture_graph", "tasks.csv"]
    assert options.with_explicit_value(words) == ["batch", "--capture_graph=on", "tasks.csv"]
    for words in (["batch", "--capture_graph", "auto", "tasks.csv"], ["batch", "tasks.csv", "--capture_graph=off"]):
        assert options.with_explicit_value(words) == words
    assert options.with_explicit_value(["batch", "tasks.csv", "--capture_graph"])[-1] == "--capture_graph=on"


def test_an_interrupted_save_leaves_the_old_image(tmp_path, monkeypatch):
    path = tmp_path / "a.png"
    Image.new("RGB", (4, 4), "red").save(path)
    old = path.read_bytes()

    def stop(path, content):
        path.write_text("half")
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, "write_bytes", stop)
    with pytest.raises(KeyboardInterrupt):
        save_image(Image.new("RGB", (4, 4)), path, {})
    assert path.read_bytes() == old and list(tmp_path.iterdir()) == [path]


def test_check(tiny, capsys):
    assert cli.main(["check", str(tiny)]) == 0
    assert "is complete." in capsys.readouterr().out
    (tiny / "vae" / "config.json").unlink()
    assert cli.main(["check", str(tiny)]) == 2
    assert "vae/config.json is missing" in capsys.readouterr().err


def test_without_a_model_it_says_how_to_get_one(monkeypatch, capsys):
    monkeypatch.setattr(locations, "find_downloaded", lambda: None)
    assert cli.inference(["--device", "cpu"]) == 2
    lines = error_in(capsys.readouterr().err).splitlines()
    assert lines[1] == "    python -m deepgen_npu download"
    assert lines[-1] == f'    --model_path "{locations.DEMO_FOLDER}"'


def test_the_pack_in_a_comfyui_downloads_to_its_models(tmp_path, monkeypatch):
    assert locations.comfyui_target() is None
    (tmp_path / "ComfyUI" / "models").mkdir(parents=True)
    monkeypatch.setattr(locations, "PACK", tmp_path / "ComfyUI" / "custom_nodes" / "deepgen")
    assert locations.comfyui_target() == tmp_path / "ComfyUI" / "models" / "deepgen" / "DeepGen-1.0-diffusers"


@pytest.mark.parametrize("command", ["generate", "bench", "batch"])
@pytest.mark.parametrize("disabled", [False, True])
def test_files_are_mapped_unless_they_must_not_be(tmp_path, monkeypatch, command, disabled):
    """The option is one for all commands that load a model."""
    seen = []

    def load(checkpoint, *arguments, disable_mmap, **options):
        seen.append(disable_mmap)
        raise CheckpointError("stop")

    monkeypatch.setattr(DeepGenPipeline, "from_checkpoint", load)
    (tmp_path / "rows.csv").write_text("prompt\na cat\n", encoding="utf-8")
    given = {
        "generate": ["--prompt", "a cat", "--output_image", str(tmp_path / "a.png")],
        "bench": [],
        "batch": [str(tmp_path / "rows.csv"), "--output", str(tmp_path / "out")],
    }[command]
    words = [command, *given, "--model_path", str(TINY), "--device", "cpu", *["--disable_mmap"] * disabled]
    assert cli.main(words) == 2 and seen == [disabled]
