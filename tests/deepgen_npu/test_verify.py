"""``python -m deepgen_npu verify``: the measures against computations of our own, and each mode of the command."""

from __future__ import annotations

import json
import math
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from golden import TINY
from PIL import Image
from safetensors.torch import load_file, save_file

from deepgen_npu import DeepGenPipeline, cli, runs, verify
from deepgen_npu.checkpoint import Checkpoint
from deepgen_npu.reference import Reference, fingerprint
from deepgen_npu.runs import RunSettings
from deepgen_npu.verify import Difference, compare_latents, compare_pictures


ROOT = Path(__file__).parents[2]
PLACE = ["--model_path", str(TINY), "--device", "cpu", "--dtype", "float32"]
RUN = ["--height", "64", "--width", "64", "--num_inference_steps", "2"]
SMALL = [*PLACE, *RUN]


def noise(seed: int, height: int = 24, width: int = 16) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def rows(markdown: str) -> dict[str, list[str]]:
    """The cells of each row of the last table, by their first."""
    lines = [line for line in markdown.splitlines() if line.startswith("| ")]
    split = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    header = max(index for index, cells in enumerate(split) if cells[0] == "Comparison")
    assert split[header][1:] == ["MSE", "Largest difference", "Mean difference", "Identical", "PSNR", "SSIM"]
    return {cells[0]: cells[1:] for cells in split[header + 1 :]}


def ssim(first: np.ndarray, second: np.ndarray) -> float:
    """Wang et al. 2004 with windows of 7 x 7 and unbiased variances: the mean over windows and channels."""
    one, two = (
        np.lib.stride_tricks.sliding_window_view(picture.astype(np.float64), (7, 7), axis=(0, 1)).reshape(-1, 49)
        for picture in (first, second)
    )
    means = one.mean(axis=1), two.mean(axis=1)
    covariance = ((one - means[0][:, None]) * (two - means[1][:, None])).sum(axis=1) / 48
    variances = one.var(axis=1, ddof=1), two.var(axis=1, ddof=1)
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    top = (2 * means[0] * means[1] + c1) * (2 * covariance + c2)
    return float((top / ((means[0] ** 2 + means[1] ** 2 + c1) * (variances[0] + variances[1] + c2))).mean())


# The measures


def test_one_changed_pixel_by_hand():
    before = noise(0)
    after = before.copy()
    after[3, 4, 1] ^= 16
    found = compare_pictures(Image.fromarray(before), Image.fromarray(after))
    values = 24 * 16 * 3
    assert found.mse == pytest.approx(16**2 / values)
    assert found.largest == 16 and found.mean == pytest.approx(16 / values)
    assert found.identical is False
    assert found.psnr == pytest.approx(10 * math.log10(255 * 255 * values / 16**2))
    assert found.ssim == pytest.approx(ssim(before, after)) and found.ssim < 1


def test_unlike_pictures():
    first, second = noise(1), noise(2)
    found = compare_pictures(Image.fromarray(first), Image.fromarray(second))
    error = first.astype(int) - second.astype(int)
    assert found.mse == pytest.approx((error**2).mean())
    assert found.largest == abs(error).max() and found.mean == pytest.approx(abs(error).mean())
    assert found.psnr == pytest.approx(20 * math.log10(255 / math.sqrt((error**2).mean())))
    assert found.ssim == pytest.approx(ssim(first, second)) and found.ssim < 0.2


def test_equal_pictures():
    picture = Image.fromarray(noise(3))
    assert compare_pictures(picture, picture.copy()) == Difference(0, 0, 0, True, math.inf, 1.0)


def test_pictures_that_cannot_be_compared():
    with pytest.raises(ValueError, match="16 x 24 and 24 x 16 pixels"):
        compare_pictures(Image.fromarray(noise(0)), Image.fromarray(noise(0, 16, 24)))
    small = Image.fromarray(noise(0, 6, 16))
    with pytest.raises(ValueError, match="windows of 7 x 7"):
        compare_pictures(small, small)


def test_latents_by_hand():
    first = torch.zeros(1, 1, 2, 2)
    second = torch.tensor([[[[0.0, 0.5], [0.0, -1.0]]]])
    found = compare_latents(first, second)
    assert (found.mse, found.largest, found.mean) == (1.25 / 4, 1.0, 1.5 / 4)
    assert found.identical is False and found.psnr is None and found.ssim is None
    assert compare_latents(second, second.clone()).identical
    # Of equal value and another dtype: they are not the same bits.
    assert compare_latents(second, second.bfloat16()) == Difference(0, 0, 0, False)
    with pytest.raises(ValueError, match=r"\[1, 1, 2, 2\] and \[1, 2, 2\]"):
        compare_latents(first, first[0])


