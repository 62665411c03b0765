"""Several LoRAs at once, their strengths, and what a failure leaves."""

from __future__ import annotations

import re

import pytest
import torch
from golden import TINY
from lora_files import LAYERS, Example, equal, largest_difference, merged, save, state
from torch import Tensor
from torch.nn import Module

from deepgen_npu import DeepGenPipeline, LoraError
from deepgen_npu.lora.changes import Change


@pytest.fixture
def two(own, tmp_path):
    """Two LoRAs that share some layers, and their files."""
    first = Example.of(own.transformer, seed=1)
    layers = {**dict(list(LAYERS.items())[:4]), "transformer_blocks.3.ff.net.2": 2}
    second = Example.of(own.transformer, seed=2, layers=layers)
    return first, second, first.save(tmp_path / "first.safetensors"), second.save(tmp_path / "second.safetensors")


def scaled(example: Example, factor: float) -> dict[str, Tensor]:
    return {name: delta * factor for name, delta in example.deltas().items()}


def test_several_at_once_and_changed_weights(own, before, two):
    first, second, first_file, second_file = two
    assert own.load_lora_weights(first_file) == "first"
    assert own.load_lora_weights(second_file, "style", weight=0.5) == "style"
    assert own.adapter_weights == {"first": 1.0, "style": 0.5}

    def check(of_first: float, of_second: float) -> None:
        assert own.adapter_weights == {"first": of_first, "style": of_second}
        expected = merged(before, scaled(first, of_first), scaled(second, of_second))
        assert largest_difference(state(own.transformer), expected) <= 1e-5

    check(1.0, 0.5)
    own.set_adapters(["style", "first"], [-1.0, 2])
    check(2.0, -1.0)
    own.set_adapters("style")
    check(0.0, 1.0)
    own.set_adapters(["first", "style"], 0.25)
    check(0.25, 0.25)
    own.set_adapters(["first", "style"], 0)
    assert equal(state(own.transformer), before), "strength 0 changes no bit"
    own.set_adapters([])
    assert own.adapter_weights == {"first": 0.0, "style": 0.0}


def test_no_order_leaves_a_trace(own, before, two):
    """The same LoRAs with the same strengths give the same bits, whatever came before; unloading restores all."""
    _, _, first, second = two
    own.load_lora_weights(first, weight=0.7)
    own.load_lora_weights(second)
    expected = state(own.transformer)
    own.unload_lora_weights()
    assert equal(state(own.transformer), before)
    own.load_lora_weights(second, "other")
    own.set_adapters("other", 3.0)
    own.unload_lora_weights()
    own.load_lora_weights(first)
    own.load_lora_weights(second, weight=-2)
    own.set_adapters(["second", "first"], [1.0, 0.7])
    assert equal(state(own.transformer), expected)
    own.unload_lora_weights()
    own.unload_lora_weights()
    assert equal(state(own.transformer), before)


def test_names(own, two, tmp_path):
    _, _, file, _ = two
    assert [own.load_lora_weights(file, weight=0) for _ in range(3)] == ["first", "first-2", "first-3"]
    (tmp_path / "my style").mkdir()
    file.rename(tmp_path / "my style" / "pytorch_lora_weights.safetensors")
    assert own.load_lora_weights(str(tmp_path / "my style"), weight=0) == "my style"


def test_weights_stay_at_their_addresses(own, two):
    """A captured graph reads them there."""
    addresses = [tensor.data_ptr() for tensor in own.transformer.state_dict().values()]
    own.load_lora_weights(two[2])
    assert [tensor.data_ptr() for tensor in own.transformer.state_dict().values()] == addresses


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_low_precision_is_rounded_once(two, dtype):
    first, second, first_file, second_file = two
    pipe = DeepGenPipeline.from_pretrained(TINY, torch_dtype=dtype, device="cpu")
    before = state(pipe.transformer)
    # Changes of a tenth of the distance of two numbers of this precision: twenty of them count.
    strength = 0.1 * torch.finfo(dtype).eps
    pipe.load_lora_weights(first_file)
    for number in range(20):
        pipe.load_lora_weights(second_file, str(number), strength)
    expected = merged(before, first.deltas(), scaled(second, 20 * strength))
    exact = merged(
        {name: tensor.double() for name, tensor in before.items()}, first.deltas(), scaled(second, 20 * strength)
    )
    found = state(pipe.transformer)
    for name, tensor in found.items():
        # Of the two nearest numbers, the nearer: float64 and float32 round alike but where both are as near.
        off, best = ((one.double() - exact[name]).abs() for one in (tensor, expected[name]))
        assert (off <= best + 1e-6).all(), name
    assert not equal(found, merged(before, first.deltas()))
    pipe.unload_lora_weights()
    assert equal(state(pipe.transformer), before)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (
            lambda pipe: pipe.set_adapters("other"),
            "adapter_names must be names of loaded LoRAs, each once, got 'other'. ",
        ),
        (lambda pipe: pipe.set_adapters(["first", "first"]), "adapter_names must be names of loaded LoRAs, each once"),
        (lambda pipe: pipe.set_adapters(3), "adapter_names must be a name or a list of names, got 3."),
        (
            lambda pipe: pipe.set_adapters(["first"], [1, 2]),
            "adapter_weights must be a number, or a list of 1 numbers, one for each name, got [1, 2].",
        ),
        (lambda pipe: pipe.set_adapters("first", "1"), "adapter_weights must be a number from -100 to 100, got '1'."),
        (
            lambda pipe: pipe.set_adapters("first", float("nan")),
            "adapter_weights must be a number from -100 to 100, got nan.",
        ),
        (lambda pipe: pipe.load_lora_weights("a", weight=101), "weight must be a number from -100 to 100, got 101."),
        (lambda pipe: pipe.load_lora_weights("a", weight=True), "weight must be a number from -100 to 100, got True."),
        (lambda pipe: pipe.load_lora_weights("a", ""), "adapter_name must be a string that is not empty, or None"),
        (lambda pipe: pipe.load_lora_weights("a", "first"), "adapter_name must be a new one, got 'first'. "),
        (lambda pipe: pipe.load_lora_weights("nowhere.safetensors"), "There is no LoRA file nowhere.safetensors."),
    ],
)
def test_what_cannot_be_changes_nothing(own, two, call, words):
    own.load_lora_weights(two[2])
    merged_state = state(own.transformer)
    with pytest.raises((TypeError, ValueError), match=re.escape(words)):
        call(own)
    assert equal(state(own.transformer), merged_state) and own.adapter_weights == {"first": 1.0}


