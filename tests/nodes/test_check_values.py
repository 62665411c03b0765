"""What inputs take and refuse, by their type: the rules alone, without ComfyUI. `test_inputs` has the nodes."""

from __future__ import annotations

from fractions import Fraction
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from load_module import pack_module


check_values = pack_module("nodes.check_values")
check_value = check_values.check_value


def declare(io_type: str, name: str = "given", optional: bool = False, **options: Any) -> SimpleNamespace:
    """As ``io.Input`` of ComfyUI."""
    return SimpleNamespace(id=name, io_type=io_type, optional=optional, **options)


WIDTH = declare("INT", "width", min=16, max=6144, step=16)
STEPS = declare("INT", "steps", min=1, max=1000, step=None)
CFG = declare("FLOAT", "cfg", min=0.0, max=30.0)
PROMPT = declare("STRING", "prompt")
CAPTURE = declare("BOOLEAN", "capture_graph")
DTYPE = declare("COMBO", "dtype", options=["auto", "float32"])
IMAGE = declare("IMAGE", "image")
SHAPE = "[batch, height, width, channels] with 1, 3 or 4 channels"


@pytest.mark.parametrize("value", [512, 512.0, np.float64(512), np.int64(512), Fraction(512)])
def test_an_integer_of_any_type_is_an_int(value):
    found = check_value(WIDTH, value)
    assert (found, type(found)) == (512, int)


@pytest.mark.parametrize(
    ("declared", "value", "message"),
    [
        (WIDTH, 500, "width must be a multiple of 16 from 16 to 6144, got 500 (nearest: 496, 512)."),
        (WIDTH, 8, "width must be a multiple of 16 from 16 to 6144, got 8 (nearest: 16)."),
        (WIDTH, 6160.0, "width must be a multiple of 16 from 16 to 6144, got 6160.0 (nearest: 6144)."),
        (WIDTH, 500.5, "width must be a multiple of 16 from 16 to 6144, got 500.5."),
        (WIDTH, float("nan"), "width must be a multiple of 16 from 16 to 6144, got nan."),
        (STEPS, 0, "steps must be an integer from 1 to 1000, got 0."),
        (STEPS, True, "steps must be an integer from 1 to 1000, got True."),
        (STEPS, "3", "steps must be an integer from 1 to 1000, got '3'."),
        (CFG, 31, "cfg must be a number from 0 to 30, got 31."),
        (CFG, float("nan"), "cfg must be a number from 0 to 30, got nan."),
        (CFG, None, "cfg must be a number from 0 to 30, got None."),
        (PROMPT, 7, "prompt must be a string, got 7."),
        (CAPTURE, 1, "capture_graph must be true or false, got 1."),
        (DTYPE, "int4", "dtype must be one of 'auto', 'float32', got 'int4'."),
        (DTYPE, ["auto"], "dtype must be one of 'auto', 'float32', got ['auto']."),
        (IMAGE, "a text", f"image must be a tensor {SHAPE}, got str."),
        (IMAGE, None, f"image must be a tensor {SHAPE}, got NoneType."),
        (declare("LATENT", "latent_image"), 3, "latent_image must be a latent, as VAE Encode makes it, got int."),
    ],
)
def test_what_is_refused(declared, value, message):
    with pytest.raises((TypeError, ValueError)) as caught:
        check_value(declared, value)
    assert str(caught.value) == message


def test_a_number_without_effect_may_be_outside_of_its_limits_but_is_an_integer():
    assert check_value(WIDTH, 33, counts=False) == 33
    with pytest.raises(ValueError, match=r"^width must be an integer, got 33\.5\.$"):
        check_value(WIDTH, 33.5, counts=False)


def test_of_a_long_list_the_first_entries_are_named():
    requirement = check_values.one_of([f"model {number}" for number in range(25)])
    assert requirement.startswith("one of 'model 0', 'model 1', ") and requirement.endswith("'model 19' and 5 more")


@pytest.mark.parametrize("io_type", ["IMAGE", "LATENT", "DEEPGEN_CONDITIONING", "DEEPGEN_PIPELINE"])
def test_none_is_nothing_for_an_optional_socket(io_type):
    assert check_value(declare(io_type, optional=True), None) is None


def test_a_widget_always_has_a_value():
    with pytest.raises(TypeError, match=r"^capture_graph must be true or false, got None\.$"):
        check_value(declare("BOOLEAN", "capture_graph", optional=True), None)


class TestCheckInputs:
    schema = SimpleNamespace(
        display_name="DeepGen Edit Image", inputs=[IMAGE, WIDTH, declare("IMAGE", "image_2", optional=True)]
    )

    def check(self, counts=lambda name, given: True, **given: Any) -> dict[str, Any]:
        return check_values.check_inputs(self.schema, given, counts)

    def test_values_come_back_as_run_takes_them(self):
        pixels = torch.rand(1, 4, 6, 3, requires_grad=True)
        found = self.check(image=pixels, width=64.0)
        assert set(found) == {"image", "width"} and type(found["width"]) is int
        assert torch.equal(found["image"], pixels) and not found["image"].requires_grad

    @pytest.mark.parametrize(
        ("given", "message"),
        [
            ({"width": 64}, "image is missing: connect it, or set its value."),
            ({"image_9": 1}, "image_9 is not an input of DeepGen Edit Image: connect one of image, width, image_2."),
        ],
    )
    def test_names(self, given, message):
        with pytest.raises(ValueError) as caught:
            self.check(**given)
        assert str(caught.value) == message

    def test_the_node_says_what_counts(self):
        pixels = torch.rand(1, 4, 6, 3)
        assert self.check(lambda name, given: name != "width", image=pixels, width=7)["width"] == 7
        with pytest.raises(ValueError, match=r"^width must be a multiple of 16 "):
            self.check(image=pixels, width=7)
