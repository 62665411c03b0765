"""The same digits, the same images: what is part of a fingerprint, and what is not."""

from __future__ import annotations

import os
from dataclasses import replace

import pytest

from deepgen_npu.tools.batch import fingerprints
from deepgen_npu.tools.batch.fingerprints import References, differences, fingerprint
from deepgen_npu.tools.batch.rows import COLUMNS, Row


RUN = {"model": "m", "dtype": "auto", "vae_tiling": False}
ROW = Row(0, "a", "p", "", ("x", "y"), "m", False, 1, 1, None, None, None, 50, 4.0)
NOT_IN_SETTINGS = ("prompt", "negative_prompt", "images", "mask")
BEFORE_GUIDANCE_EVERY = "f6f4ca2246f68f55123976219f97efdb8fda6302251e0ce6f159c5cbda81bc23"
STATES = {"x": (1, 2, "X"), "y": (1, 2, "Y"), "m": (1, 2, "M")}
OTHER = {
    "prompt": "q",
    "negative_prompt": "n",
    "images": ("y", "x"),
    "mask": None,
    "keep_unchanged": True,
    "seed": 2,
    "n": 2,
    "height": 64,
    "width": 64,
    "follow_input": "pad",
    "num_inference_steps": 49,
    "guidance_scale": 4.5,
    "guidance_every": 2,
}


def test_everything_that_decides_counts(monkeypatch):
    assert set(OTHER) == set(COLUMNS) - {"id"}
    own = fingerprint(ROW, RUN, STATES)
    others = [fingerprint(replace(ROW, **{name: value}), RUN, STATES) for name, value in OTHER.items()]
    others += [fingerprint(ROW, {**RUN, name: "other"}, STATES) for name in RUN]
    others += [fingerprint(ROW, RUN, {**STATES, name: (1, 2, "changed")}) for name in STATES]
    monkeypatch.setattr(fingerprints, "DRAWING", 0)
    others.append(fingerprint(ROW, RUN, STATES))
    assert own not in others and len(set(others)) == len(others) and len(own) == 64


def test_names_and_bookkeeping_do_not():
    moved = {"/z/x": (9, 9, "X"), "/z/y": (9, 9, "Y"), "n": (9, 9, "M")}
    same = replace(ROW, number=7, id="b", images=("/z/x", "/z/y"), mask="n", extra={"label": 1})
    assert fingerprint(same, RUN, moved) == fingerprint(ROW, RUN, STATES)


def test_a_setting_that_was_added_leaves_folders_as_they_are(monkeypatch):
    """With its usual value, a row has the fingerprint that it had before there was ``guidance_every``."""
    monkeypatch.setattr(fingerprints, "DRAWING", 1)  # of that time
    assert fingerprint(ROW, RUN, STATES) == BEFORE_GUIDANCE_EVERY
    assert "guidance_every" not in ROW.settings()


def test_what_differs_is_named():
    settings = ROW.settings()
    stored = {
        "prompt": settings["prompt"],
        "negative_prompt": "",
        "batch": {"settings": {**{name: settings[name] for name in settings if name not in NOT_IN_SETTINGS}, **RUN}},
    }
    found = differences(replace(ROW, prompt="q", seed=2), {**RUN, "dtype": "x"}, stored)
    assert list(found) == ["prompt", "seed", "dtype"] and found["seed"] == f"{ROW.seed} instead of 2"
    assert differences(ROW, RUN, stored) == {"images": "other content"}
    assert differences(replace(ROW, images=(), mask=None), RUN, stored) == {"program": "an earlier version"}
    every = replace(ROW, guidance_every=2)
    assert differences(every, RUN, stored) == {"guidance_every": "1 instead of 2"}
    stored["batch"]["settings"]["guidance_every"] = 2
    assert differences(ROW, RUN, stored) == {"guidance_every": "2 instead of 1"}
    assert differences(ROW, RUN, {"prompt": "p"}) == {"origin": "another than batch"}


def test_a_file_is_read_again_only_when_it_has_changed(tmp_path, monkeypatch):
    reads = []
    true_hash = fingerprints._hash_file
    monkeypatch.setattr(fingerprints, "_hash_file", lambda path: reads.append(path.name) or true_hash(path))
    image, mask = tmp_path / "x", tmp_path / "m"
    image.write_bytes(b"1")
    mask.write_bytes(b"2")
    row = replace(ROW, images=(str(image),), mask=str(mask))
    first = References().of(row)
    assert set(first) == {str(image), str(mask)} and reads == ["x", "m"]
    references = References()
    assert references.of(row, {name: list(state) for name, state in first.items()}) == first and len(reads) == 2
    assert references.of(row) == first and len(reads) == 2
    image.write_bytes(b"3")
    os.utime(image, ns=(1, 1))
    changed = references.of(row, first)
    assert reads == ["x", "m", "x"] and changed[str(image)][2] != first[str(image)][2]
    mask.write_bytes(b"22")
    os.utime(mask, ns=(first[str(mask)][1],) * 2)
    assert references.of(row)[str(mask)][0] == 2 and reads[-1] == "m"
    image.unlink()
    with pytest.raises(FileNotFoundError):
        references.of(row)


def test_what_is_remembered_has_an_end(tmp_path, monkeypatch):
    monkeypatch.setattr(fingerprints, "_REMEMBERED", 3)
    references = References()
    for number in range(5):
        (tmp_path / str(number)).write_bytes(b"x")
        references.of(replace(ROW, images=(str(tmp_path / str(number)),), mask=None))
    assert [os.path.basename(name) for name in references._recent] == ["2", "3", "4"]
