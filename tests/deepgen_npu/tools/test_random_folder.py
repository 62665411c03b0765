"""Where random checkpoints are written: completely or not at all, and never over what is somebody's."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
from random_folders import TINY_SHA256, files_of, sha256

from deepgen_npu import CheckpointError
from deepgen_npu.checkpoint.index_keys import RANDOM_WEIGHTS_KEY
from deepgen_npu.tools.random_checkpoint import is_random_checkpoint, write


def test_a_random_checkpoint_is_replaced(tmp_path: Path) -> None:
    folder = write(tmp_path / "model", seed=1)
    before = sha256(folder)
    assert write(folder) == folder
    assert sha256(folder) == TINY_SHA256 != before
    assert list(tmp_path.iterdir()) == [folder]


def test_an_empty_folder_and_missing_parents_are_fine(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    assert is_random_checkpoint(write(tmp_path / "empty"))
    assert is_random_checkpoint(write(tmp_path / "new" / "parents" / "model"))


@pytest.mark.parametrize(
    "content",
    [
        {"notes.txt": "mine"},
        {"vae/config.json": "{}"},
        {"model_index.json": '{"_class_name": "X"}', "vae/config.json": "{}"},
        {"model_index.json": f'{{"{RANDOM_WEIGHTS_KEY}": false}}'},
        {"model_index.json": "not json"},
        {"model_index.json": f'{{"{RANDOM_WEIGHTS_KEY}": true}}', "lora.safetensors": "mine"},
    ],
)
def test_a_foreign_folder_is_refused_and_untouched(tmp_path: Path, content: dict[str, str]) -> None:
    folder = tmp_path / "model"
    for name, text in content.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    before = files_of(folder)
    with pytest.raises(CheckpointError, match="nothing was written"):
        write(folder)
    assert files_of(folder) == before
    assert list(tmp_path.iterdir()) == [folder]


def test_a_folder_of_empty_folders_is_not_empty(tmp_path: Path) -> None:
    (tmp_path / "model" / "mine").mkdir(parents=True)
    with pytest.raises(CheckpointError, match="not empty"):
        write(tmp_path / "model")
    assert (tmp_path / "model" / "mine").is_dir()


def test_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "model").write_text("mine")
    with pytest.raises(CheckpointError, match="must be a folder, got a file"):
        write(tmp_path / "model")
    assert (tmp_path / "model").read_text() == "mine"


@pytest.mark.skipif(os.name == "nt", reason="modes of files are those of POSIX")
def test_others_may_read_the_weights_as_far_as_the_umask_says(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        folder = write(tmp_path / "model")
    finally:
        os.umask(before)
    modes = {path.stat().st_mode & 0o777 for path in folder.rglob("*") if path.is_file()}
    assert modes == {0o640}


@pytest.mark.parametrize("earlier", [False, True])
def test_nothing_half_written_remains(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, earlier: bool) -> None:
    if earlier:
        write(tmp_path / "model")
    seen: list[list[str]] = []
    save_file = safetensors.torch.save_file

    def full_disk(tensors: Any, path: Path, **options: Any) -> None:
        save_file(tensors, path, **options)
        seen.append(sorted(path.name for path in tmp_path.iterdir()))
        if path.parent.name == "transformer":
            raise OSError("No space left on device")

    monkeypatch.setattr(safetensors.torch, "save_file", full_disk)
    with pytest.raises(OSError, match="No space"):
        write(tmp_path / "model", seed=1)
    assert len(seen) == 4
    # What is being written is hidden, so that nobody takes it for a model.
    assert all([name for name in names if not name.startswith(".")] == ["model"] * earlier for names in seen)
    assert [path.name for path in tmp_path.iterdir()] == ["model"] * earlier
    if earlier:
        assert sha256(tmp_path / "model") == TINY_SHA256


def test_the_earlier_checkpoint_comes_back_when_the_last_step_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path / "model")
    rename = Path.rename

    def failing(self: Path, target: Path) -> Path:
        if Path(target).name == "model" and not self.name.endswith(".earlier"):
            raise OSError("denied")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", failing)
    with pytest.raises(OSError, match="denied"):
        write(tmp_path / "model", seed=1)
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
    assert sha256(tmp_path / "model") == TINY_SHA256
