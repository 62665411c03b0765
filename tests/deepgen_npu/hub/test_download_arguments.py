"""What can be known of a download without a hub: its arguments, its size, its patterns, its imports."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from deepgen_npu.errors import DownloadError
from deepgen_npu.formatting import format_download
from deepgen_npu.hub.download import DATA_FILES, DOWNLOAD_SIZE, download, find_downloaded
from deepgen_npu.tools.random_model import RandomModel


ROOT = Path(__file__).resolve().parents[3]


def test_bad_arguments() -> None:
    with pytest.raises(ValueError, match=r"^source must be one of huggingface, modelscope, got 'ftp'\.$"):
        download("ftp")
    with pytest.raises(ValueError, match=r"^revision must be a branch, a tag or a commit, got '\.\./x'\.$"):
        download(revision="../x")
    for model_id in ("", "name", "../name", "owner/../x", "owner/name/x", "https://x/y"):
        with pytest.raises(ValueError, match=f"^model_id must be of the form 'owner/name', got '{model_id}'\\.$"):
            download(model_id=model_id)
        assert find_downloaded(model_id) is None
    assert issubclass(DownloadError, RuntimeError)


def test_the_size_of_the_download_is_that_of_the_published_weights() -> None:
    """Which are stored with the connector in float32, so it is not the size in memory."""
    checkpoint = RandomModel.of_size("published").checkpoint
    assert format_download(checkpoint.nbytes()) == DOWNLOAD_SIZE == "14.3 GB (13.4 GiB)"


def test_patterns_are_safe_for_both_hubs() -> None:
    assert not [pattern for pattern in DATA_FILES if pattern.endswith((".py", ".bin", "*"))]
    assert not [pattern for pattern in DATA_FILES if ".*" in pattern or "," in pattern]


def test_import_is_cheap() -> None:
    """The module brings in no hub library and no framework."""
    code = (
        "import sys, deepgen_npu.hub.download\n"
        "names = 'huggingface_hub modelscope torch diffusers transformers requests httpx tqdm'\n"
        "print([name for name in names.split() if name in sys.modules])\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.strip() == "[]"
