"""What `dev.edit_tables` measures, where the answer is known."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from deepgen_npu.edits.change import Change, compare
from deepgen_npu.edits.registration import Motion
from dev import edit_tables
from dev.edit_composites import changed_levels, seam, zoomed
from dev.edit_tables import SMALL, scores
from dev.synthetic_edits import cut, distance, edited_under, moved, pairs, photograph, rectangle, redrawn, tensor


def test_distances_are_those_of_pixels():
    size = (101, 201)
    assert distance(Motion((1.0, 2.0)), Motion((4.0, -2.0)), size) == pytest.approx(5)
    # Half of the height at the edges: a quarter of it on average.
    assert distance(Motion(scale=(0.04, 0.0)), Motion(), size) == pytest.approx(1, rel=0.15)


def test_an_enlarged_photograph_shows_the_same():
    photo = photograph("coffee.png")
    large, small = zoomed(photo, (96, 128), 2.0), cut(photo, (96, 128))
    assert large.shape == (192, 256, 3)
    between = large.reshape(96, 2, 128, 2, 3).mean((1, 3))
    error, a_pixel_off = (np.abs(one - small)[4:-4, 4:-4].mean() for one in (between, np.roll(between, 1, 1)))
    assert 4 * error < a_pixel_off


def test_a_step_along_the_edge_is_seen():
    alpha, right = torch.zeros(96, 96), np.full((96, 96, 3), 0.5)
    alpha[:, 48:] = 1
    even = torch.full((3, 96, 96), 0.5)
    assert seam(even, right, alpha) == 0
    step = seam(even + 0.1 * alpha, right, alpha)
    assert step == pytest.approx(25.5 / 24, rel=0.05)  # levels over the 24 pixels of the band
    assert seam(even + 0.1, right, alpha) < 1e-4


def test_levels_are_counted_as_they_are_saved():
    before = torch.arange(256).reshape(1, 16, 16).expand(3, -1, -1) / 255
    where = torch.ones(16, 16, dtype=torch.bool)
    where[0] = False
    assert changed_levels(before.clone(), before, where) == (240, 0)
    assert changed_levels(before + 1 / 255, before, where) == (240, 239)  # white stays white
    one = before.clone()
    one[1, 5, 5] += 2 / 255
    assert changed_levels(one, before, where) == (240, 1)


def test_recall_and_precision_of_a_known_mask():
    image = np.full((80, 80, 3), 0.5)
    mask, marked = np.zeros((80, 80), bool), torch.zeros(80, 80)
    mask[20:40, 20:40] = True
    right = np.where(mask[..., None], 0.9, image)
    marked[20:40, 20:30] = 1
    assert scores(Change(marked, 0, 0.1, 1), mask, image, right) == (0.5, 1, 0, False)
    marked[60:80, 60:80] = 1  # far from it
    recall, precision, wrong, called = scores(Change(marked, 9, 0.1, 1), mask, image, right)
    assert recall == 0.5 and precision == pytest.approx(200 / 600) and called
    assert 400 / 6400 < wrong < 400 / 5000


def test_synthetic_edits_differ_from_the_photograph_only_where_they_should():
    rng = np.random.default_rng(0)
    photo, other = next(pairs(1))
    image = cut(photo, (128, 160))
    mask = np.zeros((128, 160), bool)
    mask[40:80, 40:80] = True
    part = moved(image, mask, 8, -6)
    assert np.array_equal(part[48:88, 34:74], image[40:80, 40:80])
    assert np.array_equal(part[:40], image[:40]) and np.array_equal(part[:, 80:], image[:, 80:])
    drawn = redrawn(image, rng)
    assert 0.002 < np.abs(drawn - image).mean() < 0.06
    assert other.shape == photo.shape and not np.array_equal(other, photo)


def test_synthetic_edits_are_what_they_say():
    size = (256, 320)
    photo = photograph("astronaut.png")
    there = rectangle(size, 0.1, np.random.default_rng(1))
    edit = edited_under(there, cut(photo, size, SMALL), "painted", photo[:256, :320])
    found = compare(tensor(cut(photo, size)), tensor(edit))
    assert found.registration.certain and distance(found.registration.motion, SMALL, size) < 0.05
    assert 0.1 < found.change.mask.mean() < 0.14


def test_the_tables_name_what_they_show(capsys, monkeypatch):
    monkeypatch.setattr(edit_tables, "SHIFTS", ((0.3, -0.7),))
    monkeypatch.setattr(edit_tables, "SCALED", (SMALL,))
    assert edit_tables.main(["--only", "registration", "--photographs", "1"]) == 0
    lines = capsys.readouterr().out.splitlines()
    rows = [line.strip("|").split("|") for line in lines if line.startswith("| ")]
    kinds = [row[0].strip() for row in rows]
    assert kinds[1:7] == ["third", "hard", "scaled", "moved", "60 %", "night"]
    assert [cell.strip() for cell in rows[1][1:3]] == ["1", "1"] and float(rows[1][4]) < 0.05
    assert rows[-1][0].strip() == "different photographs" and rows[-1][1].strip() == "0"
