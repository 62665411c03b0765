"""References: a run that is written down, and `verify --compare`, which repeats it."""

from __future__ import annotations

import json
import os
import re
import shutil
from pathlib import Path

import pytest
import torch
from golden import TINY
from PIL import Image
from platforms import linux_only
from safetensors.torch import save_file
from tables import rows
from tensors import load_file

from deepgen_npu import cli
from deepgen_npu.checkpoint.folder import Checkpoint
from deepgen_npu.tools import runs
from deepgen_npu.tools.baseline import Baseline, rehearse
from deepgen_npu.tools.fingerprint import fingerprint
from deepgen_npu.tools.runs import RunSettings


PLACE = ["--model_path", str(TINY), "--device", "cpu", "--dtype", "float32"]
RUN = ["--height", "64", "--width", "64", "--num_inference_steps", "2"]
SMALL = [*PLACE, *RUN]


@pytest.fixture
def reference(tmp_path, capsys) -> Path:
    folder = tmp_path / "new" / "reference"
    assert cli.main(["verify", *SMALL, "--seed", "7", "--prompt", "caf\u00e9", "--save", str(folder)]) == 0
    assert f"Run saved at: {folder}" in capsys.readouterr().out
    return folder


def test_a_reference_has_all_that_another_machine_needs(reference, pipe):
    assert sorted(path.name for path in reference.parent.rglob("*")) == [
        "latents.safetensors",
        "picture.png",
        "reference",
        "reference.json",
    ]
    facts = json.loads((reference / "reference.json").read_text(encoding="utf-8"))
    assert facts["settings"] == {
        "prompt": "caf\u00e9",
        "height": 64,
        "width": 64,
        "seed": 7,
        "num_inference_steps": 2,
        "guidance_scale": 4.0,
        "references": 0,
    }
    assert facts["machine"]["torch"] == torch.__version__ and facts["machine"]["device"].startswith("cpu (")
    assert facts["dtype"] == "float32" and facts["model"] == "tiny"
    call = {"height": 64, "width": 64, "num_inference_steps": 2, "seed": 7}
    latents = load_file(reference / "latents.safetensors")["latents"]
    assert torch.equal(latents, pipe("caf\u00e9", **call, output_type="latent").images)
    with Image.open(reference / "picture.png") as image:
        assert image.tobytes() == pipe("caf\u00e9", **call).images[0].tobytes()


@pytest.mark.slow
def test_comparing_with_a_reference_uses_its_settings(reference, capsys):
    """Also its dtype; only the model is named."""
    command = ["verify", "--model_path", str(TINY), "--device", "cpu", "--compare", str(reference)]
    assert cli.main([*command, "--max_difference", "0"]) == 0
    text = capsys.readouterr().out
    assert {name: cells[3] for name, cells in rows(text).items()} == {"image": "yes", "latents": "yes"}
    assert "seed 7" in text and "), float32\n" in text
    assert re.search(rf"^- Baseline: cpu \(.+\), float32; .*torch {re.escape(torch.__version__)}", text, re.MULTILINE)

    # Another machine's numbers: one latent and one pixel.
    latents = load_file(reference / "latents.safetensors")["latents"]
    latents[0, 3, 2, 1] -= 2
    save_file({"latents": latents}, reference / "latents.safetensors")
    with Image.open(reference / "picture.png") as image:
        image.load()
    red, green, blue = image.getpixel((1, 2))
    image.putpixel((1, 2), (red ^ 64, green, blue))
    image.save(reference / "picture.png")
    assert cli.main(command) == 0
    found = rows(capsys.readouterr().out)
    assert found["latents"][1] == "2" and found["latents"][3] == "no"
    assert found["image"][:2] == [f"{64**2 / (64 * 64 * 3):.6g}", "64"]
    assert cli.main([*command, "--max_difference", "63"]) == 1
    assert "pixels differ by 64, more than 63" in capsys.readouterr().out


def test_another_dtype_can_be_asked_for(reference, capsys):
    assert cli.main(["verify", *PLACE[:4], "--dtype", "bfloat16", "--compare", str(reference)]) == 0
    text = capsys.readouterr().out
    assert "), bfloat16\n" in text and rows(text)["latents"][3] == "no"


def test_another_model_is_refused(reference, tiny, capsys, monkeypatch):
    """One value of one tensor is enough."""
    path = tiny / "vae" / "diffusion_pytorch_model.safetensors"
    tensors = load_file(path)
    tensors["decoder.conv_in.bias"][0] += 1
    save_file(tensors, path)
    monkeypatch.setattr(runs, "run", None)  # nothing slow happens
    command = ["verify", "--model_path", str(tiny), "--device", "cpu", "--compare", str(reference)]
    assert cli.main(command) == 2
    assert re.search(
        r"was made with another model: tiny, fingerprint \w{12}; tiny has \w{12}", capsys.readouterr().err
    )


def test_the_fingerprint_is_the_contents(tiny, tmp_path):
    def of(folder: Path) -> str:
        return fingerprint(Checkpoint.open(folder))

    expected = of(TINY)
    assert of(tiny) == expected and len(expected) == 64
    # Other files, the same tensors: one shard instead of two.
    shards = {}
    for path in sorted((tiny / "vlm").glob("*.safetensors")):
        shards |= load_file(path)
        path.unlink()
    (tiny / "vlm" / "model.safetensors.index.json").unlink(missing_ok=True)
    save_file(shards, tiny / "vlm" / "model.safetensors")
    assert of(tiny) == expected
    for name in ("transformer/config.json", "prompt_template.json", "scheduler/scheduler_config.json"):
        other = Path(shutil.copytree(TINY, tmp_path / name.replace("/", "-")))
        content = json.loads((other / name).read_text(encoding="utf-8"))
        (other / name).write_text(json.dumps({**content, "further": 1}), encoding="utf-8")
        assert of(other) != expected, name
    assert fingerprint(Checkpoint.open(TINY), "tiny 0") != fingerprint(Checkpoint.open(TINY), "tiny 1")


