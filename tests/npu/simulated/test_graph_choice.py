"""``capture_graph = "auto"``: measured at the first run of its kind, remembered, and used where equal and faster."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

import pytest
import torch
from golden import TINY

from deepgen_npu import cli, graph_choice, graphs
from dev.npu_simulator.simulated import reset, state


STEPS = 4
REPLAYS = "replay of a graph"


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "deepgen_npu" / "graphs"


def draw(pipe, prompt="a red circle", side=64):
    conditioning = pipe.encode(prompt, None, "", side, side)
    reset()
    return pipe.denoise(conditioning, pipe.prepare_latents(1, side, side, seed=0), STEPS, 4.0)


def verdicts(cache: Path) -> list[dict]:
    return [json.loads(path.read_text(encoding="utf-8"))["verdict"] for path in sorted(cache.glob("*.json"))]


def test_the_first_run_measures_and_later_ones_remember(load, cache, caplog, counts_table):
    pipe = load()
    with torch.no_grad():
        draw(pipe)  # tables that are made once
        expected = draw(pipe)
    launched = state.counts.launches()
    pipe.capture_graph = "auto"
    with caplog.at_level("INFO"):
        assert torch.equal(draw(pipe), expected)
    first = state.counts.launches(), state.counts.operators[REPLAYS]
    assert first[1] == 1 + 3 + STEPS  # compared, timed, and the run itself
    (verdict,) = verdicts(cache)
    assert verdict["equal"] and 0 < verdict["captured_ms"] < verdict["launched_ms"]
    (line,) = caplog.messages
    assert line.startswith("On Ascend910B3 (simulated) a denoising step takes ")
    assert line.endswith(f"with equal results, so it is captured from now on ({next(cache.glob('*.json'))}).")

    caplog.clear()
    assert torch.equal(draw(pipe), expected)
    kept = state.counts.launches(), state.counts.operators[REPLAYS]
    assert kept[1] == STEPS and kept[0] < launched / 3

    again = load()
    again.capture_graph = "auto"
    assert torch.equal(draw(again), expected)
    remembered = state.counts.launches(), state.counts.operators[REPLAYS]
    assert remembered[1] == STEPS and kept[0] < remembered[0] < first[0]
    assert caplog.messages == [] and len(verdicts(cache)) == 1
    for name, (launches, replays) in {
        "first, measured": first,
        "second, graph kept": kept,
        "first of another process, verdict remembered": remembered,
        "never captured": (launched, 0),
    }.items():
        counts_table.append((f"a run of {STEPS} steps, {name}", f"{launches} launches, {replays} of them replays"))


def test_another_size_is_another_measurement_but_not_another_prompt(load, cache):
    pipe = load()
    pipe.capture_graph = "auto"
    draw(pipe)
    draw(pipe, side=96)
    assert len(verdicts(cache)) == 2 and len(pipe.graphs) == 2
    draw(pipe, prompt="a red circle and a blue square")
    assert state.counts.operators[REPLAYS] == STEPS, "captured without measuring"
    assert len(verdicts(cache)) == 2


@pytest.mark.parametrize("way", ["differs", "slower", "fails"])
def test_what_is_not_equal_and_faster_is_not_used(load, cache, monkeypatch, caplog, way):
    pipe = load()
    expected = draw(pipe)
    pipe.capture_graph = "auto"
    made = []

    class Bad(graphs._Captured):
        def __init__(self, *arguments):
            made.append(self)
            if way == "fails":
                raise RuntimeError("not permitted\nsecond line")
            super().__init__(*arguments)

        def __call__(self, latents, modulation):
            if way == "slower":
                time.sleep(0.5)
            velocity = super().__call__(latents, modulation)
            return velocity + (way == "differs")

    monkeypatch.setattr(graphs, "_Captured", Bad)
    with caplog.at_level("INFO"):
        for _ in range(2):
            assert torch.equal(draw(pipe), expected)
    assert len(made) == 1, "tried once"
    assert len(pipe.graphs) == 0
    words = {
        "differs": ", but the results differ, so it is not captured from now on",
        "slower": ", with equal results, so it is not captured from now on",
        "fails": "cannot be captured (not permitted), so the host launches its operators from now on",
    }
    (line,) = caplog.messages
    assert words[way] in line


class Stopped(graphs._Captured):
    def __init__(self, *arguments):
        raise KeyboardInterrupt


def test_a_measurement_that_took_the_process_down_is_not_repeated(load, cache, monkeypatch, caplog):
    """It leaves the mark of a measurement that began. Another process, which measures now, is not waited for."""
    pipe = load()
    expected = draw(pipe)
    pipe.capture_graph = "auto"
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(graphs, "_Captured", Stopped)
        patch.setattr(graph_choice, "_forget", lambda path: None)  # the process ended before
        draw(pipe)
    (path,) = cache.glob("*.json")
    assert torch.equal(draw(pipe), expected) and state.counts.operators[REPLAYS] == 0 and caplog.messages == []

    monkeypatch.setattr(graph_choice, "_LONGEST_SECONDS", 0.0)
    assert torch.equal(draw(pipe), expected) and state.counts.operators[REPLAYS] == 0
    assert caplog.messages == [
        f"Capturing the denoising step did not end in an earlier run. To try it again, remove {path}"
    ]
    path.unlink()
    assert torch.equal(draw(pipe), expected) and state.counts.operators[REPLAYS] > STEPS


def test_one_that_the_user_stopped_is(load, cache, monkeypatch):
    pipe = load()
    pipe.capture_graph = "auto"
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(graphs, "_Captured", Stopped)
        draw(pipe)
    assert list(cache.glob("*.json")) == []


def test_a_broken_model_is_no_verdict(load, cache):
    pipe = load()
    pipe.transformer.proj_out.bias.data.fill_(float("nan"))
    pipe.capture_graph = "auto"
    with pytest.raises(FloatingPointError, match="The latents became NaN"):
        draw(pipe)
    assert verdicts(cache) == []


def test_short_memory_is_no_verdict(load, cache, monkeypatch, caplog):
    pipe = load()
    expected = draw(pipe)
    pipe.capture_graph = "auto"

    class Large(graphs._Captured):
        def __init__(self, *arguments):
            raise RuntimeError("NPU out of memory. Tried to allocate 2.00 GiB")

    monkeypatch.setattr(graphs, "_Captured", Large)
    assert torch.equal(draw(pipe), expected)
    assert verdicts(cache) == [] and "There is no memory for a graph" in caplog.text
    (cache.parents[1] / "file").write_text("", encoding="utf-8")
    monkeypatch.setenv("XDG_CACHE_HOME", str(cache.parents[1] / "file"))  # nor where nothing can be written
    assert torch.equal(draw(pipe), expected)


def test_a_folder_that_cannot_be_written(load, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("", encoding="utf-8")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    pipe = load()
    expected = draw(pipe)
    pipe.capture_graph = "auto"
    assert torch.equal(draw(pipe), expected) and state.counts.operators[REPLAYS] > STEPS


def test_on_the_cpu_auto_says_nothing(on_cpu, cache, caplog):
    on_cpu.capture_graph = "auto"
    try:
        draw(on_cpu)
    finally:
        on_cpu.capture_graph = False
    assert caplog.messages == [] and not cache.exists()


def test_the_command_line(cache, tmp_path, capfd):
    def generate(*options: str) -> str:
        reset()
        arguments = ["generate", "--model_path", str(TINY), "--device", "npu", "--prompt", "a red circle"]
        arguments += ["--height", "64", "--width", "64", "--num_inference_steps", str(STEPS), *options]
        assert cli.main([*arguments, "--output_image", str(tmp_path / "x.png")]) == 0
        return capfd.readouterr().out

    generate("--capture_graph", "auto")
    assert state.counts.operators[REPLAYS] > STEPS and len(verdicts(cache)) == 1
    generate("--capture_graph", "auto")
    assert state.counts.operators[REPLAYS] == STEPS
    generate("--capture_graph", "on")
    assert state.counts.operators[REPLAYS] == STEPS
    generate("--capture_graph", "off")
    assert state.counts.operators[REPLAYS] == 0
    assert os.path.exists(tmp_path / "x.png")
