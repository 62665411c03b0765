"""The command line on cards: where it reports the parts, and the same image wherever they are."""

from __future__ import annotations

import json

import pytest
from golden import TINY
from PIL import Image

from deepgen_npu.cli.entry import main
from dev.npu_simulator.simulated import state


@pytest.fixture
def generate(tmp_path, capsys):
    """Generates; returns the image and what was printed."""

    def generate(*options: str) -> tuple[Image.Image, str]:
        path = tmp_path / "picture.png"
        arguments = ["--model_path", str(TINY), "--output_image", str(path), "--num_inference_steps", "3"]
        sizes = ["--height", "64", "--width", "64", "--dtype", "float32"]
        assert main(["generate", *arguments, *sizes, *options]) == 0
        with Image.open(path) as image:
            image.load()
        return image, capsys.readouterr().out

    return generate


def test_where_the_parts_are(generate):
    one, printed = generate("--device", "npu")
    assert "vlm: npu:0" in printed and "transformer: npu:0" in printed
    assert json.loads(one.info["deepgen"])["device"] == "npu:0"

    two, printed = generate("--device", "npu:0", "--text_encoder_device", "npu:1")
    assert "vlm: npu:1" in printed and "connector: npu:1" in printed
    assert "transformer: npu:0" in printed and "vae: npu:0" in printed
    assert two.tobytes() == one.tobytes()

    offloaded, printed = generate("--device", "npu:1", "--offload")
    assert "transformer: cpu, on npu:1 while it runs" in printed
    assert offloaded.tobytes() == one.tobytes()


def test_capture_and_tiles(generate):
    eager, _ = generate("--device", "npu")
    assert state.counts.operators["replay of a graph"] == 0
    captured, _ = generate("--device", "npu", "--capture_graph")
    assert state.counts.operators["replay of a graph"] == 3
    assert captured.tobytes() == eager.tobytes()
    tiled, _ = generate("--device", "npu", "--vae_tiling", "--height", "128")
    assert json.loads(tiled.info["deepgen"])["vae_tiling"] is True
    whole, _ = generate("--device", "npu", "--height", "128")
    assert tiled.tobytes() != whole.tobytes(), "the tiny VAE was made for 64 pixels"


def test_a_full_card_is_one_line(tmp_path, capsys):
    state.memory[0].total = state.memory[0].now + 1000
    arguments = ["--model_path", str(TINY), "--output_image", str(tmp_path / "x.png"), "--device", "npu", "--offload"]
    assert main(["generate", *arguments, "--height", "64", "--width", "64"]) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("error: Out of memory: the weights of the vlm alone do not fit")
    assert not list(tmp_path.iterdir()), "nothing half-written"
