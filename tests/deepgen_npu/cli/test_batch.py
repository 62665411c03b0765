"""The command ``batch``: what it takes, what it prints, and how it ends."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from batch_files import SMALL, Batch, picture, write_rows
from golden import TINY
from PIL import Image
from platforms import not_on_windows
from stderr import error_in

from deepgen_npu import cli
from deepgen_npu.cli import batch_run
from deepgen_npu.tools.batch.survey import Surveyor


ROOT = Path(__file__).parents[3]


def test_a_dry_run_checks_all_and_writes_nothing(tmp_path):
    """Without torch, so that it takes a moment: also for a table of edits."""
    Image.new("RGB", (64, 64)).save(tmp_path / "x.png")
    rows = [{"prompt": "a", "image": "x.png"}, {"prompt": "b", "n": 2}, {"prompt": "c", "height": 63}]
    table = write_rows(tmp_path / "rows.jsonl", rows)
    before = sorted(tmp_path.rglob("*"))
    arguments = [
        "batch",
        str(table),
        "--output",
        str(tmp_path / "out"),
        "--model_path",
        str(TINY),
        *SMALL,
        "--dry_run",
    ]
    heavy = ("torch", "diffusers", "transformers", "accelerate", "ray")
    code = f"import sys; from deepgen_npu import cli; status = cli.main({arguments!r})\n"
    code += f"print([name for name in {heavy} if name in sys.modules]); sys.exit(status)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 1, done.stderr
    first, space, duration, fault, modules = done.stdout.splitlines()
    assert first == "3 rows: 2 to make (3 images), 1 that cannot be made."
    assert space.startswith("Space: about 24.0 KiB, at most 36.0 KiB; ") and duration.startswith("Time: about ")
    assert fault.startswith("Row 2 (id 00000002): height must be a multiple of 16") and modules == "[]"
    assert sorted(tmp_path.rglob("*")) == before


def test_a_dry_run_of_what_is_there(quick, capsys):
    """Beside a run that works; it counts what the command would do and leaves all as it is."""
    quick.rows({"prompt": "a"}, {"prompt": "b"})
    assert quick.run() == 0
    quick.rows({"prompt": "a"}, {"prompt": "b"}, {"prompt": "c"})
    manifest = quick.output / "manifest.jsonl"
    manifest.write_bytes(manifest.read_bytes()[:-5])
    (quick.output / ".lock").write_text(json.dumps({"host": "another", "pid": 1}))
    before = {name: (quick.output / name).read_bytes() for name in quick.files()}
    capsys.readouterr()
    assert quick.run("--dry_run") == 0
    words = "3 rows: 1 to make (1 image), 1 done before, 1 finished without a line in the manifest."
    assert words in capsys.readouterr().out
    assert {name: (quick.output / name).read_bytes() for name in quick.files()} == before


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--shard", "3/3"], "--shard must be i/n with i from 0 to n - 1, got '3/3'."),
        (["--workers", "0"], "--workers must be an integer from 1 to 4096, or auto, got '0'."),
        (["--workers", "many"], "--workers must be an integer from 1 to 4096, or auto, got 'many'."),
        (["--workers", "1", "--worker_resources", "NPU"], "--worker_resources must be JSON such as "),
        (["--workers", "1", "--worker_resources", '{"NPU": -1}'], "--worker_resources must be JSON such as "),
        (["--worker_resources", '{"NPU": 1}'], "--worker_resources needs --workers or --address: add one."),
        (["--attempts", "0"], "--attempts must be an integer from 1 to 100, got 0."),
        (
            ["--device", "npu:3", "--workers", "2"],
            "--device must be npu, cuda, cpu or auto with --workers and --address",
        ),
        (["--contact_sheet", "2501"], "--contact_sheet must be an integer from 1 to 2500, got 2501."),
        (["--num_images", "0"], "--num_images must be an integer from 1 to 1000, got 0."),
        (["--model_path", "nowhere"], "There is no folder nowhere"),
        (["--lora", "nothing.safetensors"], "nothing.safetensors"),
        (["--output", ""], "--output must be the path of a file or folder, got ''."),
        (["--output", str(ROOT / "LICENSE")], f"--output {ROOT / 'LICENSE'} cannot be written: File exists."),
        (["--device", "npu"], "torch_npu is not installed"),
    ],
)
def test_mistakes_are_one_error(tmp_path, monkeypatch, capsys, options, words):
    """And leave nothing behind: but one of the device, which is known when the first row is drawn."""
    monkeypatch.chdir(tmp_path)
    batch = Batch(tmp_path)
    batch.rows({"prompt": "a"})
    assert batch.run(*options) == 2
    assert words in error_in(capsys.readouterr().err)
    assert os.listdir() == ["rows.jsonl"] or (options == ["--device", "npu"] and "images" not in os.listdir("out"))


@pytest.mark.parametrize("content", [None, b"\xff\xfe"])
def test_a_table_that_cannot_be_read_leaves_no_folder(tmp_path, capsys, content):
    batch = Batch(tmp_path)
    if content:
        batch.table.write_bytes(content)
    assert batch.run() == 2
    words = "must be text in UTF-8" if content else "cannot be read: No such file or directory."
    assert f"{batch.table} {words}" in error_in(capsys.readouterr().err)
    assert not batch.output.exists()


def test_rows_that_do_not_say_it_have_what_the_options_say(quick):
    quick.rows(
        {"prompt": "a"},
        {"prompt": "b", "negative_prompt": "own", "seed": 1, "n": 1, "cfg": 3, "steps": 4, "guidance_every": 1},
    )
    options = ["--negative_prompt", "blur", "--seed", "7", "--num_images", "2", "--guidance_scale", "1.5"]
    assert quick.run(*options, "--height", "96", "--guidance_every", "3") == 0
    texts = [json.loads(quick_text(quick, name)) for name in ("00000000", "00000001")]
    keys = ("negative_prompt", "seed", "guidance_scale", "num_inference_steps")
    assert [[text[key] for key in keys] for text in texts] == [["blur", 7, 1.5, 2], ["own", 1, 3.0, 4]]
    assert [text.get("guidance_every") for text in texts] == [3, None]
    assert texts[0]["batch"]["settings"]["height"] == 96 and texts[0]["batch"]["settings"]["n"] == 2
    assert quick.image("00000000", 1).tobytes() == picture("a", 8).tobytes()


def quick_text(quick, name: str) -> str:
    with Image.open(quick.output / quick.last()[name]["files"][0]) as image:
        return image.text["deepgen"]  # pyright: ignore


def test_a_contact_sheet_has_some_of_all_rows(quick, capsys, monkeypatch):
    """Evenly, the last ones too; of rows that failed there is nothing to show."""
    quick.rows(*({"id": f"r{number}", "prompt": "cannot" if number == 3 else f"p{number}"} for number in range(12)))
    shown = []
    true_save = batch_run.save_contact_sheet

    def save(target, images):
        shown.append([name for name, _ in images])
        true_save(target, images)

    monkeypatch.setattr(batch_run, "save_contact_sheet", save)
    assert quick.run("--contact_sheet", "4") == 1
    assert shown.pop() == ["r0", "r2", "r6", "r9"]
    printed = capsys.readouterr().out
    assert f"Contact sheet: {quick.output / 'contact_sheet.jpg'} (4 images)" in printed
    assert Image.open(quick.output / "contact_sheet.jpg").size == (408, 452)
    assert quick.run("--contact_sheet") == 1 and len(shown.pop()) == 11
    assert quick.run("--shard", "3/12", "--contact_sheet") == 1 and not shown
    assert "There are no images for a contact sheet yet." in capsys.readouterr().out


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=["SIGINT", "SIGTERM"])
def test_stopped_before_and_after_the_rows_are_drawn(quick, capsys, monkeypatch, number):
    def stop(*arguments):
        signal.raise_signal(number)

    status = {signal.SIGINT: 130, signal.SIGTERM: 143}[number]
    quick.rows({"prompt": "a"})
    with monkeypatch.context() as patch:
        patch.setattr(Surveyor, "_size", stop)
        assert quick.run() == status
    assert capsys.readouterr().err.splitlines()[-1] == "Stopped; nothing was written."
    assert not quick.output.exists()
    with monkeypatch.context() as patch:
        patch.setattr(batch_run, "save_contact_sheet", stop)
        assert quick.run("--contact_sheet") == status
    last = capsys.readouterr().err.splitlines()[-1]
    assert last == "Stopped before the contact sheet was written; all images are."
    assert quick.images() == {"00000000.png"} and quick.drawn == ["00000000"] and ".lock" not in quick.files()


@pytest.mark.slow
@not_on_windows("signals cannot be sent to other processes")
def test_in_a_process_that_is_killed(batch, capsys):
    """The command itself, and a second one beside it that is refused; then the same goes on."""
    batch.rows(*({"prompt": f"p{number}"} for number in range(500)))
    options = ["--model_path", str(TINY), *SMALL]
    command = [sys.executable, "-m", "deepgen_npu", "batch", str(batch.table), "--output", str(batch.output), *options]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd=ROOT)
    try:
        end = time.monotonic() + 120
        while len(batch.lines()) < 3 and time.monotonic() < end:
            time.sleep(0.05)
        assert batch.run() == 2
        words = f"{batch.output} is in use by process {process.pid} of "
        assert words in error_in(capsys.readouterr().err)
    finally:
        process.kill()
        process.wait()
    made = {line["id"]: line for line in batch.lines()}
    assert 3 <= len(made) < 400
    batch.rows(*({"prompt": f"p{number}"} for number in range(len(made) + 3)))
    assert batch.run() == 0
    batch.require_whole()
    assert {name: batch.last()[name] for name in made} == made
    counts = f"{len(made)} done before"
    assert counts in capsys.readouterr().out


def test_help_says_what_there_is(capsys):
    with pytest.raises(SystemExit, match="0"):
        cli.main(["batch", "--help"])
    text = " ".join(capsys.readouterr().out.split())
    for words in ("--dry_run", "--shard i/n", "--keep_errors", "--overwrite", "Exit status: 0; 1 when rows failed; 2"):
        assert words in text