def test_the_table():
    table = verify.as_markdown(
        {
            "a": Difference(0, 0, 0, True, math.inf, 1.0),
            "b": Difference(0.25, 3, 0.0625, False, 54.1514, 0.98765432),
            "c": Difference(1e-9, 2e-4, 1e-5, False),
        }
    )
    assert table.splitlines() == [
        "| Comparison | MSE | Largest difference | Mean difference | Identical | PSNR | SSIM |",
        "|---|---|---|---|---|---|---|",
        "| a | 0 | 0 | 0 | yes | infinite | 1.000000 |",
        "| b | 0.25 | 3 | 0.0625 | no | 54.15 dB | 0.987654 |",
        "| c | 1e-09 | 0.0002 | 1e-05 | no |  |  |",
    ]


# Pictures


@pytest.fixture
def two_files(tmp_path) -> tuple[str, str]:
    """b.png has one pixel that differs by 20 in one channel."""
    before = noise(4)
    before[0, 0, 0] = 100
    after = before.copy()
    after[0, 0, 0] = 120
    for name, picture in (("a.png", before), ("b.png", after)):
        Image.fromarray(picture).save(tmp_path / name)
    return str(tmp_path / "a.png"), str(tmp_path / "b.png")


def test_pictures(two_files, capsys):
    assert cli.main(["verify", "--pictures", *two_files]) == 0
    text = capsys.readouterr().out
    assert text.startswith("- Versions: deepgen_npu ")
    assert "- First: a.png\n- Second: b.png\n" in text and "Passed" not in text
    mse = 400 / (24 * 16 * 3)
    psnr = 10 * math.log10(65025 / mse)
    cells = rows(text)["pictures"]
    assert cells[:5] == [f"{mse:.6g}", "20", f"{20 / 1152:.6g}", "no", f"{psnr:.2f} dB"]
    # What is over a limit is a failure; what is at it is not.
    for limits, status in (
        (["--max_difference", "20"], 0),
        (["--max_difference", "19.9"], 1),
        (["--min_psnr", f"{psnr - 0.01}"], 0),
        (["--min_psnr", f"{psnr + 0.01}"], 1),
        (["--max_difference", "255", "--min_psnr", "90"], 1),
    ):
        assert cli.main(["verify", "--pictures", *two_files, *limits]) == status, limits
        assert capsys.readouterr().out.splitlines()[-1].startswith("Failed: " if status else "Passed.")


def test_equal_pictures_pass_every_limit(two_files, capsys):
    first = two_files[0]
    assert cli.main(["verify", "--pictures", first, first, "--min_psnr", "200", "--max_difference", "0"]) == 0


def test_pictures_need_no_torch(two_files):
    """Which does not load on a host whose CANN is not sourced."""
    command = ["verify", "--pictures", *two_files]
    code = f"import sys; sys.modules['torch'] = None; from deepgen_npu.cli import main; main({command!r})"
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert told.returncode == 0, told.stderr
    assert "| pictures | " in told.stdout


# Two runs


def test_two_runs_are_identical(capsys, monkeypatch):
    seen = []
    run = runs.run
    monkeypatch.setattr(runs, "run", lambda *arguments: seen.append(run(*arguments)) or seen[-1])
    assert cli.main(["verify", *SMALL]) == 0
    text = capsys.readouterr().out
    assert rows(text) == {
        "picture": ["0", "0", "0", "yes", "infinite", "1.000000"],
        "latents": ["0", "0", "0", "yes", "", ""],
    }
    assert text.endswith("\nPassed.\n")
    assert "- Run: generation at 64 x 64, 2 steps, guidance 4, seed 42\n" in text
    assert re.search(r"^- Model: tiny, fingerprint [0-9a-f]{12}$", text, re.MULTILINE)
    # They are two runs, of the pipeline's own pictures.
    (first, picture), (second, _) = seen
    assert first is not second
    pipe = DeepGenPipeline.from_pretrained(TINY, torch_dtype=torch.float32)
    prompt = "a photo of a blue pizza and a yellow baseball glove"
    assert torch.equal(
        first, pipe(prompt, height=64, width=64, num_inference_steps=2, seed=42, output_type="latent").images
    )
    (expected,) = pipe(prompt, height=64, width=64, num_inference_steps=2, seed=42).images
    assert picture.tobytes() == expected.tobytes()


