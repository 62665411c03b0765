"""``python -m deepgen_npu verify``: the measures against computations of our own, and each mode of the command."""

from __future__ import annotations

import math
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from golden import TINY
from PIL import Image
from platforms import not_on_windows
from stderr import error_in
from tables import rows

from deepgen_npu import DeepGenPipeline, cli
from deepgen_npu.tools import compare, runs
from deepgen_npu.tools.compare import Difference, compare_images, compare_latents


ROOT = Path(__file__).parents[3]
OTHER_WORDS = not_on_windows("it has other words for this error")
NO_PROC = not_on_windows("it has no folder that is closed to everybody")
PLACE = ["--model_path", str(TINY), "--device", "cpu", "--dtype", "float32"]
RUN = ["--height", "64", "--width", "64", "--num_inference_steps", "2"]
SMALL = [*PLACE, *RUN]


def noise(seed: int, height: int = 24, width: int = 16) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def ssim(first: np.ndarray, second: np.ndarray) -> float:
    """Wang et al. 2004 with windows of 7 x 7 and unbiased variances: the mean over windows and channels."""
    one, two = (
        np.lib.stride_tricks.sliding_window_view(image.astype(np.float64), (7, 7), axis=(0, 1)).reshape(-1, 49)
        for image in (first, second)
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
    found = compare_images(Image.fromarray(before), Image.fromarray(after))
    values = 24 * 16 * 3
    assert found.mse == pytest.approx(16**2 / values)
    assert found.largest == 16 and found.mean == pytest.approx(16 / values)
    assert found.identical is False
    assert found.psnr == pytest.approx(10 * math.log10(255 * 255 * values / 16**2))
    assert found.ssim == pytest.approx(ssim(before, after)) and found.ssim < 1


def test_unlike_images():
    first, second = noise(1), noise(2)
    found = compare_images(Image.fromarray(first), Image.fromarray(second))
    error = first.astype(int) - second.astype(int)
    assert found.mse == pytest.approx((error**2).mean())
    assert found.largest == abs(error).max() and found.mean == pytest.approx(abs(error).mean())
    assert found.psnr == pytest.approx(20 * math.log10(255 / math.sqrt((error**2).mean())))
    assert found.ssim == pytest.approx(ssim(first, second)) and found.ssim < 0.2


def test_equal_images():
    image = Image.fromarray(noise(3))
    assert compare_images(image, image.copy()) == Difference(0, 0, 0, True, math.inf, 1.0)


def test_images_that_cannot_be_compared():
    with pytest.raises(ValueError, match="The images must have the same size, got 16 x 24 and 24 x 16"):
        compare_images(Image.fromarray(noise(0)), Image.fromarray(noise(0, 16, 24)))
    small = Image.fromarray(noise(0, 6, 16))
    with pytest.raises(ValueError, match="must be at least 7 x 7 pixels, the window of SSIM, got 16 x 6"):
        compare_images(small, small)


def test_latents_by_hand():
    first = torch.zeros(1, 1, 2, 2)
    second = torch.tensor([[[[0.0, 0.5], [0.0, -1.0]]]])
    found = compare_latents(first, second)
    assert (found.mse, found.largest, found.mean) == (1.25 / 4, 1.0, 1.5 / 4)
    assert found.identical is False and found.psnr is None and found.ssim is None
    assert compare_latents(second, second.clone()).identical
    # Of equal value and another dtype: they are not the same bits.
    assert compare_latents(second, second.bfloat16()) == Difference(0, 0, 0, False)
    with pytest.raises(ValueError, match=r"must have the same shape, got \[1, 1, 2, 2\] and \[1, 2, 2\]"):
        compare_latents(first, first[0])


def test_the_table():
    table = compare.as_markdown(
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


# Images


@pytest.fixture
def two_files(tmp_path) -> tuple[str, str]:
    """b.png has one pixel that differs by 20 in one channel."""
    before = noise(4)
    before[0, 0, 0] = 100
    after = before.copy()
    after[0, 0, 0] = 120
    for name, image in (("a.png", before), ("b.png", after)):
        Image.fromarray(image).save(tmp_path / name)
    return str(tmp_path / "a.png"), str(tmp_path / "b.png")


def test_images(two_files, capsys):
    assert cli.main(["verify", "--pictures", *two_files]) == 0
    text = capsys.readouterr().out
    assert text.startswith("- Versions: deepgen_npu ")
    assert "- First: a.png\n- Second: b.png\n" in text and "Passed" not in text
    mse = 400 / (24 * 16 * 3)
    psnr = 10 * math.log10(65025 / mse)
    cells = rows(text)["images"]
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


def test_nothing_is_within_a_limit_that_is_no_number(two_files, capsys):
    for option in ("--max_difference", "--min_psnr"):
        for text in ("nan", "-nan", "inf", "-inf", "-1", "1e999", "1001", "x", ""):
            assert cli.main(["verify", "--pictures", two_files[0], two_files[0], f"{option}={text}"]) == 2
            assert re.match(rf"error: {option} must be a number from 0 to \d+, got .*\.$", capsys.readouterr().err)


def test_a_measure_that_is_no_number_is_within_no_limit(two_files, capsys, monkeypatch):
    unknown = Difference(math.nan, math.nan, math.nan, False, math.nan, math.nan)
    monkeypatch.setattr(compare, "compare_images", lambda first, second: unknown)
    for limit in (["--max_difference", "255"], ["--min_psnr", "0"]):
        assert cli.main(["verify", "--pictures", *two_files, *limit]) == 1
        assert "Failed: " in capsys.readouterr().out


def test_images_are_compared_as_they_are_shown(tmp_path, capsys):
    """Of any mode: 16-bit grey is not cut off at 255."""
    grey = noise(5)[:, :, 0]
    Image.fromarray(grey).save(tmp_path / "a.png")
    Image.fromarray(grey.astype(np.uint16) * 257).save(tmp_path / "b.png")
    names = [str(tmp_path / "a.png"), str(tmp_path / "b.png")]
    assert cli.main(["verify", "--pictures", *names, "--max_difference", "0"]) == 0


def test_equal_images_pass_every_limit(two_files, capsys):
    first = two_files[0]
    assert cli.main(["verify", "--pictures", first, first, "--min_psnr", "200", "--max_difference", "0"]) == 0


def test_images_need_no_torch(two_files):
    """Which does not load on a host whose CANN is not sourced."""
    command = ["verify", "--pictures", *two_files]
    code = f"import sys; sys.modules['torch'] = None; from deepgen_npu.cli import main; main({command!r})"
    outcome = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert outcome.returncode == 0, outcome.stderr
    assert "| images | " in outcome.stdout


# Two runs


def test_two_runs_are_identical(capsys, monkeypatch):
    seen = []
    run = runs.run
    monkeypatch.setattr(runs, "run", lambda *arguments: seen.append(run(*arguments)) or seen[-1])
    assert cli.main(["verify", *SMALL]) == 0
    text = capsys.readouterr().out
    assert rows(text) == {
        "image": ["0", "0", "0", "yes", "infinite", "1.000000"],
        "latents": ["0", "0", "0", "yes", "", ""],
    }
    assert text.endswith("\nPassed.\n")
    assert "- Run: generation at 64 x 64, 2 steps, guidance 4, seed 42\n" in text
    assert re.search(r"^- Model: tiny, fingerprint [0-9a-f]{12}$", text, re.MULTILINE)
    # They are two runs, of the pipeline's own images.
    (first, image), (second, _) = seen
    assert first is not second
    pipe = DeepGenPipeline.from_pretrained(TINY, torch_dtype=torch.float32)
    prompt = "a photo of a blue pizza and a yellow baseball glove"
    assert torch.equal(
        first, pipe(prompt, height=64, width=64, num_inference_steps=2, seed=42, output_type="latent").images
    )
    (expected,) = pipe(prompt, height=64, width=64, num_inference_steps=2, seed=42).images
    assert image.tobytes() == expected.tobytes()


@pytest.mark.parametrize("what", ["latents", "image"])
def test_two_runs_that_are_not(capsys, monkeypatch, what):
    count = []

    def run(*arguments):
        latents, image = true_run(*arguments)
        count.append(1)
        if len(count) == 2 and what == "latents":
            latents = latents.clone()
            latents[0, 0, 0, 0] += 0.5
        if len(count) == 2 and what == "image":
            image.putpixel((5, 5), tuple(value ^ 1 for value in image.getpixel((5, 5))))
        return latents, image

    true_run = runs.run
    monkeypatch.setattr(runs, "run", run)
    assert cli.main(["verify", *SMALL]) == 1
    text = capsys.readouterr().out
    assert text.endswith("\nFailed: the two runs are not identical.\n")
    found = rows(text)
    if what == "latents":
        elements = 16 * 8 * 8
        assert found["latents"][:4] == [f"{0.25 / elements:.6g}", "0.5", f"{0.5 / elements:.6g}", "no"]
        assert found["image"][3] == "yes"
    else:
        assert found["image"][:2] == [f"{3 / (64 * 64 * 3):.6g}", "1"] and found["latents"][3] == "yes"


@pytest.mark.slow
def test_an_edit_with_random_weights_in_a_process_of_its_own():
    command = [sys.executable, "-m", "deepgen_npu", "verify", "--random-weights", "tiny", "--references", "1"]
    outcome = subprocess.run(
        [*command, "--device", "cpu", "--dtype", "float32", *RUN], capture_output=True, text=True, cwd=ROOT
    )
    assert outcome.returncode == 0, outcome.stderr
    assert "- Run: editing with 1 reference(s) at 64 x 64" in outcome.stdout
    assert rows(outcome.stdout)["image"][3] == "yes"
    assert "Running it again" in outcome.stderr


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
    assert found["image"][:2] == [f"{mse:.6g}", f"{abs(first - second).max():.6g}"]
    assert found["image"][4:] == [f"{10 * math.log10(65025 / mse):.2f} dB", f"{ssim(first, second):.6f}"]


# Mistakes


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--against", "cpu"], "--against must be another device than --device, got 'cpu'"),
        (["--against", "tpu"], "--against must be auto, npu, npu:N, cuda, cuda:N or cpu, got 'tpu'"),
        (["--against", "npu"], "torch_npu is not installed"),
        (["--against_dtype", "float32"], "--against_dtype needs --against"),
        (["--device", "npu"], "--device auto or --device cpu"),
        (["--pictures", "nothing.png", "nothing.png"], "--pictures nothing.png does not exist."),
        (["--pictures", str(ROOT / "LICENSE"), "nothing.png"], "LICENSE cannot be read as an image: it is not PNG"),
        (["--save", str(TINY)], "already exists. Name a new or empty folder"),
        (["--save", str(ROOT / "LICENSE")], "already exists. Name a new or empty folder"),
        (["--save", "x", "--max_difference", "1"], "--save compares nothing"),
        (["--compare", "nowhere"], "is missing. Name a folder that verify --save wrote"),
        (["--compare", "nowhere", "--seed", "3"], "--seed and --compare cannot be combined"),
        (["--num_inference_steps", "0"], "num_inference_steps must be an integer from 1 to 1000, got 0"),
        (["--num_inference_steps", "1000000000"], "must be an integer from 1 to 1000, got 1000000000"),
        (["--references", "1000000000"], "must be an integer from 0 to 16, got 1000000000"),
        pytest.param(["--save", "n" * 256], "File name too long", marks=OTHER_WORDS),
        pytest.param(["--save", "/proc/new"], "--save /proc/new cannot be written: ", marks=NO_PROC),
        (["--save", str(ROOT / "LICENSE" / "new")], "cannot be written: "),
        (["--save", "a\0b"], "Embedded null"),
        (["--save", ""], "--save must be the path of a file or folder, got ''"),
        (["--compare", ""], "--compare must be the path of a file or folder, got ''"),
    ],
)
def test_mistakes_are_one_error_before_anything_slow(tmp_path, monkeypatch, capsys, arguments, words):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(DeepGenPipeline, "from_checkpoint", None)
    given = PLACE if "--compare" in arguments else SMALL
    assert cli.main(["verify", *given, *arguments]) == 2
    captured = capsys.readouterr()
    assert captured.out == "" and words in error_in(captured.err)
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
    assert "\n    pip install scikit-image\n" in capsys.readouterr().err
