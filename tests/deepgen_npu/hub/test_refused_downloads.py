"""Downloads that are not possible: one clear error each."""

from __future__ import annotations

from pathlib import Path

import pytest
from hub_server import DATA, EACH_SOURCE, WEIGHTS, Hub, assert_clear
from platforms import not_on_windows

from deepgen_npu.checkpoint.folder import resolve_model
from deepgen_npu.errors import DownloadError
from deepgen_npu.hub import transfer
from deepgen_npu.hub.download import MODEL_ID, download


def test_two_names_for_one_file(hub: Hub, tmp_path: Path) -> None:
    for other in ("VAE/Config.json", "model_index.json/config.json"):
        hub.files = {**DATA, other: b"{}"}
        with pytest.raises(DownloadError, match="are both listed"):
            download(to=tmp_path / "model")
    assert not (tmp_path / "model").exists()


def test_two_downloads_into_one_folder(hub: Hub, tmp_path: Path) -> None:
    pytest.importorskip("fcntl")
    unfinished = tmp_path / "model" / f"{WEIGHTS}.{hub.etag(WEIGHTS)[:8]}.incomplete"
    unfinished.parent.mkdir(parents=True)
    with transfer._claimed(unfinished), pytest.raises(DownloadError, match="by another download"):
        download(to=tmp_path / "model")
    download(to=tmp_path / "model")


def test_from_pretrained_goes_the_same_way(hub: Hub, tmp_path: Path) -> None:
    hub.contents[WEIGHTS] = bytes(len(DATA[WEIGHTS]))
    with pytest.raises(
        DownloadError, match=rf"the SHA-256 of {WEIGHTS} must be [0-9a-f]{{64}}, as listed, got [0-9a-f]{{64}}"
    ) as caught:
        resolve_model(MODEL_ID)
    assert_clear(caught.value)
    assert not list((tmp_path / "box").rglob("*.safetensors"))


@pytest.mark.parametrize("endpoint", ["", "hub", "ftp://hub", "http://", "http://[", "http://hub:port", "file:///x"])
def test_addresses_that_are_not_urls(endpoint: str, hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "ENDPOINT", endpoint)
    with pytest.raises(
        DownloadError, match=r"^the address of the hub must be a URL that begins with https://, got '.*'\.$"
    ):
        download(to=tmp_path / "model")


@not_on_windows("Python guesses the home folders of other users")
def test_folders_that_are_not_possible(hub: Hub, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"mine")
    (tmp_path / "model" / WEIGHTS).mkdir(parents=True)
    for to in ("~nobody-of-this-name/x", "a\0b", tmp_path / "file", tmp_path / "model", tmp_path / ("x" * 300)):
        with pytest.raises(DownloadError) as caught:
            download(to=to)
        assert_clear(caught.value)
    assert (tmp_path / "file").read_bytes() == b"mine"


@EACH_SOURCE
def test_a_token_is_never_shown(source: str, hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in ("HF_TOKEN", "MODELSCOPE_API_TOKEN"):
        monkeypatch.setenv(variable, "hf_secret\x1b")
    with pytest.raises(DownloadError, match="must be printable ASCII") as caught:
        download(source, tmp_path / "model")
    assert "hf_secret" not in str(caught.value)