@pytest.mark.parametrize("what", ["latents", "picture"])
def test_two_runs_that_are_not(capsys, monkeypatch, what):
    count = []

    def run(*arguments):
        latents, picture = true_run(*arguments)
        count.append(1)
        if len(count) == 2 and what == "latents":
            latents = latents.clone()
            latents[0, 0, 0, 0] += 0.5
        if len(count) == 2 and what == "picture":
            picture.putpixel((5, 5), tuple(value ^ 1 for value in picture.getpixel((5, 5))))
        return latents, picture

    true_run = runs.run
    monkeypatch.setattr(runs, "run", run)
    assert cli.main(["verify", *SMALL]) == 1
    text = capsys.readouterr().out
    assert text.endswith("\nFailed: the two runs are not identical.\n")
    found = rows(text)
    if what == "latents":
        elements = 16 * 8 * 8
        assert found["latents"][:4] == [f"{0.25 / elements:.6g}", "0.5", f"{0.5 / elements:.6g}", "no"]
        assert found["picture"][3] == "yes"
    else:
        assert found["picture"][:2] == [f"{3 / (64 * 64 * 3):.6g}", "1"] and found["latents"][3] == "yes"


def test_an_edit_with_random_weights_in_a_process_of_its_own():
    command = [sys.executable, "-m", "deepgen_npu", "verify", "--random-weights", "tiny", "--references", "1"]
    told = subprocess.run(
        [*command, "--device", "cpu", "--dtype", "float32", *RUN], capture_output=True, text=True, cwd=ROOT
    )
    assert told.returncode == 0, told.stderr
    assert "- Run: editing with 1 reference(s) at 64 x 64" in told.stdout
    assert rows(told.stdout)["picture"][3] == "yes"
    assert "Running it again" in told.stderr


# Two devices


def test_against_another_place(capsys, pipe):
    """On a CPU alone, another dtype stands for another device."""
    assert cli.main(["verify", *SMALL, "--against", "cpu", "--against_dtype", "bfloat16", "--prompt", "a cat"]) == 0
    text = capsys.readouterr().out
    assert re.search(r"^- Device: cpu \(.+\), float32$", text, re.MULTILINE)
    assert re.search(r"^- Against: cpu \(.+\), bfloat16$", text, re.MULTILINE)
    half = DeepGenPipeline.from_pretrained(TINY, torch_dtype=torch.bfloat16)
    call = {"height": 64, "width": 64, "num_inference_steps": 2, "seed": 42}
    one, two = (each("a cat", **call, output_type="latent").images.float() for each in (pipe, half))
    found = rows(text)
    assert found["latents"][:3] == [
        f"{(one - two).square().mean():.6g}",
        f"{(one - two).abs().max():.6g}",
        f"{(one - two).abs().mean():.6g}",
    ]
    assert found["latents"][3] == "no" and (one - two).abs().max() > 0
    first, second = (np.asarray(each("a cat", **call).images[0]).astype(float) for each in (pipe, half))
    mse = ((first - second) ** 2).mean()
    assert found["picture"][:2] == [f"{mse:.6g}", f"{abs(first - second).max():.6g}"]
    assert found["picture"][4:] == [f"{10 * math.log10(65025 / mse):.2f} dB", f"{ssim(first, second):.6f}"]


# References


@pytest.fixture
def reference(tmp_path, capsys) -> Path:
    folder = tmp_path / "new" / "reference"
    assert cli.main(["verify", *SMALL, "--seed", "7", "--prompt", "caf\u00e9", "--save", str(folder)]) == 0
    assert f"Reference saved at: {folder}" in capsys.readouterr().out
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
    with Image.open(reference / "picture.png") as picture:
        assert picture.tobytes() == pipe("caf\u00e9", **call).images[0].tobytes()


def test_comparing_with_a_reference_uses_its_settings(reference, capsys):
    """Also its dtype; only the model is named."""
    command = ["verify", "--model_path", str(TINY), "--device", "cpu", "--compare", str(reference)]
    assert cli.main([*command, "--max_difference", "0"]) == 0
    text = capsys.readouterr().out
    assert {name: cells[3] for name, cells in rows(text).items()} == {"picture": "yes", "latents": "yes"}
    assert "seed 7" in text and "), float32\n" in text
    assert re.search(rf"^- Reference: cpu \(.+\), float32; .*torch {re.escape(torch.__version__)}", text, re.MULTILINE)

    # Another machine's numbers: one latent and one pixel.
    latents = load_file(reference / "latents.safetensors")["latents"]
    latents[0, 3, 2, 1] -= 2
    save_file({"latents": latents}, reference / "latents.safetensors")
    with Image.open(reference / "picture.png") as picture:
        picture.load()
    red, green, blue = picture.getpixel((1, 2))
    picture.putpixel((1, 2), (red ^ 64, green, blue))
    picture.save(reference / "picture.png")
    assert cli.main(command) == 0
    found = rows(capsys.readouterr().out)
    assert found["latents"][1] == "2" and found["latents"][3] == "no"
    assert found["picture"][:2] == [f"{64**2 / (64 * 64 * 3):.6g}", "64"]
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
    assert re.search(r"made with another model: tiny, fingerprint \w{12}; tiny has \w{12}", capsys.readouterr().err)


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