@pytest.mark.parametrize("error", [MemoryError("none left"), KeyboardInterrupt()])
def test_a_merge_that_fails_leaves_the_weights_before(own, before, two, monkeypatch, caplog, error):
    _, _, first, second = two
    own.load_lora_weights(first)
    weight, calls = Change.weight, []

    def fail(change, *arguments):
        calls.append(change)
        if len(calls) == 8:
            raise error
        return weight(change, *arguments)

    monkeypatch.setattr(Change, "weight", fail)
    with pytest.raises(type(error)):
        own.load_lora_weights(second)
    assert equal(state(own.transformer), before) and own.adapter_weights == {}
    assert "All LoRAs are unloaded, since merging failed: first." in caplog.text
    monkeypatch.undo()
    own.load_lora_weights(second)
    assert own.adapter_weights == {"second": 1.0}


def test_numbers_that_are_not_finite_are_refused(own, before, two, tmp_path):
    tensors = two[0].tensors()
    for end, value in (("proj_out.lora_B.weight", "nan"), ("proj_out.alpha", "inf")):
        key = f"transformer.{end}"
        broken = tensors[key].clone().reshape(-1)
        broken[-1] = float(value)
        path = save(tmp_path / "a.safetensors", {**tensors, key: broken.reshape(tensors[key].shape)})
        with pytest.raises(LoraError, match=r"proj_out must contain finite numbers, got NaN or infinite ones\.$"):
            own.load_lora_weights(path)
    assert equal(state(own.transformer), before)


class Quantized(Module):
    """A layer of 8-bit weights, with a scale for each row. To quantise again what it stands for gives other bits."""

    def __init__(self, linear: Module):
        super().__init__()
        self.register_buffer("weight", torch.zeros(linear.weight.shape, dtype=torch.int8))
        self.register_buffer("scale", torch.ones(len(linear.weight), 1))
        self.bias = linear.bias
        self.quantize_(linear.weight)

    def quantize_(self, weight: Tensor) -> None:
        self.scale.copy_(weight.abs().amax(1, keepdim=True) / 126.4)
        self.weight.copy_((weight / self.scale).round())

    def dequantized(self, dtype: torch.dtype) -> Tensor:
        return (self.weight * self.scale).to(dtype)


def test_quantised_layers(two):
    """The weight that the layer stands for is changed and quantised again; unloading restores what was stored."""
    first, second, first_file, second_file = two
    transformer = DeepGenPipeline.from_pretrained(TINY, torch_dtype=torch.float32).transformer
    pipe = DeepGenPipeline.from_pretrained(TINY, torch_dtype=torch.float32)
    for name, module in transformer.named_modules():
        if name in LAYERS and module.weight.ndim == 2:
            parent, _, child = name.rpartition(".")
            setattr(pipe.transformer.get_submodule(parent), child, Quantized(module))
    before = state(pipe.transformer)
    pipe.load_lora_weights(first_file)
    pipe.load_lora_weights(second_file, weight=0.5)
    name = "transformer_blocks.0.attn.to_q"
    layer = pipe.transformer.get_submodule(name)
    assert layer.weight.dtype == torch.int8
    old = (before[f"{name}.weight"] * before[f"{name}.scale"]).double()
    wanted = old + first.deltas()[f"{name}.weight"] + 0.5 * second.deltas()[f"{name}.weight"]
    # Half a step of each row, and no more: it was quantised once.
    assert ((layer.dequantized(torch.float64) - wanted).abs() <= 0.501 * layer.scale.double()).all()
    assert (wanted - old).abs().max() > 10 * layer.scale.max()
    pipe.set_adapters([])
    assert equal(state(pipe.transformer), before), "at strength 0 nothing is quantised again"
    pipe.set_adapters("first")
    pipe.unload_lora_weights()
    assert equal(state(pipe.transformer), before)


def test_a_bias_alone_leaves_quantised_weights_alone(two, tmp_path):
    pipe = DeepGenPipeline.from_pretrained(TINY, torch_dtype=torch.float32)
    pipe.transformer.proj_out = Quantized(pipe.transformer.proj_out)
    before = state(pipe.transformer)
    pipe.load_lora_weights(save(tmp_path / "a.safetensors", {"proj_out.diff_b": torch.ones(64)}))
    after = state(pipe.transformer)
    assert torch.equal(after.pop("proj_out.bias"), before.pop("proj_out.bias") + 1)
    assert equal(after, before)
