"""Ctrl-C and SIGTERM in every phase of a run: one line, the status of the signal, and nothing half-written."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from golden import TINY
from PIL import Image
from platforms import not_on_windows

from deepgen_npu import DeepGenPipeline, cli, image_files
from deepgen_npu.cli.signals import stoppable
from deepgen_npu.image_files import open_image
from deepgen_npu.tools import baseline, runs


ROOT = Path(__file__).parents[3]
pytestmark = pytest.mark.slow
PLACE = ["--model_path", str(TINY), "--device", "cpu", "--dtype", "float32"]
RUN = [*PLACE, "--height", "64", "--width", "64", "--num_inference_steps", "2", "--prompt", "x"]
STATUS = {signal.SIGINT: 130, signal.SIGTERM: 143}
# Each ends with its signal before or in the middle of what it stands for.
PHASES = {
    "opening": (image_files, "open_image"),
    "rehearsing": (image_files, "_write"),
    "loading": (DeepGenPipeline, "from_checkpoint"),
    "encoding": (DeepGenPipeline, "encode"),
    "denoising": (DeepGenPipeline, "denoise"),
    "decoding": (DeepGenPipeline, "decode"),
}


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The current folder, with the image that is edited and overwritten."""
    monkeypatch.chdir(tmp_path)
    Image.new("RGB", (64, 64), "blue").save("a.png")
    return tmp_path


def after(call, number: signal.Signals, count: int = 1):
    """A function that sends the signal when it was called so often and has done its work."""
    calls = []

    def wrapped(*arguments, **options):
        result = call(*arguments, **options)
        calls.append(1)
        if len(calls) == count:
            signal.raise_signal(number)
        return result

    return wrapped


@pytest.mark.parametrize("number", STATUS, ids=["SIGINT", "SIGTERM"])
@pytest.mark.parametrize("phase", PHASES)
def test_in_every_phase_the_old_image_stays(folder, monkeypatch, capsys, phase, number):
    old = Path("a.png").read_bytes()
    monkeypatch.setattr(*PHASES[phase], after(getattr(*PHASES[phase]), number))
    before = signal.getsignal(number)
    assert cli.main(["edit", *RUN, "--input_image", "a.png", "--output_image", "a.png"]) == STATUS[number]
    assert signal.getsignal(number) is before
    assert capsys.readouterr().err.splitlines()[-1] == "Stopped; nothing was written."
    assert Path("a.png").read_bytes() == old and os.listdir() == ["a.png"]


@pytest.mark.parametrize("number", STATUS, ids=["SIGINT", "SIGTERM"])
def test_while_images_are_saved_each_is_complete_or_as_it_was(folder, monkeypatch, capsys, number):
    Path("b_2.png").write_bytes(b"old")
    written = []

    def write(path, content):
        with path.open("wb") as file:
            file.write(content[: len(content) // 2])
            written.append(path)
            if len(written) == 4:  # two rehearsals and the first image came before
                signal.raise_signal(number)
            file.write(content[len(content) // 2 :])

    monkeypatch.setattr(Path, "write_bytes", write)
    assert cli.main(["generate", *RUN, "--num_images", "3", "--output_image", "b.png"]) == STATUS[number]
    assert capsys.readouterr().err.splitlines()[-1] == "Stopped; saved of 3 image(s): b_1.png."
    assert sorted(os.listdir()) == ["a.png", "b_1.png", "b_2.png"]
    assert open_image("b_1.png").size == (64, 64) and Path("b_2.png").read_bytes() == b"old"


def test_a_reference_is_not_left_half_written(folder, monkeypatch, capsys):
    for module, name in ((runs, "run"), (baseline, "save_image"), (baseline, "require_room")):
        with monkeypatch.context() as patch:
            patch.setattr(module, name, after(getattr(module, name), signal.SIGTERM))
            assert cli.main(["verify", *RUN, "--save", "new/reference"]) == 143, name
        assert capsys.readouterr().err.splitlines()[-1] == "Stopped; nothing was written."
        assert os.listdir() == ["a.png"], name


@not_on_windows("signals cannot be sent to other processes")
def test_in_a_process_of_its_own(folder):
    """Sent from outside, while it denoises (SIGINT) and while it loads (SIGTERM)."""
    old = Path("a.png").read_bytes()
    for number, line in ((signal.SIGINT, "Starting inference"), (signal.SIGTERM, "Loading pipeline")):
        command = [sys.executable, "-m", "deepgen_npu", "generate", *RUN, "--num_inference_steps", "1000"]
        process = subprocess.Popen(
            [*command, "--output_image", "a.png"],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
        )
        try:
            assert process.stdout is not None and any(printed.startswith(line) for printed in process.stdout)
            time.sleep(0.2)
            process.send_signal(number)
            _, errors = process.communicate(timeout=120)
        finally:
            process.kill()
        assert process.returncode == STATUS[number], errors
        assert errors.splitlines()[-1] == "Stopped; nothing was written." and "Traceback" not in errors
        assert Path("a.png").read_bytes() == old and os.listdir() == ["a.png"]


@not_on_windows("signals cannot be sent to other processes")
def test_a_second_one_ends_at_once():
    code = """
import signal, time
from deepgen_npu.cli.signals import stoppable
with stoppable():
    try:
        print("begun", flush=True)
        time.sleep(100)
    finally:
        print("ending", flush=True)
        time.sleep(100)
"""
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, cwd=ROOT)
    try:
        assert process.stdout is not None
        for line in ("begun\n", "ending\n"):
            assert process.stdout.readline() == line
            process.send_signal(signal.SIGINT)
        assert process.wait(timeout=60) == -signal.SIGINT
    finally:
        process.kill()


def test_signals_that_are_ignored_or_handled_by_others_stay_so():
    seen = []
    before = {number: signal.getsignal(number) for number in STATUS}
    try:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.signal(signal.SIGTERM, lambda number, frame: seen.append(number))
        with stoppable():
            signal.raise_signal(signal.SIGINT)
            signal.raise_signal(signal.SIGTERM)
        assert seen == [signal.SIGTERM] and signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def test_a_thread_leaves_signals_alone():
    before = signal.getsignal(signal.SIGTERM)
    seen = []

    def work() -> None:
        with stoppable():
            seen.append(signal.getsignal(signal.SIGTERM))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [before]
