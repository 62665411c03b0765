"""Quantised weights in each ComfyUI: its own operators where it has them, on the CPU and on a simulated NPU."""

from __future__ import annotations

import importlib.util
import shutil
from pathlib import Path
from typing import Any

import pytest
from comfyui_fixtures import each_comfyui
from golden import TINY
from probes import run_probe
from quantized_folders import write_quantized

from deepgen_npu.quantization.formats import FORMATS


LAYERS = 53
"""Quantised layers of the tiny DiT."""
OF_A_STEP = LAYERS - 1
"""A step does not run the last block's queries of the context, which nothing reads."""

checkout = each_comfyui("that quantised weights run on its own operators, and on an NPU on those of Ascend")


@pytest.fixture(scope="session")
def models(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("quantized")
    shutil.copytree(TINY, folder / "tiny")
    for title in FORMATS:
        write_quantized(folder / title, title)
    return folder


def probe(checkout, models: Path, where: str, packages: Path | None = None) -> dict[str, Any]:
    path = "" if packages is None else str(packages)
    found = run_probe(checkout, "quantized_probe.py", models, where, PYTHONPATH=path)
    for title, row in found.items():
        print(f"ComfyUI {checkout.id}, {where}, {title}: {row}")
    return found


def has_operators(checkout) -> bool:
    """0.8 has those of fp8 with comfy-kitchen, which its environment here lacks; 0.3.64 has none."""
    return checkout.id == "0.33.0"


@pytest.fixture(scope="module")
def on_cpu(checkout, models) -> dict[str, Any]:
    return probe(checkout, models, "cpu")


@pytest.mark.parametrize("title", FORMATS)
def test_the_image_is_that_of_the_library(on_cpu, title):
    """To the rounding of float32: weights are dequantised layer by layer, inputs stay as they are."""
    assert on_cpu[title]["of the library"] < 2e-5
    assert on_cpu[title]["of plain weights"] < (0.12 if title == "fp8" else 0.04)


@pytest.mark.parametrize("title", FORMATS)
def test_weights_stay_quantised_where_it_has_operators(checkout, on_cpu, title):
    found = on_cpu[title]
    if has_operators(checkout):
        assert found["layers"] == LAYERS and found["log"] == [] and found["bytes"] < 0.65
        assert found["keys"] == ["bias", "comfy_quant", "weight", "weight_scale"]  # what Save Model writes
        return
    assert found["layers"] == 0 and found["bytes"] == 1.0 and found["keys"] == ["bias", "weight"]
    # One line, though DiT, VLM and connector come one after the other; of int8 there are two formats.
    log = [line for one in on_cpu.values() for line in one["log"]]
    assert sorted(line.split(":")[0] for line in log) == [
        f"This ComfyUI has no operators for {kind} weights" for kind in ("fp8", "int8")
    ]


@pytest.mark.parametrize("title", FORMATS)
def test_a_lora_on_top(on_cpu, title):
    """By ComfyUI's own loader, on a quantised layer and another one: as near to plain weights as without it."""
    found = on_cpu[title]
    assert found["the LoRA"] > 0.2
    assert found["with a LoRA"] < 1.5 * found["of plain weights"]
    assert found["by our node"] < found["of plain weights"]
    assert found["after it"] == 0.0


# On an NPU


@pytest.fixture(scope="module")
def on_npu(checkout, models, tmp_path_factory) -> dict[str, Any]:
    """With a comfy-kitchen that has a backend for Ascend, and then without that backend."""
    if not has_operators(checkout):
        pytest.skip("this version has no operators for int8: it runs plain weights, as on the CPU")
    spec = importlib.util.find_spec("comfy_kitchen")
    assert spec is not None and spec.origin is not None, "make environments installs comfy-kitchen"
    packages = tmp_path_factory.mktemp("packages")
    (packages / "comfy_kitchen").symlink_to(Path(spec.origin).parent)
    return probe(checkout, models, "npu", packages)


@pytest.mark.parametrize("title", ["int8_convrot", "int8"])
def test_each_layer_runs_on_ascends_operators(on_npu, title):
    found = on_npu[title]
    counts = {name.removeprefix("npu::npu_"): count for name, count in found["a step"].items()}
    assert counts.pop("quant_matmul") == OF_A_STEP == sum(counts.values())
    assert counts.keys() == ({"dynamic_quant", "rotate_quant"} if title == "int8_convrot" else {"dynamic_quant"})
    assert found["log"] == []
    assert found["of plain weights"] < 0.06 and found["with a LoRA"] < 0.06 and found["by our node"] < 0.06
    assert found["streamed"] == found["after it"] == 0.0


def test_a_comfy_kitchen_without_ascend_never_computes_on_the_host(on_npu):
    found = on_npu["without ascend"]
    assert found["a step"] == {"comfy_kitchen::dequantize_int8_convrot_weight_dtype": OF_A_STEP}
    assert len(found["log"]) == 1 and "comfy-kitchen >= 0.2.40 has them" in found["log"][0]
    assert found["of plain weights"] < 0.06 and found["streamed"] == 0.0


def test_float32_is_not_computed_on_the_host_either(on_npu):
    found = on_npu["in float32"]
    assert found["a step"] == {"comfy_kitchen::dequantize_int8_convrot_weight_dtype": OF_A_STEP}
    assert len(found["log"]) == 1 and "Choose auto to multiply in int8" in found["log"][0]


def test_fp8_is_refused_with_the_format_to_take(on_npu):
    error = on_npu["fp8"]["error"]
    assert "Ascend NPUs have no float8. Take int8_convrot" in error and "quantize SOURCE TARGET" in error
