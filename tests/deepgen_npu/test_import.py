"""What importing costs and what it must not touch."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest


ROOT = Path(__file__).parents[2]


def run(code: str) -> str:
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT
    ).stdout.strip()


@pytest.mark.parametrize(
    "module",
    [
        "deepgen_npu",
        *(
            f"deepgen_npu.{name}"
            for name in ("cli", "checkpoint.folder", "hub.download", "image_files", "locations", "lora.file")
        ),
        *(
            f"deepgen_npu.{name}"
            for name in ("checks", "dtypes", "errors", "formatting", "lora.file", "model.architecture", "sizes")
        ),
    ],
)
def test_light_modules_import_nothing_heavy(module):
    heavy = ("torch", "diffusers", "transformers", "accelerate", "huggingface_hub", "numpy")
    assert run(f"import sys, {module}; print([name for name in {heavy} if name in sys.modules])") == "[]"


@pytest.mark.parametrize("module", ["deepgen_npu.cli.batch_run", "deepgen_npu.tools.batch.survey"])
def test_rows_are_checked_without_torch(module):
    heavy = ("torch", "diffusers", "transformers", "accelerate", "huggingface_hub", "ray", "pyarrow")
    assert run(f"import sys, {module}; print([name for name in {heavy} if name in sys.modules])") == "[]"


def test_public_names_are_there():
    import deepgen_npu

    for name in deepgen_npu.__all__:
        assert getattr(deepgen_npu, name).__name__ == name
    with pytest.raises(AttributeError, match="no attribute 'Nothing'"):
        deepgen_npu.Nothing  # noqa: B018


def test_versions_agree():
    import deepgen_npu

    lines = (ROOT / "pyproject.toml").read_text(encoding="utf-8").splitlines()
    assert f'version = "{deepgen_npu.__version__}"' in lines


def test_requirements_agree():
    """ComfyUI-Manager reads one, pip and the registry the other."""
    lines = (ROOT / "requirements.txt").read_text(encoding="utf-8").splitlines()
    wanted = {line for line in lines if line and not line.startswith("#")}
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    dependencies = re.search(r"^dependencies = \[\n(.*?)^\]$", project, re.MULTILINE | re.DOTALL)
    assert dependencies is not None
    assert {line.strip(' ,"') for line in dependencies[1].splitlines()} == wanted
    # Whatever else they hold: nothing that replaces somebody's torch.
    assert not any(re.match(r"torch|torch_npu|torchvision|numpy", line) for line in wanted)
    assert all("==" not in line and "<" not in line for line in wanted)


def test_no_device_is_named_in_the_pack():
    """ComfyUI and `devices` decide; a literal elsewhere would send work to the wrong place."""
    paths = [ROOT / "__init__.py", *(ROOT / "nodes").rglob("*.py"), *(ROOT / "deepgen_npu").rglob("*.py")]
    assert len(paths) > 70
    for path in paths:
        text = path.read_text(encoding="utf-8")
        for word in ("torch.cuda", '.to("cuda', ".cuda()", "torch.autocast", "trust_remote_code=True", "torch.load("):
            assert word not in text, (path, word)
