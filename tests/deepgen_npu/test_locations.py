"""Where the model is, and what to do when it is nowhere."""

from __future__ import annotations

import pytest

from deepgen_npu import locations
from deepgen_npu.errors import UsageError
from deepgen_npu.hub.download import DOWNLOAD_SIZE, MODEL_ID


@pytest.fixture
def nothing_downloaded(monkeypatch):
    monkeypatch.setattr(locations, "find_downloaded", lambda: None)
    monkeypatch.setattr(locations, "comfyui_target", lambda: None)


def test_commands_can_be_copied_line_by_line(nothing_downloaded):
    with pytest.raises(UsageError) as caught:
        locations.downloaded_model()
    first, download, options, demo = str(caught.value).splitlines()
    assert first == (
        f"No --model_path was given and {MODEL_ID} is not downloaded. To download {MODEL_ID}, {DOWNLOAD_SIZE}:"
    )
    assert download == "    python -m deepgen_npu download"
    assert "--to FOLDER" in options and "--source modelscope" in options
    assert demo == f'    --model_path "{locations.DEMO_FOLDER}"'


def test_a_demo_that_is_not_there_is_not_offered(nothing_downloaded, monkeypatch, tmp_path):
    monkeypatch.setattr(locations, "DEMO_FOLDER", tmp_path / "demo_checkpoint")
    with pytest.raises(UsageError) as caught:
        locations.downloaded_model()
    assert "demo" not in str(caught.value)
    assert str(caught.value).splitlines()[1] == "    python -m deepgen_npu download"


def test_the_cache_of_a_user_without_a_home(monkeypatch, tmp_path):
    def expanduser(path):
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(locations.Path, "expanduser", expanduser)
    monkeypatch.setattr(locations.tempfile, "gettempdir", lambda: str(tmp_path))
    assert locations.cache_folder() == tmp_path / "deepgen_npu"


def test_the_folder_in_comfyui_comes_first(monkeypatch, tmp_path):
    monkeypatch.setattr(locations, "find_downloaded", lambda: tmp_path / "cache")
    monkeypatch.setattr(locations, "comfyui_target", lambda: tmp_path / "missing")
    assert locations.downloaded_model() == tmp_path / "cache"
    monkeypatch.setattr(locations, "comfyui_target", lambda: tmp_path)
    assert locations.downloaded_model() == tmp_path
