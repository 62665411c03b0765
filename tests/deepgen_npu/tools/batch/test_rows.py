"""Columns: their names, their values, and what is told of those that cannot be."""

from __future__ import annotations

import json

import pytest

from deepgen_npu.tools.batch.rows import ALIASES, COLUMNS, BadRow, Defaults, Row, read_rows


def read(tmp_path, row, **defaults):
    (tmp_path / "r.jsonl").write_text(json.dumps(row) + "\n")
    (found,) = read_rows(tmp_path / "r.jsonl", Defaults(**defaults))
    return found


def test_what_a_row_does_not_say_is_that_of_the_command(tmp_path):
    table = tmp_path / "r.jsonl"
    table.write_text('{"prompt": "a"}\n{"prompt": "b", "images": "x.png"}\n')
    defaults = Defaults("no", 5, 3, 64, 96, "stretch", False, 7, 1.5, 4)
    first, second = read_rows(table, defaults)
    usual = {"negative_prompt": "no", "n": 3, "height": 64, "width": 96, "num_inference_steps": 7, "mask": None}
    usual |= {"guidance_scale": 1.5, "guidance_every": 4, "keep_unchanged": False}
    assert first.settings() == {**usual, "prompt": "a", "images": (), "seed": 5, "follow_input": None}
    images = (str(tmp_path / "x.png"),)
    assert second.settings() == {**usual, "prompt": "b", "images": images, "seed": 6, "follow_input": "stretch"}
    assert second.number == 1 and second.id == "00000001" and second.seeds == [6, 7, 8]
    kept = read(tmp_path, {"prompt": "b", "images": "x.png"}, keep_unchanged=True)
    assert kept.keep_unchanged and not read(tmp_path, {"prompt": "a"}, keep_unchanged=True).keep_unchanged


def test_a_row_says_all_that_decides_about_its_images():
    """What is not among the columns would be no part of fingerprints."""
    assert set(COLUMNS) == set(Row.__dataclass_fields__) - {"number", "extra"}
    assert set(ALIASES.values()) < set(COLUMNS) and not set(ALIASES) & set(COLUMNS)


@pytest.mark.parametrize(
    ("given", "column", "value"),
    [
        ({"seed": "7"}, "seed", 7),
        ({"seed": 7.0}, "seed", 7),
        ({"seed": 2**64 - 1}, "seed", 2**64 - 1),
        ({"seed": None}, "seed", 42),
        ({"id": None}, "id", "00000000"),
        ({"id": 7}, "id", "7"),
        ({"num_images_per_prompt": "3"}, "n", 3),
        ({"cfg": "2.5"}, "guidance_scale", 2.5),
        ({"steps": " 5 "}, "num_inference_steps", 5),
        ({"guidance_every": "2"}, "guidance_every", 2),
        ({"image_url": "a.png", "keep_unchanged": "Yes"}, "keep_unchanged", True),
        ({"input_images": "a.png", "keep_unchanged": "0"}, "keep_unchanged", False),
        ({"image": "a.png", "follow_input": "true"}, "follow_input", "pad"),
        ({"image": "a.png", "follow_input": False}, "follow_input", None),
        ({"image": "a.png", "follow_input": "stretch"}, "follow_input", "stretch"),
        ({"images": []}, "images", ()),
        ({"images": "/x/a.png"}, "images", ("/x/a.png",)),
    ],
)
def test_values_in_other_forms(tmp_path, given, column, value):
    row = read(tmp_path, {"prompt": "a", **given})
    assert isinstance(row, Row), row
    assert getattr(row, column) == value and type(getattr(row, column)) is type(value)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"prompt": None}, "prompt must be a text, got nothing."),
        ({"prompt": 5}, "prompt must be a text, got 5."),
        ({"instruction": "b"}, "prompt is given twice, as instruction too: keep one of the columns."),
        ({"image": "a", "input_images": "b"}, "images is given twice, as input_images too"),
        ({"negative_prompt": ["x"]}, "negative_prompt must be a text, got ['x']."),
        ({"id": "a/b"}, "id must be a file name of at most 200 bytes"),
        ({"seed": -1}, "seed must be an integer from 0 to 2**64 - 1, got -1."),
        ({"seed": "x"}, "seed must be an integer from 0 to 2**64 - 1, got 'x'."),
        ({"seed": True}, "seed must be an integer from 0 to 2**64 - 1, got True."),
        ({"seed": 2**64 - 2, "n": 3}, f"seed + n must be at most {2**64}, got {2**64 + 1}."),
        ({"n": 0}, "n must be an integer from 1 to 1000, got 0."),
        ({"n": 1.5}, "n must be an integer from 1 to 1000, got 1.5."),
        ({"steps": 1001}, "num_inference_steps must be an integer from 1 to 1000, got 1001."),
        ({"cfg": float("nan")}, "guidance_scale must be a number from 0 to 100, got nan."),
        ({"guidance_every": "0"}, "guidance_every must be an integer from 1 to 1000, got 0."),
        ({"cfg": "much"}, "guidance_scale must be a number from 0 to 100, got 'much'."),
        ({"height": "tall"}, "height must be an integer from 1 to 65536, got 'tall'."),
        ({"images": 5}, "images must be a path or a list of paths, got 5."),
        ({"images": ["a", ""]}, "images must be the path of an image, got ''."),
        ({"images": "a\0b"}, r"images must be the path of an image, got 'a\x00b'."),
        ({"images": "[1"}, "images must be a path, or a list of paths as JSON, got '[1'."),
        ({"images": ["a"] * 17}, "images must have at most 16 paths, got 17."),
        ({"image": "https://x.example/a.png"}, "Nothing is fetched from the network: download it, and name the file."),
        ({"image": "data:image/png;base64,AA"}, "Nothing is fetched from the network"),
        ({"mask": "m.png"}, "mask needs an image to edit: name one in images."),
        ({"keep_unchanged": True}, "keep_unchanged needs an image to edit: name one in images."),
        ({"follow_input": "pad"}, "follow_input needs an image to edit: name one in images."),
        ({"image": "a", "keep_unchanged": "maybe"}, "keep_unchanged must be true or false, got 'maybe'."),
        ({"image": "a", "follow_input": "wide"}, "follow_input must be pad, stretch, true or false, got 'wide'."),
        ({"image": "a", "follow_input": "stretch", "mask": "m"}, "follow_input stretch cannot be combined with mask"),
    ],
)
def test_a_bad_row_says_why(tmp_path, given, words):
    row = read(tmp_path, {"prompt": "a", **given})
    assert isinstance(row, BadRow) and words in row.error and row.number == 0 and row.id == "00000000"
