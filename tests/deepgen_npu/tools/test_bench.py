"""``python -m deepgen_npu bench``: every number of its tables, and random weights that were never in a file."""

from __future__ import annotations

import json
import re
import statistics
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from golden import TINY
from quantized_folders import write_quantized
from stderr import error_in

from deepgen_npu import DeepGenPipeline, cli, locations
from deepgen_npu.checkpoint.folder import PARTS, Checkpoint
from deepgen_npu.dtypes import dtype_name
from deepgen_npu.quantization.formats import FORMATS
from deepgen_npu.tools import bench, doctor, random_checkpoint, specs
from deepgen_npu.tools.bench import Measurement, Part, Times
from deepgen_npu.tools.random_model import RandomModel
from deepgen_npu.tools.runs import STAGES, RunSettings, reference_images


ROOT = Path(__file__).parents[3]
SMALL = ["--device", "cpu", "--height", "64", "--width", "64", "--num_inference_steps", "2"]
CPU = torch.device("cpu")
SETTINGS = RunSettings("a cat", 512, 768, 7, 20, 4.0)


@pytest.fixture(scope="module")
def random_model() -> RandomModel:
    return RandomModel.of_size("tiny")


def on_cpu(device: torch.device = CPU) -> dict[str, torch.device]:
    return dict.fromkeys(PARTS, device)


