"""``bench`` and ``verify`` on an NPU."""

from __future__ import annotations

import json

import torch
from golden import TINY

from deepgen_npu import cli
from deepgen_npu.checkpoint.folder import PARTS, Checkpoint
from deepgen_npu.model.positions import STAYS_ON_HOST
from deepgen_npu.tools.random_model import RandomModel
from dev.npu_simulator import simulated


SMALL = ["--height", "64", "--width", "64", "--num_inference_steps", "2", "--dtype", "float32"]


def test_bench_counts_the_memory_of_the_card(capsys):
    assert cli.main(["bench", "--random-weights", "tiny", *SMALL, "--runs", "2", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["device"] == {"device": "npu:0", "name": torch.npu.get_device_name(0)}
    assert all(part["device"] == "npu:0" for part in report["parts"].values())
    weights = sum(part["nbytes"] for part in report["parts"].values())
    for stage in ("encode", "denoise", "decode"):
        assert weights < report["peaks"][stage] <= report["peaks"]["whole run"] < weights + 64 * 2**20
    assert cli.main(["bench", "--random-weights", "tiny", *SMALL, "--runs", "1"]) == 0
    text = capsys.readouterr().out
    assert "| Peak memory |" in text and "| vae | npu:0 | " in text


def test_random_weights_go_straight_to_the_card():
    model = RandomModel.of_size("tiny")
    card = torch.device("npu", 0)
    before = torch.npu.memory_allocated(card)
    torch.npu.reset_peak_memory_stats(card)
    simulated.reset()
    pipe = model.load(torch.float32, dict.fromkeys(PARTS, card))
    weights = sum(part.nbytes for part in pipe.memory().values())
    positions = pipe.transformer.get_buffer(STAYS_ON_HOST).nbytes
    rotary = weights - (model.nbytes(torch.float32) - positions)  # computed, and in no file
    assert 0 < rotary < 1000
    stored = model.checkpoint.tensors["transformer"][STAYS_ON_HOST].nbytes
    assert simulated.state.counts.host_to_device[1] == model.checkpoint.nbytes() - stored + rotary
    assert weights <= torch.npu.max_memory_allocated(card) - before < weights + 64 * 1024


def test_two_cards_and_offload(capsys):
    arguments = ["bench", "--model_path", str(TINY), *SMALL, "--runs", "1", "--json"]
    assert cli.main([*arguments, "--text_encoder_device", "npu:1"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert {name: part["device"] for name, part in report["parts"].items()} == {
        "vlm": "npu:1",
        "connector": "npu:1",
        "transformer": "npu:0",
        "vae": "npu:0",
    }
    assert cli.main([*arguments, "--offload"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert {part["device"] for part in report["parts"].values()} == {"cpu"}
    checkpoint = Checkpoint.open(TINY)
    largest = max(4 * checkpoint.elements(part) for part in PARTS)
    assert report["peaks"]["whole run"] > largest


def test_verify_against_the_cpu(capsys):
    """The same noise on both; the simulated card computes as the CPU does."""
    assert cli.main(["verify", "--model_path", str(TINY), *SMALL, "--against", "cpu", "--min_psnr", "40"]) == 0
    text = capsys.readouterr().out
    assert "- Device: npu:0 (" in text and "- Against: cpu (" in text
    assert text.endswith("\nPassed.\n")


def test_verify_two_runs_and_a_captured_one(capsys):
    assert cli.main(["verify", "--model_path", str(TINY), *SMALL, "--capture_graph"]) == 0
    text = capsys.readouterr().out
    assert "float32, capture_graph" in text and text.endswith("\nPassed.\n")


def test_a_reference_of_the_card_on_the_cpu(tmp_path, capsys):
    folder = str(tmp_path / "reference")
    assert cli.main(["verify", "--model_path", str(TINY), *SMALL, "--save", folder]) == 0
    command = ["verify", "--model_path", str(TINY), "--device", "cpu", "--compare", folder, "--min_psnr", "40"]
    assert cli.main(command) == 0
    assert "- Baseline: npu:0 (" in capsys.readouterr().out
