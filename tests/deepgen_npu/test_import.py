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
    ["deepgen_npu", "deepgen_npu.cli", "deepgen_npu.checkpoint", "deepgen_npu.download", "deepgen_npu.image_files"],
)
def test_light_modules_import_nothing_heavy(module):
    heavy = ("torch", "diffusers", "transformers", "accelerate", "huggingface_hub", "numpy")
    assert run(f"import sys, {module}; print([name for name in {heavy} if name in sys.modules])") == "[]"


def test_the_library_never_imports_comfyui():
    for path in (ROOT / "deepgen_npu").glob("*.py"):
        for line in path.read_text(encoding="utf-8").splitlines():
            words = line.split()
            if words[:1] in (["import"], ["from"]):
                assert words[1].split(".")[0] not in ("comfy", "comfy_api", "folder_paths", "latent_preview"), path


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
    for path in [ROOT / "__init__.py", *(ROOT / "nodes").glob("*.py"), *(ROOT / "deepgen_npu").glob("*.py")]:
        text = path.read_text(encoding="utf-8")
        for word in ("torch.cuda", '.to("cuda', ".cuda()", "torch.autocast", "trust_remote_code=True", "torch.load("):
            assert word not in text, (path, word)