def measured(arguments: list[str], capsys) -> dict:
    assert cli.main(["bench", *SMALL, *arguments, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


# Random weights


@pytest.mark.parametrize("title", FORMATS)
def test_random_weights_in_a_format_are_those_of_a_quantised_checkpoint(tmp_path, title):
    plain = random_checkpoint.write(tmp_path / "plain")
    written = DeepGenPipeline.from_pretrained(write_quantized(tmp_path / "made", title, source=plain), torch.float32)
    model, seen = RandomModel.of_size("tiny", title=title), []
    drawn = model.load(torch.float32, on_cpu(), seen.append)
    assert sum(seen) == model.nbytes(torch.float32)
    for part in PARTS:
        expected, state = written.components[part].state_dict(), drawn.components[part].state_dict()
        assert list(expected) == list(state)
        for name, tensor in expected.items():
            assert state[name].dtype == tensor.dtype and torch.equal(state[name].float(), tensor.float()), name


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_random_weights_are_those_of_a_written_checkpoint(tmp_path, random_model, dtype):
    written = DeepGenPipeline.from_pretrained(random_checkpoint.write(tmp_path / "model"), torch_dtype=dtype)
    seen = []
    drawn = random_model.load(dtype, on_cpu(), seen.append)
    assert sum(seen) == random_model.nbytes(dtype)
    for part in PARTS:
        expected, state = written.components[part].state_dict(), drawn.components[part].state_dict()
        assert list(expected) == list(state)
        for name, tensor in expected.items():
            assert state[name].dtype == tensor.dtype and torch.equal(state[name], tensor), (part, name)
    assert not any(tensor.is_inference() or tensor.requires_grad for tensor in drawn.transformer.parameters())
    call = {"height": 64, "width": 64, "num_inference_steps": 2, "seed": 1, "output_type": "pt"}
    assert torch.equal(drawn("a cat", **call).images, written("a cat", **call).images)


def test_a_random_model_describes_the_folder_that_was_not_written(tmp_path, random_model):
    checkpoint = Checkpoint.open(random_checkpoint.write(tmp_path / "model"))
    described = random_model.checkpoint
    assert described.configs == checkpoint.configs and described.index == checkpoint.index
    assert described.nbytes() == checkpoint.nbytes()
    for part in PARTS:
        stored = {name: (tensor.dtype, tensor.shape) for name, tensor in checkpoint.tensors[part].items()}
        assert {name: (tensor.dtype, tensor.shape) for name, tensor in described.tensors[part].items()} == stored


def test_the_published_size_is_described_without_its_memory():
    model = RandomModel.of_size("published")
    assert model.nbytes(torch.bfloat16) == 2 * 6_740_556_127
    assert not list(model.checkpoint.folder.rglob("*.safetensors"))
    assert sum(path.stat().st_size for path in model.checkpoint.folder.rglob("*") if path.is_file()) < 10**6
    with pytest.raises(ValueError, match="size must be one of tiny, benchmark, published, got 'huge'"):
        RandomModel.of_size("huge")


# The numbers


def fake_runs(monkeypatch, durations: list[dict[str, float]], peaks: dict[str, int] | None = None) -> list[str]:
    """Runs whose stages take these seconds by a clock of ours; returns what happened to the device."""
    clock = [100.0]
    events: list[str] = []
    pending = iter(durations)

    def run(pipe, settings, stage, on_conditioning):
        seconds = next(pending)
        clock[0] += 1000  # between the stages nothing is measured
        for name in STAGES:
            with stage(name):
                clock[0] += seconds[name]
                events.append(name)

    monkeypatch.setattr(bench, "run", run)
    monkeypatch.setattr(bench, "synchronize", lambda device: events.append("wait"))
    monkeypatch.setattr(bench.time, "perf_counter", lambda: clock[0])
    if peaks is not None:
        monkeypatch.setattr(bench, "memory_allocated", lambda device: 0)
        monkeypatch.setattr(bench, "reset_peak_memory", lambda device: events.append("reset"))
        monkeypatch.setattr(bench, "peak_memory", lambda device: peaks[events[-2]] + len(events))
    return events


def seconds(encode: float, denoise: float, decode: float) -> dict[str, float]:
    return {"encode": encode, "denoise": denoise, "decode": decode}


def test_medians_without_the_first_run(monkeypatch, pipe):
    """A run's median is that of the runs, not the sum of the stages' medians."""
    durations = [seconds(50, 60, 70), seconds(1, 20, 3), seconds(3, 10, 4), seconds(2, 8, 9)]
    events = fake_runs(monkeypatch, durations)
    numbers = []
    result = bench.measure(pipe, CPU, SETTINGS, 3, load_seconds=1.5, on_run=numbers.append)
    assert numbers == [0, 1, 2, 3]
    assert result.warm_up.stages == durations[0] and result.warm_up.run == 180
    assert result.stages == {"encode": 2, "denoise": 10, "decode": 4}
    assert result.run == 19  # of 24, 17 and 19
    assert result.steps_per_second == 2
    assert result.peaks is None
    # The device has finished before the clock is read.
    assert events[:6] == ["wait", "encode", "wait", "wait", "denoise", "wait"]
    assert result.as_dict()["runs"][1] == {**seconds(3, 10, 4), "run": 17}


def test_an_even_number_of_runs(monkeypatch, pipe):
    fake_runs(monkeypatch, [seconds(9, 9, 9), seconds(1, 10, 1), seconds(3, 30, 3)])
    result = bench.measure(pipe, CPU, SETTINGS, 2)
    assert result.stages == {"encode": 2, "denoise": 20, "decode": 2} and result.run == 24


def test_peaks_are_the_largest_of_each_stage(monkeypatch, pipe):
    events = fake_runs(monkeypatch, [seconds(1, 1, 1)] * 3, {"encode": 1000, "denoise": 3000, "decode": 2000})
    result = bench.measure(pipe, CPU, SETTINGS, 2)
    # The fake adds the number of events so far: later runs have larger peaks.
    count = len(events)
    assert result.peaks == {
        "encode": 1000 + count - 8,
        "denoise": 3000 + count - 4,
        "decode": 2000 + count,
        "whole run": 3000 + count - 4,
    }
    assert events[:4] == ["reset", "wait", "encode", "wait"]


def test_memory_of_the_parts(pipe):
    """Weights as the files have them, in float32, and the VLM's rotary frequencies, which are in no file."""
    checkpoint = Checkpoint.open(TINY)
    sizes = pipe.memory()
    for part in ("connector", "transformer", "vae"):
        assert sizes[part] == Part("cpu", 4 * checkpoint.elements(part))
    rotary = {id(buffer): buffer.nbytes for buffer in pipe.vlm.buffers()}
    assert sizes["vlm"].nbytes == 4 * checkpoint.elements("vlm") + sum(rotary.values())
    assert 0 < sum(rotary.values()) < 1000


def test_the_tables():
    gib, mib = 2**30, 2**20
    parts = {"vlm": 7 * gib, "connector": gib * 17 // 10, "transformer": 4 * gib, "vae": 100 * mib}
    result = Measurement(
        SETTINGS,
        {name: Part("npu:0", size) for name, size in parts.items()},
        12.345,
        Times(seconds(1, 5, 2)),
        [Times(seconds(0.25, 2, 0.125))],
        {"encode": 8 * gib, "denoise": 13 * gib, "decode": 14 * gib, "whole run": 14 * gib},
    )
    assert bench.as_markdown(result).splitlines() == [
        "| Part | Device | Memory |",
        "|---|---|---|",
        "| vlm | npu:0 | 7.00 GiB |",
        "| connector | npu:0 | 1.70 GiB |",
        "| transformer | npu:0 | 4.00 GiB |",
        "| vae | npu:0 | 100.0 MiB |",
        "| all parts | | 12.80 GiB |",
        "",
        "| What | Median of 1 | First run | Peak memory |",
        "|---|---|---|---|",
        "| encode | 0.250 s | 1.000 s | 8.00 GiB |",
        "| denoise | 2.000 s | 5.000 s | 13.00 GiB |",
        "| decode | 0.125 s | 2.000 s | 14.00 GiB |",
        "| whole run | 2.375 s | 8.000 s | 14.00 GiB |",
        "| denoising | 10.00 it/s | 4.00 it/s | |",
        "",
        "Loading the model took 12.35 s (one run, without importing the libraries).",
    ]
    result.work = bench.Work(4_290_000_000_000, "Ascend910B3", "bfloat16")
    (line,) = [line for line in bench.as_markdown(result).splitlines() if "TFLOP" in line]
    assert line.startswith("4.29 TFLOP a step x 10 it/s = 42.9 TFLOPS, 13.7% of the 313 of Ascend910B3 in bfloat16 (")
    assert "Ascend/MindIE-SD" in line
    numbers = result.as_dict()["work"]
    assert (numbers["step_flops"], numbers["tflops"], numbers["peak_tflops"]) == (4.29e12, 42.9, 313)
    assert numbers["share"] == pytest.approx(42.9 / 313)
    result.work = bench.Work(4_290_000_000_000, "Ascend910B3", "float32")
    assert bench.as_markdown(result).splitlines()[16] == (
        "4.29 TFLOP a step x 10 it/s = 42.9 TFLOPS. The peak of Ascend910B3 in float32 is not known."
    )
    assert result.as_dict()["work"]["share"] is None
    result.work = result.load_seconds = result.peaks = None
    lines = bench.as_markdown(result).splitlines()
    assert lines[8] == "| What | Median of 1 | First run |" and lines[14] == "| denoising | 10.00 it/s | 4.00 it/s |"
    assert lines[-1] == "Loading was not measured: random weights are not read from files."


# The command


def test_json_agrees_with_itself_and_the_model(capsys):
    outcome = measured(["--random-weights", "tiny", "--runs", "3", "--dtype", "float32"], capsys)
    assert len(outcome["runs"]) == 3
    for stage in (*STAGES, "run"):
        assert outcome["median"][stage] == statistics.median(run[stage] for run in outcome["runs"])
        assert outcome["warm_up"][stage] > 0
    assert outcome["median"]["steps_per_second"] == 2 / outcome["median"]["denoise"]
    for run in (*outcome["runs"], outcome["warm_up"]):
        assert run["run"] == pytest.approx(sum(run[stage] for stage in STAGES))
    assert outcome["load_seconds"] is None and outcome["peaks"] is None
    assert outcome["model"] == "random weights of the size tiny" and outcome["dtype"] == "float32"
    assert outcome["versions"]["torch"] == torch.__version__
    assert outcome["device"] == {"device": "cpu", "name": doctor.processor()}
    assert outcome["settings"]["height"] == outcome["settings"]["width"] == 64


def test_files_are_timed_and_options_arrive(capsys, monkeypatch):
    seen = []
    measure = bench.measure
    monkeypatch.setattr(bench, "measure", lambda pipe, *rest: seen.append(pipe) or measure(pipe, *rest))
    arguments = ["--model_path", str(TINY), "--runs", "1", "--references", "2", "--offload", "--capture_graph"]
    arguments += ["--disable_mmap"]
    outcome = measured(
        [*arguments, "--prompt", "blue", "--seed", "3", "--guidance_scale", "1", "--guidance_every", "2"], capsys
    )
    assert outcome["load_seconds"] > 0 and outcome["model"] == "tiny"
    assert outcome["offload"] is outcome["capture_graph"] is outcome["disable_mmap"] is True
    assert outcome["work"]["step_flops"] > 10**6 and outcome["work"]["share"] is None
    assert type(seen[0].placement).__name__ == "ModelOffload" and seen[0].capture_graph
    assert outcome["settings"] == {
        "prompt": "blue",
        "height": 64,
        "width": 64,
        "seed": 3,
        "num_inference_steps": 2,
        "guidance_scale": 1.0,
        "references": 2,
        "guidance_every": 2,
    }


@pytest.mark.slow
def test_in_a_process_of_its_own_the_result_is_alone_on_stdout():
    command = [sys.executable, "-m", "deepgen_npu", "bench", "--random-weights", "tiny", "--runs", "1", *SMALL]
    outcome = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=True)
    lines = outcome.stdout.splitlines()
    assert lines[0].startswith("- Versions: deepgen_npu ") and f"torch {torch.__version__}" in lines[0]
    assert lines[1] == f"- Device: cpu ({doctor.processor()}), {torch_auto()}"
    assert "- Run: generation at 64 x 64, 2 steps, guidance 4, seed 42" in lines
    assert lines[-1] == "Loading was not measured: random weights are not read from files."
    for word in ("Drawing weights", "Warming up", "Run 1 of 1"):
        assert word in outcome.stderr and word not in outcome.stdout


def torch_auto() -> str:
    return dtype_name(specs.resolve_dtype("auto", CPU))


def test_variables_that_matter_are_told(monkeypatch):
    monkeypatch.setenv("TASK_QUEUE_ENABLE", "2")
    assert "TASK_QUEUE_ENABLE=2" in specs.header(Device="x").splitlines()[-1]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--random-weights", "tiny", "--device", "npu"], r"torch_npu is not installed(?s:.*)--device auto"),
        (["--random-weights", "tiny", "--runs", "0"], "--runs must be an integer from 1 to 1000, got 0"),
        (["--random-weights", "tiny", "--references", "-1"], "--references must be an integer from 0 to 16, got -1"),
        (
            ["--random-weights", "tiny", "--runs", "1000000000"],
            "--runs must be an integer from 1 to 1000, got 1000000000",
        ),
        (
            ["--random-weights", "tiny", "--references", "1000000000"],
            "--references must be an integer from 0 to 16, got 1000000000",
        ),
        (
            ["--random-weights", "tiny", "--num_inference_steps", "1000000000"],
            "num_inference_steps must be an integer from 1 to 1000, got",
        ),
        (
            ["--random-weights", "tiny", "--guidance_scale", "nan"],
            "guidance_scale must be a number from 0 to 100, got 'nan'",
        ),
        (
            ["--random-weights", "tiny", "--height", "100"],
            r"height must be a multiple of 16 from 16 to \d+, got 100 \(nearest: 96, 112\)\.",
        ),
        (["--random-weights", "tiny", "--model_path", "x"], "--model_path and --random-weights cannot be combined"),
        (["--model_path", "nowhere"], "There is no folder nowhere"),
    ],
)
def test_mistakes_are_one_error(capsys, arguments, words):
    assert cli.main(["bench", *SMALL, *arguments]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert re.search(words, error_in(captured.err))


def test_weights_that_do_not_fit_are_refused_before_they_are_drawn(monkeypatch, capsys):
    monkeypatch.setattr(specs, "free_memory", lambda device: (2**30, 2**33))
    monkeypatch.setattr(RandomModel, "load", None)  # 25 GiB are never allocated, whatever goes wrong here
    assert cli.main(["bench", *SMALL, "--random-weights", "--dtype", "float32"]) == 2
    error = capsys.readouterr().err
    assert "need 25.11 GiB on cpu in float32, but only 1.00 GiB are free" in error
    assert "Drawing" not in error


def test_without_a_model_the_demo_is_named(monkeypatch, capsys):
    monkeypatch.setattr(locations, "find_downloaded", lambda: None)
    assert cli.main(["bench", *SMALL]) == 2
    assert "demo_checkpoint" in capsys.readouterr().err


def test_made_up_references_differ_and_fill_the_image():
    first, second = reference_images(2, 64, 96)
    assert first.size == (96, 64) and first.mode == "RGB"
    assert first.tobytes() != second.tobytes()
    assert all(low < 30 and high > 200 for low, high in first.getextrema()[:2])
    assert reference_images(1, 64, 96)[0].tobytes() == first.tobytes()


def test_steps_without_the_negative_prompt_count_as_what_they_are(pipe):
    """On average of a run: 4 of 10 steps have both rows."""

    def flops(steps: int, guidance: float, every: int) -> int:
        settings = RunSettings("a cat", 64, 64, 7, steps, guidance, guidance_every=every)
        return bench.Work.of(pipe, CPU, settings, pipe.encode("a cat", None, "", 64, 64)).flops

    both, one = flops(10, 4.0, 1), flops(10, 1.0, 3)
    assert one < both < 2 * one
    assert flops(10, 4.0, 3) == (4 * both + 6 * one) // 10
