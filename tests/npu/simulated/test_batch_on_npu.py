"""Batches on cards: the same images as on one card, while another encodes the next row."""

from __future__ import annotations

import json
import threading

import pytest
from batch_files import Batch
from golden import TINY
from PIL import Image

from deepgen_npu import DeepGenPipeline
from deepgen_npu.cli.entry import main
from deepgen_npu.memory import OutOfDeviceMemory


ROWS = [
    {"id": "plain", "prompt": "a cat", "n": 2},
    {"id": "edit", "prompt": "make it blue", "images": ["x.png", "x.png"]},
    {"id": "padded", "prompt": "make it red", "images": ["x.png"], "follow_input": "pad"},
    {"id": "kept", "prompt": "make it red", "images": ["x.png"], "keep_unchanged": True},
    {"id": "last", "prompt": "a dog", "negative_prompt": "blur"},
]
SMALL = ["--dtype", "float32", "--height", "64", "--width", "64", "--num_inference_steps", "2"]


@pytest.fixture
def run(tmp_path):
    """Runs the rows on devices; the lines of the manifest by ids."""
    batch = Batch(tmp_path)
    batch.rows(*ROWS)
    Image.linear_gradient("L").resize((64, 48)).convert("RGB").save(tmp_path / "x.png")

    def run(name: str, *options: str, status: int = 0):
        batch.output = tmp_path / name
        place = ["batch", str(batch.table), "--output", str(batch.output), "--model_path", str(TINY)]
        assert main([*place, *SMALL, *options]) == status
        return batch.last()

    return run


def test_a_second_card_encodes_the_next_row_meanwhile(run, tmp_path, monkeypatch):
    """To the same bits; an edit in place is encoded when its regions are known."""
    one = run("one", "--device", "npu:0")
    encoded: list[tuple[str, str]] = []
    true_encode = DeepGenPipeline.encode_prompt

    def encode(pipe, prompt, *arguments, **options):
        encoded.append((prompt, threading.current_thread().name.split("_")[0]))
        return true_encode(pipe, prompt, *arguments, **options)

    monkeypatch.setattr(DeepGenPipeline, "encode_prompt", encode)
    computed: list[str] = []
    hook_of = DeepGenPipeline.from_checkpoint

    def load(*arguments, **options):
        pipe = hook_of(*arguments, **options)
        pipe.connector.register_forward_hook(lambda *given: computed.append(threading.current_thread().name))
        return pipe

    monkeypatch.setattr(DeepGenPipeline, "from_checkpoint", load)
    two = run("two", "--device", "npu:0", "--text_encoder_device", "npu:1")
    assert {name: line["sha256"] for name, line in two.items()} == {name: line["sha256"] for name, line in one.items()}
    ahead = [prompt for prompt, thread in encoded if thread == "deepgen-load"]
    assert ahead == ["a cat", "make it blue", "make it red", "a dog"]
    assert len(computed) == 5 and sum(not name.startswith("deepgen-load") for name in computed) == 1, computed
    settings = json.loads((tmp_path / "two" / "run.json").read_text())
    assert settings["workers"][0]["place"] == "npu:0"


def test_a_second_card_without_memory_ends_the_run(run, monkeypatch, capsys):
    """As the first would: it is no fault of 100,000 rows."""

    def fail(*arguments, **options):
        raise OutOfDeviceMemory("Out of memory on npu:1.")

    monkeypatch.setattr("deepgen_npu.encoding.embed", fail)
    lines = run("out", "--device", "npu:0", "--text_encoder_device", "npu:1", status=2)
    assert "3 rows, one after the other, found too little memory. Out of memory on npu:1." in capsys.readouterr().err
    assert len(lines) <= 3
