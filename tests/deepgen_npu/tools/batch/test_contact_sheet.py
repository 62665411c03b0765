"""Many images on one."""

from __future__ import annotations

import os

import numpy as np
import pytest
from PIL import Image

from deepgen_npu.tools.batch.contact_sheet import CAPTION, GAP, GROUND, TILE, save_contact_sheet


STEP_X, STEP_Y = TILE + GAP, TILE + CAPTION + GAP


def colour(sheet: Image.Image, column: int, row: int) -> tuple[int, ...]:
    """In the middle of a tile."""
    place = GAP + column * STEP_X + TILE // 2, GAP + row * STEP_Y + TILE // 2
    return tuple(int(value) for value in np.asarray(sheet)[place[1], place[0]])


@pytest.mark.parametrize(("count", "columns", "rows"), [(1, 1, 1), (2, 2, 1), (5, 3, 2), (9, 3, 3), (10, 4, 3)])
def test_the_grid_is_as_square_as_it_can_be(tmp_path, count, columns, rows):
    images = []
    for number in range(count):
        path = tmp_path / f"{number}.png"
        Image.new("RGB", (300, 150), (number * 20, 200, 50)).save(path)
        images.append((str(number), path))
    save_contact_sheet(tmp_path / "sheet.jpg", images)
    with Image.open(tmp_path / "sheet.jpg") as sheet:
        assert sheet.format == "JPEG" and sheet.size == (columns * STEP_X + GAP, rows * STEP_Y + GAP)
        for number in range(count):
            found = colour(sheet, number % columns, number // columns)
            assert np.abs(np.subtract(found, (number * 20, 200, 50))).max() < 10
        if count < columns * rows:
            assert np.abs(np.subtract(colour(sheet, columns - 1, rows - 1), GROUND)).max() < 10
    assert sorted(os.listdir(tmp_path)) == sorted([f"{number}.png" for number in range(count)] + ["sheet.jpg"])


def test_small_and_large_images_fill_their_tiles(tmp_path):
    images = []
    for name, size in (("small", (16, 16)), ("large", (1000, 500))):
        Image.new("RGB", size, "white").save(tmp_path / f"{name}.png")
        images.append((name, tmp_path / f"{name}.png"))
    save_contact_sheet(tmp_path / "sheet.jpg", images)
    with Image.open(tmp_path / "sheet.jpg") as sheet:
        values = np.asarray(sheet)[:, :, 0] > 128
    small, large = values[GAP : GAP + TILE, GAP : GAP + TILE], values[GAP : GAP + TILE, GAP + STEP_X :][:, :TILE]
    assert small.mean() > 0.97 and large[TILE // 4 + 3 : -TILE // 4 - 3].mean() > 0.97 and not large[: TILE // 5].any()


@pytest.mark.parametrize("name", ["a", "x" * 200, "\u732b" * 60, "W" * 200, "caf\u00e9 \u2014 \u2026"])
def test_names_stay_below_their_tile(tmp_path, name):
    Image.new("RGB", (64, 64), "white").save(tmp_path / "a.png")
    save_contact_sheet(tmp_path / "sheet.jpg", [(name, tmp_path / "a.png"), ("", tmp_path / "a.png")])
    with Image.open(tmp_path / "sheet.jpg") as sheet:
        values = np.asarray(sheet)[GAP + TILE : GAP + TILE + CAPTION, :, 0]
    assert (values > 100).any(), "the name"
    assert values[:, STEP_X + GAP :].max() < 60, "not over that of the next"


def test_an_image_that_cannot_be_read_leaves_its_tile_empty(tmp_path):
    (tmp_path / "a.png").write_bytes(b"no image")
    Image.new("RGB", (64, 64), "white").save(tmp_path / "b.png")
    save_contact_sheet(tmp_path / "sheet.jpg", [("a", tmp_path / "a.png"), ("b", tmp_path / "b.png")])
    with Image.open(tmp_path / "sheet.jpg") as sheet:
        assert max(colour(sheet, 0, 0)) < 60 and min(colour(sheet, 1, 0)) > 240
