"""Batches in a folder of their own, drawn by the tiny model or by a stand-in."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from golden import TINY
from PIL import Image

from deepgen_npu import cli
from deepgen_npu.image_files import open_image
from deepgen_npu.tools.batch import loading
from deepgen_npu.tools.batch.drawing import Drawn, Loaded, Painter
from deepgen_npu.tools.batch.folder import OutputFolder
from deepgen_npu.tools.batch.rows import Row
from deepgen_npu.tools.specs import ModelSpec


SMALL = ["--device", "cpu", "--dtype", "float32", "--height", "64", "--width", "64", "--num_inference_steps", "2"]


def write_rows(path: Path, rows: Sequence[Mapping[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


class Batch:
    """A table ``rows.jsonl`` and the output folder ``out``.

    Attributes:
        drawn: Ids of all rows that were drawn, in their order; of a stand-in only.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        self.table, self.output = folder / "rows.jsonl", folder / "out"
        self.model = TINY
        self.drawn: list[str] = []

    def rows(self, *rows: Mapping[str, Any]) -> None:
        write_rows(self.table, rows)

    def run(self, *options: str) -> int:
        """The exit status."""
        return cli.main(
            ["batch", str(self.table), "--output", str(self.output), "--model_path", str(self.model), *SMALL, *options]
        )

    def lines(self) -> list[dict[str, Any]]:
        """Of all manifests, a torn one left out."""
        found = sorted(self.output.glob("manifest*.jsonl"))
        contents = [path.read_bytes().rpartition(b"\n")[0] for path in found]
        return [json.loads(line) for content in contents for line in content.splitlines()]

    def last(self) -> dict[str, dict[str, Any]]:
        """The last line of each row."""
        return {line["id"]: line for line in self.lines()}

    def image(self, name: str, number: int = 0) -> Image.Image:
        """An image of a row."""
        return open_image(self.output / self.last()[name]["files"][number])

    def files(self) -> list[str]:
        """What is in the output folder, but folders."""
        found = (path for path in self.output.rglob("*") if not path.is_dir())
        return sorted(path.relative_to(self.output).as_posix() for path in found)

    def images(self) -> set[str]:
        """Names of the images."""
        return {Path(name).name for name in self.files() if name.startswith("images/")}

    def require_whole(self) -> None:
        """Each image that a line names is there, and has the pixels of the line; nothing else is there."""
        named = [name for line in self.last().values() for name in line.get("files", ())]
        others = {"run.json", "manifest.jsonl", "contact_sheet.jpg"}
        assert set(self.files()) - others == set(named)
        for line in self.last().values():
            pixels = [open_image(self.output / name).tobytes() for name in line.get("files", ())]
            assert [hashlib.sha256(one).hexdigest() for one in pixels] == line.get("sha256", [])


@pytest.fixture
def batch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pipe: Any) -> Iterator[Batch]:
    """Drawn by the tiny model, which is loaded once for all tests."""
    monkeypatch.setattr(ModelSpec, "load", lambda self, place: (pipe, None))
    before = pipe.encodings.max_bytes
    yield Batch(tmp_path)
    pipe.encodings.max_bytes = before
    pipe.encodings.clear()


def picture(prompt: str, seed: int, steps: int = 2) -> Image.Image:
    """What a stand-in draws."""
    content = hashlib.sha256(f"{prompt} {seed} {steps}".encode("utf-8", "surrogatepass")).digest()
    generator = np.random.default_rng(np.frombuffer(content, np.uint32))
    return Image.fromarray(generator.integers(0, 256, (16, 16, 3), np.uint8))


class StandIn(Painter):
    """Draws at once, from prompt, seed and steps alone."""

    on_draw: Callable[[Row], Drawn | None]
    """Called before a row is drawn; what it returns is drawn instead."""

    def load(self, row: Row) -> Loaded:
        return Loaded(row)

    def draw(self, loaded: Loaded) -> Drawn:
        row = loaded.row
        instead = self.on_draw(row)
        images = [picture(row.prompt, seed, row.num_inference_steps) for seed in row.seeds]
        return instead or Drawn(images, [None] * row.n, (16, 16), 0.5)


def stand_in(settings: Mapping[str, Any], on_draw: Callable[[Row], Drawn | None]) -> StandIn:
    parameters = {"model": "tiny", "loras": [], "device": "cpu", "dtype": "float32", "vae_tiling": False}
    made = StandIn(None, OutputFolder(Path(settings["output"])), settings["facts"], parameters, "stand-in")  # pyright: ignore
    made.on_draw = on_draw
    return made


@pytest.fixture
def quick(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Batch:
    """Drawn by a stand-in: without a model."""
    made = Batch(tmp_path)

    def note(row: Row) -> Drawn | None:
        made.drawn.append(row.id)
        return Drawn(error=row.prompt) if row.prompt.startswith("cannot") else None

    monkeypatch.setattr(loading, "load_painter", lambda settings: stand_in(settings, note))
    return made
