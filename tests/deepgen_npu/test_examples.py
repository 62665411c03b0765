"""The scripts in docs/examples/, run as they are, on the demo checkpoint."""

from __future__ import annotations

import runpy
import sys
from pathlib import Path

import pytest
from PIL import Image

from deepgen_npu.locations import DEMO_FOLDER
from training.judge import recognise
from training.scenes import Scene, Thing, render


ROOT = Path(__file__).parents[2]
EXAMPLES = sorted((ROOT / "docs" / "examples").glob("*.py"))
STEPS = "10"


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    """Runs an example in an empty folder."""
    monkeypatch.chdir(tmp_path)

    def run(name: str, *arguments: str) -> None:
        command = [name, *arguments, "--model", str(DEMO_FOLDER), "--steps", STEPS]
        monkeypatch.setattr(sys, "argv", command)
        runpy.run_path(str(ROOT / "docs" / "examples" / name), run_name="__main__")

    return run


def shown(path: Path | str) -> tuple[str, list[tuple[str, str]]]:
    """The background of an image, and the colour and shape of each thing on it."""
    with Image.open(path) as image:
        seen = recognise(image)
    return seen.background, [(thing.colour, thing.shape) for thing in seen.things]


@pytest.mark.slow
def test_text_to_image(run):
    run("text_to_image.py", "a red circle on the left on a white background", "drawn.png")
    assert shown("drawn.png") == ("white", [("red", "circle")])


@pytest.mark.slow
def test_edit_image(run):
    """In the shape of the image that is edited."""
    render(Scene((Thing("square", "red", "left"),), "white", width=96, height=48)).save("before.png")
    run("edit_image.py", "before.png", "make it blue", "after.png")
    assert shown("after.png") == ("white", [("blue", "square")])
    with Image.open("after.png") as image:
        assert image.width > image.height


@pytest.mark.slow
def test_batch(run):
    """An image a line, in their order; empty lines are none. The last batch is smaller."""
    colours = ("red", "green", "blue")
    lines = [f"a {colour} square in the middle on a black background" for colour in colours]
    Path("prompts.txt").write_text("\n\n".join(lines), encoding="utf-8")
    run("batch.py", "prompts.txt", "drawn", "--at_once", "2")
    assert sorted(path.name for path in Path("drawn").iterdir()) == ["001.png", "002.png", "003.png"]
    for number, colour in enumerate(colours, start=1):
        assert shown(f"drawn/{number:03}.png") == ("black", [(colour, "square")])


@pytest.mark.slow
@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.name)
def test_help_is_given_before_anything_is_loaded(path: Path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", [path.name, "--help"])
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(path), run_name="__main__")
    assert ended.value.code == 0
    assert f"python docs/examples/{path.name} " in " ".join(capsys.readouterr().out.split())


@pytest.mark.slow
def test_there_is_a_test_of_each():
    assert [path.stem for path in EXAMPLES] == sorted(["text_to_image", "edit_image", "batch"])
