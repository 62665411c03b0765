"""A worker of `batch` without a model: its rows take the time, or do the damage, that their prompts say."""

from __future__ import annotations

import os
import platform
import random
import re
import signal
import socket
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from deepgen_npu.tools.batch.cluster import Cluster
from deepgen_npu.tools.batch.folder import OutputFolder
from deepgen_npu.tools.batch.manifest import ERROR, Entry
from deepgen_npu.tools.batch.names import image_files
from deepgen_npu.tools.batch.rows import Row
from deepgen_npu.tools.batch.survey import Job
from deepgen_npu.tools.batch.worker import Worker


@dataclass
class StandIn:
    """In place of `drawing.Painter`. An image of 64 x 64 depends on the seed alone.

    Prompts: ``300 ms`` takes so long; ``kill`` ends the process; ``break`` raises what a card that is out of order
    does; ``bad`` is the fault of the row; ``full`` is a full disk.
    """

    output: Path

    def facts(self) -> dict[str, Any]:
        return {"node": socket.gethostname(), "device": "stand-in", "versions": {"Python": platform.python_version()}}

    def load(self, row: Row) -> Row:
        return row

    def draw(self, row: Row) -> tuple[Image.Image | None, float]:
        start = time.perf_counter()
        if row.prompt == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        if row.prompt == "break":
            raise RuntimeError("aicore exception")
        if row.prompt == "bad":
            return None, 0.0
        if found := re.match(r"([0-9]+) ms", row.prompt):
            time.sleep(int(found[1]) / 1000)
        pixels = random.Random(row.seed).randbytes(64 * 64 * 3)
        return Image.frombytes("RGB", (64, 64), pixels), time.perf_counter() - start

    def save(self, job: Job, drawn: tuple[Image.Image | None, float]) -> Entry:
        row, (image, seconds) = job.row, drawn
        if image is None:
            return Entry(row.number, row.id, ERROR, error="a bad row", node=socket.gethostname())
        if row.prompt == "full":
            raise OSError(28, "No space left on device", str(self.output))
        (name,) = image_files(row.id, 1)
        OutputFolder(self.output).save_image(image, name, {"batch": {"id": row.id, "fingerprint": job.fingerprint}})
        return job.line([image], seconds=round(seconds, 3), node=socket.gethostname(), device="stand-in")


class StandInWorker(Worker):
    """Draws with `StandIn`; with ``together`` (a folder and a number) only when so many workers are up."""

    def load(self) -> StandIn:
        if "together" in self.settings:
            wait_for_others(*self.settings["together"])
        return StandIn(Path(self.settings["output"]))


def wait_for_others(folder: str, count: int) -> None:
    """Go on when this process and others are there."""
    (Path(folder) / str(os.getpid())).touch()
    while len(os.listdir(folder)) < count:
        time.sleep(0.02)


class StandInCluster(Cluster):
    """A cluster of such workers."""

    worker_class = StandInWorker


SETTINGS = {"device": "cpu", "text_encoder_device": None, "offload": False, "model": "none", "loras": [], "facts": {}}
"""Of workers, besides ``output``."""
