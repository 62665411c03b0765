"""Batches, and a hub that the tests' own process downloads from; `test_download` has one for other processes."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from batch_files import batch, quick  # noqa: F401
from hub_server import DATA, Hub, serve

from deepgen_npu import npu_versions
from deepgen_npu.hub.download import MODEL_ID


@pytest.fixture
def python_of_all_stacks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever runs the tests: for Python 3.11 there are packages of every torch_npu."""
    monkeypatch.setattr(npu_versions, "PYTHON", (3, 11))


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Hub]:
    """A hub that this process asks; caches are in tmp_path/box."""
    from huggingface_hub import constants

    from deepgen_npu.hub import transfer

    with serve(MODEL_ID, dict(DATA)) as server:
        for name in list(os.environ):
            if name.startswith(("HF_", "TRANSFORMERS_", "MODELSCOPE_")) or "proxy" in name.lower():
                monkeypatch.delenv(name)
        monkeypatch.setattr(constants, "ENDPOINT", server.url)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "box" / "hf"))
        monkeypatch.setenv("MODELSCOPE_ENDPOINT", server.url)
        monkeypatch.setenv("MODELSCOPE_API_TOKEN", "secret of ModelScope")
        monkeypatch.setenv("MODELSCOPE_CACHE", str(tmp_path / "box" / "ms"))
        monkeypatch.setenv("HF_TOKEN", "secret of the hub")
        monkeypatch.setenv("HF_HUB_DISABLE_PROGRESS_BARS", "1")
        monkeypatch.setattr(transfer, "ATTEMPTS", 2)
        yield server
