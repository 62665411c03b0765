"""DeepGen LoRA in each ComfyUI: every trainer's files, against weights that were merged by hand and by the library."""

from __future__ import annotations

import shutil
from typing import Any

import pytest
from comfyui_fixtures import each_comfyui
from golden import TINY
from lora_cases import write_loras, write_unusable
from probes import run_probe


ROUNDING = 1e-5
SEEN = 1e-2

checkout = each_comfyui("that DeepGen LoRA applies the files of every trainer")


@pytest.fixture(scope="module")
def found(checkout, tmp_path_factory) -> dict[str, Any]:
    models = tmp_path_factory.mktemp("loras")
    shutil.copytree(TINY, models / "tiny")
    names = write_loras(models / "loras", models / "expected")
    write_unusable(models / "loras")
    found = run_probe(checkout, "lora_probe.py", models, *names)
    apart = [max(row[column] for row in found["styles"].values()) for column in (0, 1)]
    print(f"ComfyUI {checkout.id}: {len(names)} LoRAs, weights {apart[0]} from the definition, {apart[1]} from merged")
    return found


def test_every_style_is_the_merged_weights(found):
    assert len(found["styles"]) == 18
    for name, (by_definition, by_library, changed, base_again) in found["styles"].items():
        assert by_definition < ROUNDING and by_library < ROUNDING, (name, by_definition, by_library)
        assert changed > SEEN, name
        assert base_again == 0, f"{name}: the loader's weights are what they were, to the bit"
    assert found["patches of the loader's model"] == 0


def test_loras_add_up_and_cancel_out(found):
    assert found["half and half"] < ROUNDING
    assert found["there and back"] < ROUNDING
    assert found["none"] == [0, False, 0]


def test_on_a_model_that_another_node_has_changed(found):
    assert found["on a changed MODEL"][0] < ROUNDING
    assert found["on a changed MODEL"][1], "the pipeline draws with it, too"


@pytest.mark.parametrize("name", ["kohya", "dora"])
def test_the_pipeline_draws_as_ksampler_does(found, name):
    seen, ksampler, streamed = found[f"drawn with {name}.safetensors"]
    assert seen > SEEN
    assert ksampler == 0
    assert streamed < ROUNDING, "ComfyUI may leave the weights on the CPU"
    assert found["drawn without again"] == 0


def test_a_copy_of_a_patch_does_the_same(found):
    assert found["copied"] == 0


def test_keys_without_effect_are_named(found):
    (warning,) = [text for text in found["log"] if "no effect" in text]
    assert "text_encoder.layers.0.lora_A.weight" in warning and "with more.safetensors" in warning


def test_what_cannot_be_applied_is_refused(found):
    other, columns, pickled, nowhere = found["refused"]
    assert other.startswith("LoraError: ") and "lora_unet_double_blocks_0_img_attn_qkv" in other
    assert columns.startswith("LoraError: ") and "attn.to_q, transformer_blocks.0.attn.to_k" in columns
    for error in (pickled, nowhere):
        assert error.startswith("ValueError: lora_name must be one of ") and "'kohya.safetensors'" in error
    assert found["another loader"].startswith("ValueError: model must be that of the DeepGen Loader of pipeline")
    assert found["no model of DeepGen"].startswith("TypeError: model must be a MODEL of DeepGen Loader, got Linear")
    right, typed, wired = found["before the queue"]
    assert right is True and wired is True
    assert typed.startswith("lora_name must be a .safetensors file in ") and "got 'pickled.pt'" in typed
    assert "pickled.pt" not in found["list"] and "alpha beside/adapter_model.safetensors" in found["list"]


def test_a_changed_file_runs_again(found):
    """Also the settings that PEFT keeps beside it; None is a name over a wire, which may be any."""
    assert found["changed"] == [False, True, True]
