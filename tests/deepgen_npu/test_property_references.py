"""Property-based: `verify --compare` of a folder that holds anything; no model is loaded for what cannot be meant."""

from __future__ import annotations

import json
import os
import shutil

import pytest
import torch
from golden import TINY
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from platforms import not_on_windows
from property_settings import cases, drawn
from safetensors.torch import save_file

from deepgen_npu import cli
from deepgen_npu.checkpoint.folder import Checkpoint
from deepgen_npu.tools import specs
from deepgen_npu.tools.baseline import Baseline
from deepgen_npu.tools.fingerprint import fingerprint
from deepgen_npu.tools.runs import RunSettings


class Accepted(BaseException):
    """The model would be loaded now."""


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A reference that the tiny model could have made."""
    settings = RunSettings("a cat", 64, 96, 7, 2, 4.0)
    named = fingerprint(Checkpoint.open(TINY))
    latents, image = torch.zeros(1, 16, 8, 12), Image.new("RGB", (96, 64))
    folder = tmp_path_factory.mktemp("references") / "whole"
    Baseline(latents, image, settings, "tiny", named, "float32", {"device": "cpu"}).save(folder)
    return folder


@pytest.fixture
def compare(tmp_path, whole, monkeypatch, capsys):
    """Compares with a copy that was changed; the error's line, or None where the model would have been loaded."""

    def accepted(*arguments):
        raise Accepted

    monkeypatch.setattr(specs.ModelSpec, "load", accepted)

    def compare(change) -> str | None:
        folder = tmp_path / "reference"
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(whole, folder)
        change(folder)
        capsys.readouterr()
        try:
            status = cli.main(["verify", "--model_path", str(TINY), "--device", "cpu", "--compare", str(folder)])
        except Accepted:
            return None
        lines = capsys.readouterr().err.splitlines()
        assert status == 2 and len(lines) == 1 and lines[0].startswith("error: ") and len(lines[0]) < 900, lines
        assert str(folder) in lines[0] or "made with another model" in lines[0] or "(nearest: " in lines[0], lines
        return lines[0]

    return compare


def test_the_whole_one_is_accepted(compare):
    assert compare(lambda folder: None) is None


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=9) | st.just(10**400),
    lambda children: st.lists(children, max_size=3) | st.dictionaries(st.text(max_size=5), children, max_size=3),
    max_leaves=6,
)


def change_facts(data):
    """One key of ``reference.json`` or of its settings or machine: removed, added or of another value."""

    def change(folder) -> None:
        path = folder / "reference.json"
        facts = json.loads(path.read_text(encoding="utf-8"))
        place = data.draw(st.sampled_from([facts, facts["settings"], facts["settings"], facts["machine"]]))
        key = data.draw(st.sampled_from([*place, "another"]))
        if data.draw(st.integers(0, 4)) == 0:
            place.pop(key, None)
        else:
            place[key] = data.draw(values)
        text = json.dumps(facts)
        if data.draw(st.integers(0, 9)) == 0:
            text = text[: data.draw(st.integers(0, len(text)))]
        path.write_text(text, encoding="utf-8")

    return change


def change_latents(data):
    """Another shape, dtype, name or value, or bytes of the file."""

    def change(folder) -> None:
        path = folder / "latents.safetensors"
        if data.draw(st.booleans()):
            content = bytearray(path.read_bytes())
            for _ in range(data.draw(st.integers(1, 3))):
                content[data.draw(st.integers(0, 120))] = data.draw(st.integers(0, 255))
            path.write_bytes(content[: data.draw(st.integers(0, 2 * len(content)))])
            return
        shape = data.draw(st.just([1, 16, 8, 12]) | st.lists(st.integers(0, 16), max_size=5))
        dtype = data.draw(st.sampled_from([torch.float32, torch.bfloat16, torch.int64, torch.bool, torch.float64]))
        value = data.draw(st.sampled_from([0.0, float("nan"), float("inf")]))
        value = value if dtype.is_floating_point else 0
        name = data.draw(st.sampled_from(["latents", "latents", "other"]))
        save_file({name: torch.full(shape, value, dtype=dtype)}, path)

    return change


def change_kind(data):
    """One of the three files is none, or is cut off."""

    def change(folder) -> None:
        path = folder / data.draw(st.sampled_from(sorted(os.listdir(folder))))
        kind = data.draw(st.sampled_from(["missing", "pipe", "folder", "device", "loop", "cut", "large"]))
        content = path.read_bytes()
        path.unlink()
        if kind == "pipe":
            os.mkfifo(path)
        elif kind == "folder":
            path.mkdir()
        elif kind in ("device", "loop"):
            path.symlink_to("/dev/zero" if kind == "device" else path)
        elif kind == "cut":  # before the last bytes, without which an image still opens
            path.write_bytes(content[: data.draw(st.integers(0, len(content) - 30))])
        elif kind == "large":
            path.write_bytes(b"")
            os.truncate(path, 1 << 40)

    return change


@not_on_windows("it has no named pipes and devices among the files")
@cases(50)
@given(kind=st.sampled_from([change_facts, change_facts, change_latents, change_kind]), data=st.data())
def test_damaged_references(compare, kind, data):
    drawn[f"references: {kind.__name__.replace('_', ' ')}"] += 1
    change = kind(data)
    error = compare(change)
    assert error is not None or kind is not change_kind
