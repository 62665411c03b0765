"""Whatever comes over a wire: a right image, or one clear error before any weights are asked for.

The nodes run in ComfyUI's own interpreter and are called as its executor calls them, without a server.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from core_checkpoints import write_loras
from drawn_inputs import Description, latent, plain, right_value, tensor, wrong_value
from golden import TINY
from hypothesis import given
from hypothesis import strategies as st
from property_settings import cases, drawn

from deepgen_npu.checkpoint.folder import Checkpoint


ROOT = Path(__file__).parents[2]
CHANNELS = Checkpoint.open(TINY).configs["vae"]["latent_channels"]
MADE = {"kind": "made"}
LORA = "kohya.safetensors"
NUMBERS = {
    "width": 64,
    "height": 64,
    "seed": 1,
    "steps": 1,
    "cfg": 4.0,
    "batch_size": 1,
    "denoise": 1.0,
    "strength": 1.0,
    "context": 2.0,
    "guidance_every": 2,
}
USUAL: dict[str, Description] = {
    "model": plain("tiny"),
    "dtype": plain("float32"),
    "capture_graph": plain(False),
    "text_encoder_device": plain("default"),
    "pipeline": MADE,
    "conditioning": MADE,
    "lora_name": plain(LORA),
    "strength": plain(1.0),
    "prompt": plain("a red circle"),
    "negative_prompt": plain(""),
    "size_mode": plain("width and height"),
    "image": tensor([1, 64, 64, 3]),
    "mask": tensor([1, 64, 64]),
    "region": MADE,
    "keep_unchanged": plain(False),
    "latent_image": latent(tensor([1, CHANNELS, 8, 8])),
    **{name: plain(value) for name, value in NUMBERS.items()},
}


def usual_value(node: str, declared: dict[str, Any]) -> Description | None:
    """What an input has where nothing else is said; ``model`` is a name or a MODEL."""
    if node == "DeepGenPutBack" and declared["name"] == "image":
        return tensor([1, 512, 512, 3])  # of the size of the crop
    if declared["type"] == "MASK" and declared["optional"]:
        return None
    return MADE if declared["type"] == "MODEL" else USUAL.get(declared["name"])


class Worker:
    """Args: python, checkout: of a ComfyUI. models: a folder with ``deepgen/tiny``."""

    def __init__(self, python: Path, checkout: Path, models: Path):
        command = [python, Path(__file__).with_name("input_worker.py"), ROOT, models]
        self._log = (models / "worker.log").open("w+")
        environment = {**os.environ, "COMFYUI_PATH": str(checkout), "PYTHONDONTWRITEBYTECODE": "1"}
        self._process = subprocess.Popen(
            [str(part) for part in command],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
            env=environment,
        )
        self.models = models
        self.nodes: dict[str, list[dict[str, Any]]] = self.ask(describe=True)
        self.sentinel = self.image()

    def ask(self, **request: Any) -> Any:
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        if not line:
            self._log.seek(0)
            raise RuntimeError(f"the worker is gone\n{self._log.read()[-4000:]}")
        return json.loads(line)

    def run(self, node: str, **changes: Description) -> dict[str, Any]:
        usual = {one["name"]: usual_value(node, one) for one in self.nodes[node]}
        inputs = {name: value for name, value in usual.items() if value is not None}
        return self.ask(node=node, inputs={**inputs, **changes})

    def image(self) -> Any:
        found = self.run("DeepGenTextToImage", steps=plain(2))
        assert "error" not in found, found
        return found["result"]

    def close(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(30)
        self._log.close()


@pytest.fixture(scope="module")
def worker(checkout, tmp_path_factory) -> Iterator[Worker]:
    models = tmp_path_factory.mktemp("models")
    shutil.copytree(TINY, models / "deepgen" / "tiny")
    write_loras(models)
    worker = Worker(checkout.python, checkout.path, models)
    yield worker
    assert worker.image() == worker.sentinel, "a run after all the others is the same"
    worker.close()


def wrong_changes(data: st.DataObject, worker: Worker, count: int) -> tuple[str, dict[str, Description]]:
    """A node, and ``count`` inputs of it with what they must refuse."""
    node = data.draw(st.sampled_from(sorted(worker.nodes)))
    declared = st.sampled_from(worker.nodes[node])
    inputs = data.draw(st.lists(declared, min_size=count, max_size=count, unique_by=lambda one: one["name"]))
    return node, {one["name"]: data.draw(wrong_value(one, CHANNELS)) for one in inputs}


def assert_refused(found: dict[str, Any], names: Any) -> None:
    """One clear error which begins with the name of an input, before anything was done."""
    assert "error" in found, found
    assert found["type"] in ("ValueError", "TypeError"), found
    assert found["error"].startswith(tuple(f"{name}{end}" for name in names for end in " :")), found
    assert re.search(r" must .*, got |: (use|connect) ", found["error"], re.DOTALL), found
    assert found["asked"] == 0, "no weights were asked for"
    assert found["seconds"] < 20


@given(data=st.data())
@cases(150)
def test_a_wrong_value_is_refused(worker, data):
    node, changes = wrong_changes(data, worker, 1)
    assert_refused(worker.run(node, **changes), changes)
    drawn[f"node inputs: {node}, one wrong"] += 1


@given(data=st.data())
@cases(30)
def test_two_wrong_values_are_refused(worker, data):
    node, changes = wrong_changes(data, worker, 2)
    assert_refused(worker.run(node, **changes), changes)
    drawn["node inputs: two wrong"] += 1


@given(data=st.data())
@cases(25)
def test_an_odd_value_that_is_right_is_taken(worker, data):
    node = data.draw(st.sampled_from(sorted(worker.nodes)))
    # An edit of a crop has the size of the crop.
    choice = [one for one in worker.nodes[node] if (node, one["name"]) != ("DeepGenPutBack", "image")]
    one = data.draw(st.sampled_from(choice))
    changes = {one["name"]: data.draw(right_value(one, usual_value(node, one) or plain(None), CHANNELS))}
    found = worker.run(node, **changes)
    assert "result" in found, found
    first = found["result"][0]
    if node in ("DeepGenTextToImage", "DeepGenEdit", "DeepGenPutBack"):
        assert first["shape"] == [1, 64, 64, 3]
        assert first["finite"] and 0 <= first["low"] <= first["high"] <= 1
    elif node == "DeepGenSample":
        assert first["shape"][1:] == [CHANNELS, 8, 8] and first["finite"]
    drawn["node inputs: odd and right"] += 1


@given(data=st.data())
@cases(60)
def test_what_is_typed_in_is_refused_before_the_queue(worker, data):
    """Without an exception, which ComfyUI would show as one."""
    nodes = {"DeepGenLoader": ("model", "dtype"), "DeepGenEdit": ("size_mode", "width", "height")}
    nodes |= {"DeepGenLoRA": ("lora_name", "strength")}
    node = data.draw(st.sampled_from(sorted(nodes)))
    one = data.draw(st.sampled_from([one for one in worker.nodes[node] if one["name"] in nodes[node]]))
    value = data.draw(wrong_value(one, CHANNELS).filter(lambda value: value != plain(None)))
    found = worker.ask(node=node, function="validate_inputs", inputs={one["name"]: value})
    assert isinstance(found.get("result"), str) and found["result"].startswith(f"{one['name']} must "), found
    drawn["node inputs: typed in"] += 1


@pytest.mark.parametrize("model", [plain("tiny"), plain(None)], ids=["typed in", "over a wire"])
def test_a_model_has_a_fingerprint(worker, model):
    """None stands for a name over a wire; an exception would be logged, and the loader run each time."""
    inputs = {"model": model, "dtype": plain("float32"), "capture_graph": plain(False)}

    def fingerprint() -> str:
        return worker.ask(node="DeepGenLoader", function="fingerprint_inputs", inputs=inputs)["result"]

    folder = worker.models / "deepgen" / "tiny"
    first = fingerprint()
    assert fingerprint() == first and len(first) == 64
    for name, target in (("nowhere", "nothing"), ("itself", "itself")):
        (folder / name).symlink_to(target)
    assert fingerprint() == first
    (folder / "more").write_text("changed")
    assert fingerprint() != first
    for name in ("nowhere", "itself", "more"):
        (folder / name).unlink()


def test_what_is_not_declared_or_not_there(worker):
    # A missing image with a further one is an error of DeepGenEncode alone: there it is optional.
    assert_refused(worker.run("DeepGenEncode", image=plain(None), image_2=tensor([1, 64, 64, 3])), ["image_2"])
    assert_refused(worker.run("DeepGenEdit", image_9=tensor([1, 64, 64, 3])), ["image_9"])
    found = worker.ask(node="DeepGenEdit", inputs={"pipeline": MADE})
    assert_refused(found, ["image"])


def test_the_noise_of_an_index_is_that_of_the_batch(worker):
    """To the bit: what is not needed is drawn and thrown away, one image at a time."""
    batch = latent(tensor([3, CHANNELS, 8, 8], fill=0.0))
    chosen = latent(tensor([1, CHANNELS, 8, 8], fill=0.0), batch_index=plain([2]))
    (three,), (one,) = (worker.run("DeepGenSample", latent_image=given)["result"] for given in (batch, chosen))
    assert three["rows"][2] == pytest.approx(one["rows"][0], abs=1e-3)