def test_random_weights_have_references_too(tmp_path, capsys):
    """So machines are compared without a download."""
    place = ["--random-weights", "tiny", "--device", "cpu"]
    folder = tmp_path / "reference"
    assert cli.main(["verify", *place, "--dtype", "float32", *RUN, "--save", str(folder)]) == 0
    assert cli.main(["verify", *place, "--compare", str(folder)]) == 0
    assert rows(capsys.readouterr().out)["latents"][3] == "yes"


def test_a_reference_is_whole_or_not_there(tmp_path, pipe, monkeypatch):
    settings = RunSettings("x", 64, 64, 1, 2, 4.0)
    reference = Reference(torch.zeros(1, 16, 8, 8), Image.new("RGB", (64, 64)), settings, "m", "f", "float32", {})
    folder = tmp_path / "reference"
    folder.mkdir()

    def full_disk(self, name, **options):
        Path(name).write_bytes(b"half")
        raise OSError("no space left")

    with monkeypatch.context() as patch:
        patch.setattr(Image.Image, "save", full_disk)
        with pytest.raises(OSError, match="no space"):
            reference.save(folder)
    assert list(tmp_path.rglob("*")) == [folder]
    reference.save(folder)
    assert Reference.load(folder).settings == settings


def test_damaged_references(reference):
    facts = json.loads((reference / "reference.json").read_text(encoding="utf-8"))
    for changed, words in (
        ({"format": 2}, "format is 2"),
        ({"settings": {}}, "missing"),
        ({"settings": {**facts["settings"], "sampler": 1}}, "sampler"),
    ):
        (reference / "reference.json").write_text(json.dumps({**facts, **changed}), encoding="utf-8")
        with pytest.raises(ValueError, match=words):
            Reference.load(reference)
    (reference / "reference.json").write_text("{", encoding="utf-8")
    with pytest.raises(ValueError, match="cannot be read"):
        Reference.load(reference)
    (reference / "latents.safetensors").unlink()
    with pytest.raises(ValueError, match=r"no .*latents.safetensors"):
        Reference.load(reference)


# Mistakes


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--against", "cpu"], "is the same device"),
        (["--against", "tpu"], "wanted auto, npu"),
        (["--against", "npu"], "torch_npu is not installed"),
        (["--against_dtype", "float32"], "--against, which was not given"),
        (["--device", "npu"], "--device auto or --device cpu"),
        (["--pictures", "nothing.png", "nothing.png"], "nothing.png: there is no such file"),
        (["--pictures", str(ROOT / "LICENSE"), "nothing.png"], "cannot be read as a picture"),
        (["--save", str(TINY)], "is there already"),
        (["--save", str(ROOT / "LICENSE")], "is there already"),
        (["--save", "x", "--max_difference", "1"], "--save only writes"),
        (["--compare", "nowhere"], "a folder that `verify --save` wrote is wanted"),
        (["--compare", "nowhere", "--seed", "3"], "--seed is taken from the reference"),
        (["--num_inference_steps", "0"], "num_inference_steps is 0"),
    ],
)
def test_mistakes_are_one_line_before_anything_slow(tmp_path, monkeypatch, capsys, arguments, words):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(DeepGenPipeline, "from_checkpoint", None)
    given = PLACE if "--compare" in arguments else SMALL
    assert cli.main(["verify", *given, *arguments]) == 2
    captured = capsys.readouterr()
    assert captured.out == "" and captured.err.splitlines()[-1].startswith("error: ") and words in captured.err
    assert list(tmp_path.iterdir()) == []


def test_two_modes_at_once_are_a_usage_error(capsys):
    with pytest.raises(SystemExit) as left:
        cli.main(["verify", "--save", "a", "--compare", "b"])
    assert left.value.code == 2


@pytest.mark.parametrize("mode", [[], ["--save", "x"], ["--pictures", "a.png", "b.png"]])
def test_without_scikit_image(monkeypatch, capsys, tmp_path, mode):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "skimage", None)
    monkeypatch.setitem(sys.modules, "skimage.metrics", None)
    monkeypatch.setattr(DeepGenPipeline, "from_checkpoint", None)
    assert cli.main(["verify", *SMALL, *mode]) == 2
    assert "pip install scikit-image" in capsys.readouterr().err
