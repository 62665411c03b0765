"""What a first look at a table finds, before any work: each row is done, to be made, or cannot be."""

from __future__ import annotations

import json
import os
import shutil
import tracemalloc

import pytest
from batch_files import picture, stand_in, write_rows
from golden import TINY
from lora_files import Example
from PIL import Image
from safetensors.torch import save_file
from stderr import error_in
from tensors import load_file

from deepgen_npu.checkpoint.folder import Checkpoint
from deepgen_npu.tools.batch import loading
from deepgen_npu.tools.batch.folder import OutputFolder
from deepgen_npu.tools.batch.names import image_files
from deepgen_npu.tools.batch.rows import Defaults
from deepgen_npu.tools.batch.survey import TO_MAKE, Surveyor


def test_bad_rows_are_lines_and_the_others_are_made(quick, capsys):
    """Each with the words of `generate` and `edit`; the same again fails again and makes nothing."""
    Image.new("RGB", (64, 48)).save(quick.folder / "good.png")
    (quick.folder / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n and no more")
    rows = [
        '{"prompt": "good", "id": "first"}',
        "{",
        '["a"]',
        '{"prompt": "x", "id": "a/b"}',
        '{"prompt": "x", "id": "first"}',
        '{"prompt": "x", "id": "FIRST"}',
        '{"prompt": "two", "id": "a", "n": 2}',
        '{"prompt": "x", "id": "a_1"}',
        '{"prompt": "x", "id": "A", "n": 3}',
        '{"prompt": "an <|image_pad|> inside"}',
        '{"prompt": "x", "image": "broken.png"}',
        '{"prompt": "x", "image": "missing.png"}',
        '{"prompt": "x", "image": "good.png", "mask": "none.png"}',
        '{"prompt": "x", "image": "http://x.example/a.png"}',
        '{"prompt": "x", "height": 63}',
        '{"prompt": "x", "mask": "good.png"}',
        '{"prompt": "half \\ud83d"}',
        '{"prompt": "x", "image": "good.png", "follow_input": "pad", "label": 3}',
    ]
    quick.table.write_text("\n".join(rows))
    assert quick.run() == 1
    lines = quick.last()
    errors = {line["row"]: (line["id"], line["error"]) for line in lines.values() if line["status"] == "error"}
    folder = quick.folder
    unlike = "id must be unlike those of other rows, whatever the case of letters, got "
    expected = {
        1: ("00000001", "the line is no JSON (Expecting property name enclosed in double quotes"),
        2: ("00000002", "the line is a JSON list, not an object"),
        3: ("00000003", "id must be a file name of at most 200 bytes"),
        4: ("row:4", f"{unlike}'first'. Row 0 has it."),
        5: ("row:5", f"{unlike}'FIRST'. Row 0 has it."),
        7: ("row:7", f"{unlike}'a_1'. Row 6 has it."),
        8: ("row:8", f"{unlike}'A'. Row 6 has it."),
        9: ("00000009", "prompt must not contain <|image_pad|>"),
        10: ("00000010", f"{folder / 'broken.png'} cannot be read as an image ("),
        11: ("00000011", f"{folder / 'missing.png'} does not exist."),
        12: ("00000012", f"{folder / 'none.png'} does not exist."),
        13: ("00000013", "Nothing is fetched from the network"),
        14: ("00000014", "height must be a multiple of 16 from 16 to 384, got 63 (nearest: 48, 64)."),
        15: ("00000015", "mask needs an image to edit"),
        16: ("00000016", "prompt must be Unicode text, got a lone surrogate (U+D83D)"),
    }
    assert {row: name for row, (name, _) in errors.items()} == {row: name for row, (name, _) in expected.items()}
    for row, (_, words) in expected.items():
        assert words in errors[row][1], row
    assert quick.drawn == ["first", "a", "00000017"] and lines["00000017"]["extra"] == {"label": 3}
    assert quick.images() == {"first.png", "a_0.png", "a_1.png", "00000017.png"}
    printed = capsys.readouterr().out
    assert "18 rows: 3 to make (4 images), 15 that cannot be made." in printed
    assert "3 rows made (4 images" in printed and "15 failed." in printed
    assert f"15 of 18 rows failed: {quick.output / 'manifest.jsonl'} says why." in printed
    assert quick.run() == 1 and len(quick.drawn) == 3
    quick.require_whole()


def test_a_row_that_was_mended_is_made(quick):
    quick.rows({"prompt": "a"}, {"prompt": "x", "height": 63})
    assert quick.run() == 1
    quick.rows({"prompt": "a"}, {"prompt": "x", "height": 64})
    assert quick.run() == 0 and quick.drawn == ["00000000", "00000001"]
    assert quick.run() == 0 and len(quick.drawn) == 2
    quick.require_whole()


def test_what_failed_is_tried_again_unless_it_is_to_be_left(quick, capsys):
    quick.rows({"prompt": "a"}, {"prompt": "cannot today"}, {"prompt": "x", "height": 63})
    assert quick.run() == 1
    count = len(quick.lines())
    assert quick.run("--keep_errors") == 1 and quick.drawn == ["00000000", "00000001"]
    assert len(quick.lines()) == count, "nothing new to say"
    assert "1 done before, 2 that failed before and are left so." not in capsys.readouterr().err
    assert quick.run("--keep_errors", "--dry_run") == 1
    assert "0 to make (0 images), 1 done before, 2 that failed before and are left so." in capsys.readouterr().out
    assert quick.run() == 1 and quick.drawn[2:] == ["00000001"]


def test_a_killed_process_leaves_images_without_lines(quick, capsys):
    quick.rows(*({"prompt": f"p{number}", "n": 2 if number == 1 else 1} for number in range(4)))
    assert quick.run() == 0
    lines = (quick.output / "manifest.jsonl").read_bytes().splitlines(keepends=True)
    before = quick.last()
    # Also half of the images of a row.
    (quick.output / before["00000001"]["files"][1]).unlink()
    (quick.output / "manifest.jsonl").write_bytes(lines[0] + lines[3][:30])
    capsys.readouterr()
    assert quick.run() == 0 and quick.drawn[4:] == ["00000001"]
    captured = capsys.readouterr()
    assert "4 rows: 1 to make (2 images), 1 done before, 2 finished without a line" in captured.out
    assert "1 row made (2 images" in captured.out and "2 found finished." in captured.out
    assert "A torn line at the end of" in captured.err and "was cut off (30 bytes)." in captured.err
    after = quick.last()
    for name in ("00000002", "00000003"):
        same = ("row", "files", "seeds", "width", "height", "sha256", "fingerprint")
        assert [after[name][key] for key in same] == [before[name][key] for key in same]
        assert after[name]["attempts"] == 0 and "seconds" not in after[name]
    quick.require_whole()
    assert quick.run() == 0 and len(quick.drawn) == 5


def test_killed_before_the_line_of_what_was_made_again(quick):
    """The images of the other n, which nobody asks for any more, go with it."""
    quick.rows({"id": "a", "prompt": "p", "n": 2})
    assert quick.run() == 0
    quick.rows({"id": "a", "prompt": "p"})
    manifest = (quick.output / "manifest.jsonl").read_bytes()
    assert quick.run("--overwrite") == 0 and quick.images() == {"a.png"}
    (quick.output / "manifest.jsonl").write_bytes(manifest)
    for number in range(2):
        picture("p", 42 + number).save(quick.output / quick.last()["a"]["files"][number])
    assert quick.run() == 0 and quick.drawn == ["a", "a"]
    assert quick.last()["a"]["attempts"] == 0
    quick.require_whole()


def test_an_image_that_was_lost_or_damaged_is_made_again(quick):
    """Damaged ones are only found where there is no line: those of a line are not opened."""
    quick.rows({"prompt": "a"}, {"prompt": "b"})
    assert quick.run() == 0
    first, second = (quick.output / quick.last()[f"0000000{number}"]["files"][0] for number in (0, 1))
    first.unlink()
    content = second.read_bytes()
    assert quick.run() == 0 and quick.drawn[2:] == ["00000000"]
    second.write_bytes(content[:-200])
    (quick.output / "manifest.jsonl").unlink()
    assert quick.run() == 0 and quick.drawn[3:] == ["00000001"]
    assert second.read_bytes() == content
    quick.require_whole()


def edit(quick):
    """A batch of edits, its first reference to be changed."""
    for name, colour in (("x.png", "red"), ("y.png", "green"), ("m.png", "white")):
        Image.new("RGB", (64, 64), colour).save(quick.folder / name)
    quick.rows(
        {"id": "a", "prompt": "p", "image": "x.png"},
        {"id": "b", "prompt": "p", "images": ["y.png"], "mask": "m.png"},
        {"id": "c", "prompt": "p", "n": 2},
    )


def change_content(quick):
    Image.new("RGB", (64, 64), "blue").save(quick.folder / "x.png")
    os.utime(quick.folder / "x.png", ns=(1, 1))


def change_mask(quick):
    Image.new("RGB", (64, 64), "black").save(quick.folder / "m.png")
    os.utime(quick.folder / "m.png", ns=(1, 1))


def change_rows(**columns):
    def change(quick):
        rows = [json.loads(line) for line in quick.table.read_text().splitlines()]
        quick.rows(rows[0], rows[1], {**rows[2], **columns})

    return change


def change_weights(quick):
    """Of the same names and shapes."""
    quick.model = shutil.copytree(TINY, quick.folder / "tiny")
    path = quick.model / "vae" / "diffusion_pytorch_model.safetensors"
    tensors = load_file(path)
    name = min(tensors)
    save_file({**tensors, name: tensors[name] + 1}, path)


def nothing(quick):
    pass


CHANGES = {
    "content of a reference": (change_content, [], "1 row has", "images in 1 (as a with other content)", "a"),
    "content of a mask": (change_mask, [], "1 row has", "images in 1 (as b with other content)", "b"),
    "steps": (
        nothing,
        ["--num_inference_steps", "3"],
        "3 rows have",
        "num_inference_steps in 3 (as a with 2 instead of 3)",
        "abc",
    ),
    "seed": (nothing, ["--seed", "7"], "3 rows have", "seed in 3 (as a with 42 instead of 7)", "abc"),
    "dtype": (
        nothing,
        ["--dtype", "bfloat16"],
        "3 rows have",
        "dtype in 3 (as a with 'float32' instead of 'bfloat16')",
        "abc",
    ),
    "tiles": (nothing, ["--vae_tiling"], "3 rows have", "vae_tiling in 3 (as a with False instead of True)", "abc"),
    "prompt": (change_rows(prompt="q"), [], "1 row has", "prompt in 1 (as c with 'p' instead of 'q')", "c"),
    "fewer": (change_rows(n=1), [], "1 row has", "n in 1 (as c with 2 instead of 1)", "c"),
    "more": (change_rows(n=3), [], "1 row has", "n in 1 (as c with 2 instead of 3)", "c"),
    "weights": (change_weights, [], "3 rows have", "model in 3 (as a with '", "abc"),
}
"""What is changed, the options, and of the error: how many rows, and which differ in what; the rows to make again."""


@pytest.mark.parametrize("change", CHANGES)
def test_what_was_made_with_other_settings_is_refused(quick, capsys, change):
    """And made again, exactly that, where it is asked for."""
    edit(quick)
    assert quick.run() == 0
    before = {name: (quick.output / name).read_bytes() for name in quick.files()}
    manifest = before["manifest.jsonl"]
    alter, options, rows, differences, again = CHANGES[change]
    words = f"{rows} images that were made with other settings: {differences}"
    alter(quick)
    capsys.readouterr()
    for further in ([], ["--dry_run"]):
        assert quick.run(*options, *further) == 2
        error = error_in(capsys.readouterr().err)
        assert words in error and error.endswith(
            "Choose another --output, or --overwrite to make exactly these again."
        )
    assert quick.drawn == ["a", "b", "c"]
    assert {name: (quick.output / name).read_bytes() for name in quick.files()} == before
    assert quick.run(*options, "--overwrite") == 0 and "".join(quick.drawn[3:]) == again
    assert (quick.output / "manifest.jsonl").read_bytes().startswith(manifest)
    quick.require_whole()  # also: no image of another n is left
    assert quick.run(*options) == 0 and len(quick.drawn) == 3 + len(again)


def test_another_lora_or_strength_is_another_model(quick, pipe, capsys):
    quick.rows({"id": "a", "prompt": "p"})
    loras = (Example.of(pipe.transformer, seed) for seed in (1, 2))
    first, second = (one.save(quick.folder / f"{number}.safetensors") for number, one in enumerate(loras))
    assert quick.run("--lora", str(first)) == 0
    for options in ([], ["--lora", str(second)], ["--lora", f"{first}:0.5"]):
        assert quick.run(*options) == 2
        assert "other settings: model in 1 (as a with '" in capsys.readouterr().err
    shutil.copyfile(first, quick.folder / "renamed.safetensors")
    assert quick.run("--lora", str(quick.folder / "renamed.safetensors")) == 0 and quick.drawn == ["a"]


def test_only_rows_of_which_images_are_there_are_refused(quick, capsys):
    """Of those that an operator has removed there is nothing to lose."""
    quick.rows({"id": "a", "prompt": "p"}, {"id": "b", "prompt": "p", "n": 2})
    assert quick.run() == 0
    shutil.rmtree(quick.output / "images")
    assert quick.run("--num_inference_steps", "3") == 0 and quick.drawn == ["a", "b", "a", "b"]
    (quick.output / quick.last()["a"]["files"][0]).unlink()
    quick.rows({"id": "a", "prompt": "p"}, {"id": "b", "prompt": "p", "n": 1})
    assert quick.run("--num_inference_steps", "3") == 2
    words = "1 row has images that were made with other settings: n in 1 (as b with 2 instead of 1)."
    assert words in capsys.readouterr().err


def test_many_conflicts_are_counted(quick, capsys):
    quick.rows(*({"id": f"i{number}", "prompt": "p"} for number in range(7)))
    assert quick.run() == 0
    (quick.output / quick.last()["i5"]["files"][0]).unlink()
    quick.rows({"id": "i0", "prompt": "q"}, *({"id": f"i{number}", "prompt": "p"} for number in range(1, 7)))
    assert quick.run("--guidance_scale", "2") == 2
    words = (
        "6 rows have images that were made with other settings: guidance_scale in 6 (as i0 with 4.0 instead of 2.0)"
    )
    assert f"{words}, prompt in 1 (as i0 with 'p' instead of 'q'). Choose" in capsys.readouterr().err


def test_an_image_of_somebody_else_is_not_replaced(quick, capsys):
    target = quick.output / image_files("a", 1)[0]
    target.parent.mkdir(parents=True)
    picture("other", 1).save(target)
    quick.rows({"id": "a", "prompt": "p"})
    assert quick.run() == 2
    assert "origin in 1 (as a with another than batch)" in capsys.readouterr().err and not quick.drawn


def test_a_table_that_changes_meanwhile(quick, capsys, monkeypatch):
    """What is already known is made; then the operator is told."""
    quick.rows(*({"prompt": f"p{number}"} for number in range(3)))

    def append(row):
        with quick.table.open("a") as file:
            file.write('{"prompt": "late"}\n')

    with monkeypatch.context() as patch:
        patch.setattr(loading, "load_painter", lambda settings: stand_in(settings, append))
        assert quick.run() == 2
    assert f"{quick.table} has changed since it was checked: start again." in capsys.readouterr().err
    assert quick.run() == 0
    assert len(quick.last()) == 6 and quick.drawn[-3:] == [f"{number:08d}" for number in (3, 4, 5)]
    quick.require_whole()


def test_a_reference_that_is_gone_when_its_turn_comes(quick, capsys):
    edit(quick)
    true_stat = os.stat
    calls = []

    def stat(name, *arguments, **options):
        if str(name).endswith("x.png"):
            calls.append(name)
            if len(calls) > 1:  # the survey has seen it
                raise FileNotFoundError(2, "No such file or directory", str(name))
        return true_stat(name, *arguments, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "stat", stat)
        assert quick.run() == 1
    assert quick.last()["a"]["error"] == f"{quick.folder / 'x.png'} cannot be read: No such file or directory."
    assert quick.drawn == ["b", "c"]


def test_shards_share_a_folder(quick, capsys):
    quick.rows(*({"prompt": f"p{number}"} for number in range(7)), {"prompt": "p", "height": 63})
    assert quick.run("--shard", "0/3") == 0 and quick.drawn == ["00000000", "00000003", "00000006"]
    assert "3 rows: 3 to make (3 images)." in capsys.readouterr().out
    assert quick.run("--shard", "1/3") == 1 and quick.run("--shard", "2/3") == 0
    assert sorted(quick.drawn) == [f"{number:08d}" for number in range(7)]
    names = [name for name in quick.files() if not name.startswith("images/")]
    kinds = (("manifest", "jsonl"), ("run", "json"))
    assert names == [f"{stem}.{index}-of-3.{kind}" for stem, kind in kinds for index in range(3)]
    # Another number of shards finds all of it, and so does none.
    assert quick.run("--shard", "0/2") == 0 and quick.run() == 1 and len(quick.drawn) == 7
    assert quick.last()["00000007"]["error"].startswith("height must be")


def test_the_memory_of_a_row_is_small(tmp_path):
    """Of 100,000 rows that were made, some 15 MB for the whole run."""
    count = 1000
    table = write_rows(
        tmp_path / "r.jsonl", [{"prompt": f"a prompt of usual length, number {n}"} for n in range(count)]
    )
    lines = (
        json.dumps({"id": f"{n:08d}", "status": "ok", "fingerprint": "ab" * 32, "files": ["x"], "sha256": ["ab" * 32]})
        for n in range(count)
    )
    (tmp_path / "manifest.jsonl").write_text("".join(f"{line}\n" for line in lines))
    surveyor = Surveyor(table, Defaults(height=64, width=64), Checkpoint.open(TINY), OutputFolder(tmp_path), {})
    surveyor.survey()  # what is imported for the first row stays
    tracemalloc.start()
    survey = surveyor.survey()
    # Not the table of interned strings, which sometimes grows by megabytes.
    snapshot = tracemalloc.take_snapshot().filter_traces([tracemalloc.Filter(False, "*pathlib*")])
    tracemalloc.stop()
    assert survey.count(TO_MAKE) == survey.rows == count, "their files are gone"
    assert sum(one.size for one in snapshot.statistics("filename")) < 250 * count