def test_guidance_every_is_a_setting_of_a_reference(tmp_path, capsys):
    """It is in the file where it is not 1 (above: it is not there where it is 1), and is run again."""
    folder = tmp_path / "reference"
    assert cli.main(["verify", *SMALL, "--guidance_every", "2", "--save", str(folder)]) == 0
    assert "guidance 4 in one of 2 steps, seed 42" in capsys.readouterr().out
    facts = folder / "reference.json"
    stored = json.loads(facts.read_text(encoding="utf-8"))
    assert stored["settings"]["guidance_every"] == 2
    latents = []
    for every in (2, 1):
        stored["settings"]["guidance_every"] = every
        facts.write_text(json.dumps(stored), encoding="utf-8")
        assert cli.main(["verify", *PLACE, "--compare", str(folder)]) == 0
        latents.append(rows(capsys.readouterr().out)["latents"][3])
    assert latents == ["yes", "no"]


def test_random_weights_have_references_too(tmp_path, capsys):
    """So machines are compared without a download."""
    place = ["--random-weights", "tiny", "--device", "cpu"]
    folder = tmp_path / "reference"
    assert cli.main(["verify", *place, "--dtype", "float32", *RUN, "--save", str(folder)]) == 0
    assert cli.main(["verify", *place, "--compare", str(folder)]) == 0
    assert rows(capsys.readouterr().out)["latents"][3] == "yes"


def test_a_reference_is_whole_or_not_there(tmp_path, pipe, monkeypatch):
    settings = RunSettings("x", 64, 64, 1, 2, 4.0)
    latents, image = torch.zeros(1, 16, 8, 8), Image.new("RGB", (64, 64))
    reference = Baseline(latents, image, settings, "m", "f" * 64, "float32", {"device": "cpu"})
    folder = tmp_path / "reference"
    folder.mkdir()

    def full_disk(path, content):
        path.write_text("half")
        raise OSError("no space left")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_bytes", full_disk)
        with pytest.raises(OSError, match="no space"):
            reference.save(folder)
    assert list(tmp_path.rglob("*")) == [folder]
    reference.save(folder)
    assert Baseline.load(folder).settings == settings


def test_a_reference_that_cannot_be_written_is_elsewhere(tmp_path, monkeypatch, capsys):
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    monkeypatch.setattr("deepgen_npu.files.tempfile.gettempdir", lambda: str(temporary))
    true_save = Baseline.save

    def save(self, folder):
        if folder.parent != temporary:
            raise OSError(28, "No space left on device")
        true_save(self, folder)

    monkeypatch.setattr(Baseline, "save", save)
    assert cli.main(["verify", *SMALL, "--save", str(tmp_path / "reference")]) == 2
    (place,) = temporary.iterdir()
    error = capsys.readouterr().err.splitlines()[-1]
    assert error == (
        f"error: {tmp_path / 'reference'} cannot be written (No space left on device); the run is at {place}"
    )
    assert Baseline.load(place).settings.height == 64 and list(tmp_path.iterdir()) == [temporary]


@linux_only("other systems have no names that are not UTF-8")
def test_a_reference_fills_an_empty_folder_also_by_a_link(tmp_path):
    reference = Baseline(
        *(torch.zeros(1, 16, 8, 8), Image.new("RGB", (64, 64)), RunSettings("x", 64, 64, 1, 2, 4.0)),
        *(os.fsdecode(b"\xc4\xe3"), "f" * 64, "float32", {}),
    )
    (tmp_path / "empty").mkdir(mode=0o700)
    (tmp_path / "link").symlink_to(tmp_path / "empty")
    rehearse(tmp_path / "link")
    assert (tmp_path / "empty").stat().st_mode & 0o777 == 0o700
    for folder in (tmp_path / "link", tmp_path / os.fsdecode(b"\xc4\xe3")):
        before = sorted(tmp_path.iterdir())
        rehearse(folder, reference.settings)
        assert sorted(tmp_path.iterdir()) == before
        reference.save(folder)
        assert Baseline.load(folder).model == reference.model
        with pytest.raises(ValueError, match="already exists"):
            rehearse(folder)


def test_damaged_references(reference):
    facts = json.loads((reference / "reference.json").read_text(encoding="utf-8"))
    for changed, words in (
        ({"format": 2}, "format must be 1, got 2"),
        ({"settings": {}}, "settings must have the keys prompt, height, .*got 0 keys"),
        ({"settings": {**facts["settings"], "sampler": 1}}, r"got 8 keys\. Missing or unknown: \['sampler'\]"),
    ):
        (reference / "reference.json").write_text(json.dumps({**facts, **changed}), encoding="utf-8")
        with pytest.raises(ValueError, match=words):
            Baseline.load(reference)
    (reference / "reference.json").write_text("{", encoding="utf-8")
    with pytest.raises(ValueError, match=r"reference\.json is not valid JSON"):
        Baseline.load(reference)
    (reference / "latents.safetensors").unlink()
    with pytest.raises(ValueError, match=r"latents\.safetensors is missing"):
        Baseline.load(reference)
