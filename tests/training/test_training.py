"""The training itself, for seconds: every stage runs, what is stored is what is loaded, and a run resumes."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from deepgen_npu.checkpoint.folder import Checkpoint
from deepgen_npu.checkpoint.index_keys import LATENT_RGB_FACTORS_KEY
from training import latents, preview_colours
from training.cli import main
from training.encode import embed, image_tensor, texts_of_edits
from training.model import load, publish
from training.resume import Saved
from training.scenes import pixels


ROOT = Path(__file__).parents[2]


def stage(work: Path, *arguments: str) -> None:
    """A stage in this process, which has imported the libraries already."""
    main([*arguments, "--work", str(work)])


def log(work: Path, name: str) -> list[dict]:
    entries = [json.loads(line) for line in (work / "log.jsonl").read_text(encoding="utf-8").splitlines()]
    return [entry for entry in entries if entry["stage"] == name]


@pytest.fixture(scope="module")
def work(tmp_path_factory) -> Path:
    """A run of every stage, each as short as it gets."""
    work = tmp_path_factory.mktemp("training")
    stage(work, "create")
    stage(work, "vae", "--minutes", "0.02", "--pictures", "20")
    stage(work, "text", "--minutes", "0.02")
    stage(work, "latents", "--samples", "160", "--processes", "1")
    return work


def test_a_published_folder_has_the_published_layout(work, tmp_path):
    folder = publish(work / "checkpoint", tmp_path / "published")
    checkpoint = Checkpoint.open(folder)
    assert {tensor.dtype for tensor in checkpoint.tensors["connector"].values()} == {"F32"}
    for part in ("vlm", "transformer", "vae"):
        assert {tensor.dtype for tensor in checkpoint.tensors[part].values()} == {"BF16"}
    assert all(name.startswith(("visual.", "model.")) for name in checkpoint.tensors["vlm"])
    assert load(folder).sizes.trained_side == 64


def test_the_colours_of_previews_are_those_of_the_vae(work, tmp_path):
    """Also with a VAE that has learnt little: on scenes that were not fitted, nearer than the mean colour is."""
    folder = publish(work / "checkpoint", tmp_path / "published")
    *factors, bias = torch.tensor(Checkpoint.open(folder).index[LATENT_RGB_FACTORS_KEY])
    encoded, colours = preview_colours.latents_and_colours(load(folder), seed=1, count=50)
    shown = encoded @ torch.stack(factors) + bias
    assert (shown - colours).square().mean() < 0.5 * (colours - colours.mean(0)).square().mean()


def test_the_latents_of_the_vae_are_centred(work):
    chunks = latents.read(work, 0)
    targets = torch.cat([chunk.target.float().flatten() for task in chunks.values() for chunk in task])
    assert abs(float(targets.mean())) < 0.1 and 0.85 < float(targets.std()) < 1.15


def test_encoding_is_that_of_the_pipeline(work):
    """Rows of a batch in which every row has its own image, against the pipeline's call for one."""
    import random

    from PIL import Image

    from training.edits import random_edit
    from training.scenes import CORE

    pipe = load(work / "checkpoint")
    rng = random.Random(0)
    for kind in ("recolour", "combine"):
        edits = [random_edit(rng, kind, CORE) for _ in range(3)]
        texts = texts_of_edits(pipe, ["make it blue"] * 3, edits)
        with torch.no_grad():
            sequence, pooled = embed(pipe, texts, edits)
        for row, edit in enumerate(edits):
            images = [Image.fromarray(pixels(scene)) for scene in edit.sources]
            conditioning = pipe.encode("make it blue", images, "", 64, 64)
            torch.testing.assert_close(conditioning.prompt_embeds[0], sequence[row], atol=1e-4, rtol=1e-4)
            torch.testing.assert_close(conditioning.pooled_prompt_embeds[0], pooled[row], atol=1e-4, rtol=1e-4)
            for reference, scene in zip(conditioning.reference_latents, edit.sources, strict=True):
                own = pipe.encode_image(image_tensor([scene]))
                torch.testing.assert_close(reference, own, atol=1e-5, rtol=1e-5)


def test_a_run_resumes_where_it_was(work):
    def weights() -> dict[str, torch.Tensor]:
        return load_file(work / "checkpoint" / "transformer" / "diffusion_pytorch_model.safetensors")

    untrained = weights()
    stage(work, "dit", "--minutes", "0.03", "--processes", "1", "--pictures", "6")
    first = torch.load(work / "dit-0.pt", weights_only=True)
    after = weights()
    assert first["step"] >= 1
    assert any(not torch.equal(untrained[name], after[name]) for name in after)
    for name, tensor in first["average"].items():
        assert torch.equal(tensor.to(torch.bfloat16), after[name])

    # Nothing is left of the time, so nothing happens; with more of it the run goes on from its step.
    stage(work, "dit", "--minutes", "0.03", "--processes", "1", "--pictures", "6")
    assert torch.load(work / "dit-0.pt", weights_only=True)["step"] == first["step"]
    stage(work, "dit", "--minutes", str(first["seconds"] / 60 + 0.03), "--processes", "1", "--pictures", "6")
    again = torch.load(work / "dit-0.pt", weights_only=True)
    assert again["step"] > first["step"] and again["seconds"] > first["seconds"]
    assert [entry["step"] for entry in log(work, "dit") if entry.get("task") == "edit"] == [
        first["step"],
        first["step"],
        again["step"],
    ]


def test_processes_share_the_work(work, tmp_path):
    """The command itself, which starts a process for each share."""
    shutil.copytree(work / "checkpoint", tmp_path / "checkpoint")
    command = [
        sys.executable,
        "-m",
        "training",
        "latents",
        "--samples",
        "8",
        "--processes",
        "2",
        "--work",
        str(tmp_path),
    ]
    subprocess.run(command, cwd=ROOT, check=True, timeout=300)
    shares = [latents.read(tmp_path, process) for process in (0, 1)]
    counts = [sum(len(chunk.target) for task in share.values() for chunk in task) for share in shares]
    assert counts[0] == counts[1] > 0
    first, second = (next(iter(share.values()))[0].target for share in shares)
    assert not torch.equal(first, second), "each has scenes of its own"


@pytest.mark.parametrize("name", ["vae", "text", "decoder"])
def test_the_other_stages_resume_too(work, name):
    if name == "decoder":
        stage(work, name, "--minutes", "0.02", "--pictures", "20")
    before = torch.load(work / f"{name}.pt", weights_only=True)
    # A step may take seconds on a busy machine, so the time to go on is added to what was used.
    minutes = before["seconds"] / 60 + 0.02
    stage(work, name, "--minutes", str(minutes), "--pictures", "20")
    after = torch.load(work / f"{name}.pt", weights_only=True)
    assert after["step"] > before["step"] >= 1
    assert after["seconds"] >= 60 * minutes > before["seconds"]


def test_a_state_can_go_back_to_the_one_before(tmp_path):
    model = torch.nn.Linear(2, 2)
    saved = Saved(tmp_path / "state.pt", model=model)
    first = model.weight.detach().clone()
    saved.step = 1
    saved.save()
    model.weight.data += 1
    saved.step = 2
    saved.save()

    again = Saved(tmp_path / "state.pt", model=torch.nn.Linear(2, 2))
    assert again.step == 2
    again.go_back()
    assert again.step == 1 and torch.equal(again.parts["model"].weight, first)
