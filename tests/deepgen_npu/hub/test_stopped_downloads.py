"""Ctrl-C and SIGTERM during a download: it ends at once, and the next one continues from there."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hub_server import DATA, EACH_SOURCE, WEIGHTS, Hub
from platforms import not_on_windows

from deepgen_npu.hub.download import download


ROOT = Path(__file__).resolve().parents[3]
pytestmark = [pytest.mark.slow, not_on_windows("signals cannot be sent to other processes")]


@pytest.fixture
def command(hub: Hub, tmp_path: Path) -> Iterator[Callable[[str], subprocess.Popen[str]]]:
    """Starts `python -m deepgen_npu download`."""
    started = []

    def start(source: str) -> subprocess.Popen[str]:
        env = {key: value for key, value in os.environ.items() if "proxy" not in key.lower()}
        env |= {"HF_ENDPOINT": hub.url, "MODELSCOPE_ENDPOINT": hub.url, "PYTHONPATH": str(ROOT)}
        call = [sys.executable, "-m", "deepgen_npu", "download", "--source", source, "--to", "model"]
        # Where the tests run in the background, Ctrl-C is ignored, and would be by the child.
        child = subprocess.Popen(
            call,
            env=env,
            cwd=tmp_path,
            stderr=subprocess.PIPE,
            text=True,
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
        )
        started.append(child)
        return child

    yield start
    for child in started:
        child.kill()
        child.wait()


def wait_for(condition: Callable[[], bool]) -> None:
    until = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.02)


@EACH_SOURCE
@pytest.mark.parametrize("phase", ["the listing", "the first byte", "a file"])
def test_ctrl_c(source: str, phase: str, hub: Hub, command: Callable[..., Any], tmp_path: Path) -> None:
    what = "info" if phase == "the listing" else WEIGHTS
    hub.drip[what] = 40_000 if phase == "a file" else -1
    child = command(source)
    wait_for(lambda: any((request.file or "info") == what for request in hub.log))
    if phase != "the listing":
        wait_for(lambda: all((tmp_path / "model" / name).exists() for name in DATA if name != WEIGHTS))
    time.sleep(0.3)
    begin = time.monotonic()
    child.send_signal(signal.SIGINT)
    _, errors = child.communicate(timeout=30)
    # It takes about half a second; the server would go on for hours.
    assert time.monotonic() - begin < 10
    assert child.returncode == 130, errors
    last = errors.strip().splitlines()[-1]
    assert "Run the same command again to continue." in last
    assert "Traceback" not in errors
    if phase == "the listing":
        assert "before any file was requested" in last
        return
    assert "3 of 4 files are complete in" in last
    assert "model_index.json, tokenizer/merges.txt, vae/config.json" in last
    assert not (tmp_path / "model" / WEIGHTS).exists()

    hub.drip.clear()
    hub.log.clear()
    assert download(source, tmp_path / "model") == tmp_path / "model"
    assert (tmp_path / "model" / WEIGHTS).read_bytes() == DATA[WEIGHTS]
    assert hub.requested() == [WEIGHTS]
    assert hub.log[-1].range == ("bytes=32768-" if phase == "a file" else None)


def test_termination_leaves_nothing_half_written(hub: Hub, command: Callable[..., Any], tmp_path: Path) -> None:
    hub.drip[WEIGHTS] = 40_000
    child = command("huggingface")
    wait_for(lambda: bool(list(tmp_path.rglob("*.incomplete"))) and bool(list(tmp_path.rglob("merges.txt"))))
    child.terminate()
    child.communicate(timeout=30)
    assert child.returncode == 143
    assert not (tmp_path / "model" / WEIGHTS).exists()
    hub.drip.clear()
    download(to=tmp_path / "model")
    assert (tmp_path / "model" / WEIGHTS).read_bytes() == DATA[WEIGHTS]
