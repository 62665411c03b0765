"""A model by a path, an id or a cache: which folder it is, or what to do."""

from __future__ import annotations

import shutil

import pytest
from golden import TINY

from deepgen_npu import CheckpointError
from deepgen_npu.checkpoint.folder import find_model_folder, resolve_model
from deepgen_npu.errors import DownloadError


@pytest.mark.parametrize("path", ["..", "~nobody-of-this-name/x", "a" * 5000, "\0", "."])
def test_paths_that_are_none(path, tmp_path, monkeypatch):
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path / "empty")
    with pytest.raises(CheckpointError, match=r"model_index\.json is missing|There is no folder"):
        find_model_folder(path)


def test_the_modelscope_spelling(tmp_path):
    shutil.copytree(TINY, tmp_path / "DeepGen-1___0-diffusers")
    assert find_model_folder(tmp_path / "DeepGen-1.0-diffusers").name == "DeepGen-1___0-diffusers"


def test_a_cache_that_holds_one_model(tmp_path):
    folder = tmp_path / "cache" / "deepgenteam" / "DeepGen-1___0-diffusers"
    shutil.copytree(TINY, folder)
    assert find_model_folder(tmp_path / "cache") == folder
    shutil.copytree(TINY, folder.with_name("other"))
    with pytest.raises(CheckpointError, match=r"contains several checkpoints \(.*\): pass one of them"):
        find_model_folder(tmp_path / "cache")


def test_nothing_there(tmp_path):
    for wrong, words in (
        (
            tmp_path / "nothing",
            r"There is no folder .*nothing\. To download deepgenteam/\S+, 14\.3 GB \(13\.4 GiB\):\n    python",
        ),
        (tmp_path, rf"^{tmp_path}/model_index\.json is missing\. Run the download again:\n"),
        (TINY / "model_index.json", r"must be a folder with model_index\.json, got a file\."),
    ):
        with pytest.raises(CheckpointError, match=words):
            resolve_model(wrong)


def test_an_id_in_no_cache_is_downloaded(tmp_path, monkeypatch):
    half = tmp_path / "half"
    half.mkdir()
    (half / "model_index.json").write_text("{}", encoding="utf-8")
    for found in (None, half):  # an interrupted download continues
        monkeypatch.setattr("deepgen_npu.checkpoint.folder.find_downloaded", lambda model_id, found=found: found)
        asked = []
        monkeypatch.setattr(
            "deepgen_npu.checkpoint.folder.download", lambda model_id, asked=asked: asked.append(model_id) or TINY
        )
        assert resolve_model("somebody/tiny-1.0") == TINY and asked == ["somebody/tiny-1.0"]


def test_a_mistyped_path_is_not_only_a_network_error(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(DownloadError, match=r"There is no folder models/tiny here.*HF_HUB_OFFLINE is set"):
        resolve_model("models/tiny")


def test_an_id_in_a_cache_needs_no_network(tmp_path, monkeypatch):
    folder = tmp_path / "models" / "somebody" / "tiny-1___0"
    shutil.copytree(TINY, folder)
    monkeypatch.setenv("MODELSCOPE_CACHE", str(tmp_path))
    monkeypatch.setattr("deepgen_npu.checkpoint.folder.download", lambda **_: pytest.fail("it was downloaded"))
    assert resolve_model("somebody/tiny-1.0") == folder
