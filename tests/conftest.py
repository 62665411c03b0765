"""Fixtures on the tiny checkpoint, whose classes are the real ones."""

from __future__ import annotations

import os
import shutil
from pathlib import Path


# Before torch is imported, and for all children: the operators of the tiny models are so small that a second thread
# only spins, and a child's bits are those of its parent only if both add up in the same order.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
import torch
from comfyui_fixtures import comfy, comfy_browser, comfy_client, comfy_page, report_missing_comfyui  # noqa: F401
from golden import TINY
from property_settings import drawn as drawn_cases

from deepgen_npu import DeepGenPipeline
from deepgen_npu.tools.random_checkpoint import write as write_random_checkpoint
from dev.comfyui.server import ServerOptions
from dev.npu_simulator.report import sections as simulated_sections


_golden_rows: list[tuple[str, str, float]] = []


def lay_out_models(base: Path) -> None:
    """models/deepgen of the test servers: the published name, the reference, and two that cannot work."""
    models = base / "models" / "deepgen"
    write_random_checkpoint(models / "DeepGen-1.0-diffusers", size="tiny")
    shutil.copytree(TINY, models / "somebody" / "reference")
    broken = Path(shutil.copytree(TINY, models / "broken"))
    (broken / "vae" / "diffusion_pytorch_model.safetensors").unlink()
    shutil.copytree(TINY, base / "elsewhere")
    shutil.copytree(TINY, base / "more_models" / "from_extra_path")
    section = f"deepgen_models:\n    deepgen: {base / 'more_models'}\n"
    (base / "extra_model_paths.yaml").write_text(section, encoding="utf-8")


@pytest.fixture(scope="session")
def comfy_options() -> ServerOptions:
    return ServerOptions(prepare=lay_out_models)


@pytest.fixture(scope="session")
def pipe() -> DeepGenPipeline:
    """The tiny checkpoint in float32 on the CPU; leave it as you found it."""
    pipe = DeepGenPipeline.from_pretrained(TINY, torch_dtype=torch.float32, device="cpu")
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    """A copy of the tiny checkpoint, to break."""
    return Path(shutil.copytree(TINY, tmp_path / "tiny"))


@pytest.fixture
def golden_table():
    """Rows (case, tensor, difference) appended here are printed at the end of the run."""
    return _golden_rows


def pytest_terminal_summary(terminalreporter):
    report_missing_comfyui(terminalreporter)
    if _golden_rows:
        terminalreporter.section("largest difference to the original implementation (float32, CPU)")
        for case, tensor, difference in _golden_rows:
            terminalreporter.write_line(f"{case:28} {tensor:32} {difference:.2e}")
    if drawn_cases:
        terminalreporter.section(f"property-based tests: {sum(drawn_cases.values())} cases")
        for kind, count in sorted(drawn_cases.items()):
            terminalreporter.write_line(f"{kind:40} {count:6}")
    for title, lines in simulated_sections():
        terminalreporter.section(title)
        for line in lines:
            terminalreporter.write_line(line)
