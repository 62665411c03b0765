"""What each kind of adapter does to a weight, computed here by its definition in numpy and float64."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from lora_files import largest_difference, save, state


TOLERANCE = 1e-5
LINEAR, CONV, NORM = "transformer_blocks.1.ff.net.0.proj", "pos_embed.proj", "transformer_blocks.0.attn.norm_q"
SQUARE = "transformer_blocks.0.attn.to_v"
SHAPES = {LINEAR: (128, 32), CONV: (32, 16, 2, 2), NORM: (16,), SQUARE: (32, 32)}

_generator = np.random.default_rng(0)


def draw(*shape: int) -> np.ndarray:
    return _generator.normal(0, 0.3, shape)


Case = tuple[str, dict[str, np.ndarray], np.ndarray]
"""A layer, tensors by the ends of their keys, and what is added to the weight."""


def lora_of_a_convolution() -> Case:
    up, down = draw(32, 3, 1, 1), draw(3, 16, 2, 2)
    delta = np.einsum("nr,rmhw->nmhw", up[:, :, 0, 0], down)
    return CONV, {"lora_up.weight": up, "lora_down.weight": down, "alpha": np.array(6.0)}, delta * 2


def lora_with_a_core() -> Case:
    up, core, down = draw(32, 3, 1, 1), draw(3, 3, 2, 2), draw(3, 16, 1, 1)
    delta = np.zeros(SHAPES[CONV])
    for r in range(3):
        for s in range(3):
            delta += up[:, r, 0, 0][:, None, None, None] * down[s, :, 0, 0][:, None, None] * core[r, s]
    return CONV, {"lora_up.weight": up, "lora_down.weight": down, "lora_mid.weight": core}, delta


def loha() -> Case:
    a1, b1, a2, b2 = draw(128, 2), draw(2, 32), draw(128, 2), draw(2, 32)
    tensors = {"hada_w1_a": a1, "hada_w1_b": b1, "hada_w2_a": a2, "hada_w2_b": b2, "alpha": np.array(1.0)}
    return LINEAR, tensors, (a1 @ b1) * (a2 @ b2) / 2


def loha_with_cores() -> Case:
    tensors, factors = {"alpha": np.array(1.0)}, []
    for number in (1, 2):
        core, a, b = draw(2, 2, 2, 2), draw(2, 32), draw(2, 16)
        tensors |= {f"hada_t{number}": core, f"hada_w{number}_a": a, f"hada_w{number}_b": b}
        factors.append(
            sum(a[r][:, None, None, None] * b[s][:, None, None] * core[r, s] for r in (0, 1) for s in (0, 1))
        )
    return CONV, tensors, factors[0] * factors[1] / 2


def lokr_whole() -> Case:
    """Its alpha, whatever it is, has no rank to be divided by: LyCORIS takes 1."""
    first, second = draw(8, 4), draw(16, 8)
    return LINEAR, {"lokr_w1": first, "lokr_w2": second, "alpha": np.array(16.0)}, np.kron(first, second)


def lokr() -> Case:
    first, a, b = draw(8, 4), draw(16, 2), draw(2, 8)
    return (
        LINEAR,
        {"lokr_w1": first, "lokr_w2_a": a, "lokr_w2_b": b, "alpha": np.array(3.0)},
        np.kron(first, a @ b) * 1.5,
    )


def lokr_of_four() -> Case:
    a1, b1, a2, b2 = draw(8, 2), draw(2, 4), draw(16, 2), draw(2, 8)
    tensors = {"lokr_w1_a": a1, "lokr_w1_b": b1, "lokr_w2_a": a2, "lokr_w2_b": b2, "alpha": np.array(3.0)}
    return LINEAR, tensors, np.kron(a1 @ b1, a2 @ b2) * 1.5


def lokr_with_a_core() -> Case:
    first, core, a, b = draw(4, 4), draw(2, 2, 2, 2), draw(2, 8), draw(2, 4)
    second = sum(a[r][:, None, None, None] * b[s][:, None, None] * core[r, s] for r in (0, 1) for s in (0, 1))
    delta = np.zeros(SHAPES[CONV])
    for i in range(4):
        for j in range(4):
            delta[8 * i : 8 * i + 8, 4 * j : 4 * j + 4] = first[i, j] * second
    tensors = {"lokr_w1": first, "lokr_t2": core, "lokr_w2_a": a, "lokr_w2_b": b, "alpha": np.array(3.0)}
    return CONV, tensors, delta * 1.5


def difference() -> Case:
    delta = draw(128, 32)
    return LINEAR, {"diff": delta}, delta


def norm() -> Case:
    delta = draw(16)
    return NORM, {"w_norm": delta}, delta


KINDS = [
    *(lora_of_a_convolution, lora_with_a_core, loha, loha_with_cores, lokr_whole, lokr, lokr_of_four),
    *(lokr_with_a_core, difference, norm),
]


def changed(pipe, tmp_path, layer: str, tensors, strength: float = 1.0, prefix: str = "diffusion_model."):
    """Weight and bias of a layer with a LoRA of these tensors, in float64; all other tensors are as before."""
    before = state(pipe.transformer)
    named = {f"{prefix}{layer}.{end}": torch.tensor(tensor, dtype=torch.float32) for end, tensor in tensors.items()}
    pipe.load_lora_weights(save(tmp_path / "a.safetensors", named), weight=strength)
    after = state(pipe.transformer)
    others = [name for name in before if not name.startswith(f"{layer}.")]
    assert largest_difference({name: before[name] for name in others}, {name: after[name] for name in others}) == 0
    return after[f"{layer}.weight"].double().numpy(), after.get(f"{layer}.bias", torch.zeros(0)).double().numpy()


@pytest.mark.parametrize("strength", [1.0, -0.5])
@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_what_is_added_to_a_weight(own, before, tmp_path, kind: Callable[[], Case], strength):
    layer, tensors, delta = kind()
    weight, _ = changed(own, tmp_path, layer, tensors, strength)
    expected = before[f"{layer}.weight"].double().numpy() + strength * delta
    assert np.abs(weight - expected).max() <= TOLERANCE < np.abs(strength * delta).max() / 100


def lengths_of(weight: np.ndarray, axis: int) -> np.ndarray:
    others = tuple(index for index in range(weight.ndim) if index != axis)
    return np.sqrt((weight**2).sum(axis=others, keepdims=True))


@pytest.mark.parametrize("strength", [1.0, 0.25])
@pytest.mark.parametrize(
    ("kind", "layer", "axis", "shape"),
    [
        (None, LINEAR, 0, (128,)),  # PEFT
        (None, LINEAR, 0, (128, 1)),  # LyCORIS, by rows
        (None, LINEAR, 1, (1, 32)),  # LyCORIS, by columns
        (None, SQUARE, 0, (32,)),
        (None, SQUARE, 0, (32, 1)),
        (None, SQUARE, 1, (1, 32)),
        (lora_of_a_convolution, CONV, 0, (1, 32, 1, 1)),  # PEFT
        (lora_with_a_core, CONV, 0, (32, 1, 1, 1)),
        (lora_of_a_convolution, CONV, 1, (1, 16, 1, 1)),
        (loha, LINEAR, 1, (1, 32)),
        (lokr, LINEAR, 0, (128, 1)),
    ],
)
def test_lengths_of_rows_or_columns(own, before, tmp_path, kind, layer, axis, shape, strength):
    """DoRA: the merged weight's rows (or columns) get lengths of their own; weaker, it goes a part of the way."""
    if kind is None:
        up, down = draw(SHAPES[layer][0], 2), draw(2, 32)
        tensors, delta = {"lora_up.weight": up, "lora_down.weight": down, "alpha": np.array(4.0)}, up @ down * 2
    else:
        _, tensors, delta = kind()
    lengths = np.abs(draw(*shape)) + 0.1
    weight, _ = changed(own, tmp_path, layer, {**tensors, "dora_scale": lengths}, strength)
    old = before[f"{layer}.weight"].double().numpy()
    along = [-1 if index == axis else 1 for index in range(old.ndim)]
    new = (old + delta) / lengths_of(old + delta, axis) * lengths.reshape(along)
    assert np.abs(lengths_of(new, axis).ravel() - lengths.ravel()).max() < 1e-9
    assert np.abs(weight - (old + strength * (new - old))).max() <= TOLERANCE


def test_magnitudes_under_the_name_of_peft(own, before, tmp_path):
    up, down, lengths = draw(128, 2), draw(2, 32), np.abs(draw(128)) + 0.1
    tensors = {"lora_A.weight": down, "lora_B.weight": up, "lora_magnitude_vector": lengths}
    weight, _ = changed(own, tmp_path, LINEAR, tensors, prefix="base_model.model.")
    merged = before[f"{LINEAR}.weight"].double().numpy() + up @ down
    assert np.abs(weight - merged / lengths_of(merged, 0) * lengths[:, None]).max() <= TOLERANCE


@pytest.mark.parametrize("strength", [1.0, 0.5])
def test_biases(own, before, tmp_path, strength):
    old_weight, old_bias = (before[f"{LINEAR}.{kind}"].double().numpy() for kind in ("weight", "bias"))
    up, down, bias = draw(128, 2), draw(2, 32), draw(128)
    plain = {"lora_A.weight": down, "lora_B.weight": up, "alpha": np.array(4.0)}
    for ends, changes in (
        ({**plain, "lora_B.bias": bias}, (up @ down * 2, bias * 2)),  # PEFT's lora_bias, which the scale is for, too
        ({**plain, "diff_b": bias}, (up @ down * 2, bias)),
        ({"diff_b": bias}, (0, bias)),
        ({"diff": up @ down, "diff_b": bias}, (up @ down, bias)),
        ({**plain, "base_layer.bias": bias}, (up @ down * 2, bias - old_bias)),  # PEFT's bias="lora_only"
    ):
        found = changed(own, tmp_path, LINEAR, ends, strength)
        for new, old, change in zip(found, (old_weight, old_bias), changes, strict=True):
            assert np.abs(new - (old + strength * change)).max() <= TOLERANCE
        own.unload_lora_weights()


@pytest.mark.parametrize("end", ["weight", "modules_to_save.weight", "modules_to_save.default.weight", "set_weight"])
def test_layers_that_were_trained_as_a_whole(own, before, tmp_path, end):
    new = draw(16)
    key = {f"{NORM}.{end}": torch.tensor(new, dtype=torch.float32), "proj_out.diff_b": torch.zeros(64)}
    for strength in (1.0, 0.5):
        own.load_lora_weights(save(tmp_path / "a.safetensors", key), weight=strength)
        old = before[f"{NORM}.weight"].double().numpy()
        weight = state(own.transformer)[f"{NORM}.weight"].double().numpy()
        assert np.abs(weight - (old + strength * (new - old))).max() <= 1e-6
        own.unload_lora_weights()


@pytest.mark.parametrize("stored", [torch.float64, torch.float16, torch.bfloat16, torch.float8_e4m3fn])
def test_dtypes_of_files(own, before, tmp_path, stored):
    """Numbers that all of them have; an alpha may be an integer."""
    up, down = torch.tensor([[1.0], [-2.0]] * 64).to(stored), torch.full((1, 32), 0.25).to(stored)
    key = f"transformer.{LINEAR}"
    tensors = {f"{key}.lora_A.weight": down, f"{key}.lora_B.weight": up, f"{key}.alpha": torch.tensor(3)}
    own.load_lora_weights(save(tmp_path / "a.safetensors", tensors))
    expected = before[f"{LINEAR}.weight"].double() + torch.tensor([[0.75], [-1.5]] * 64)
    assert (state(own.transformer)[f"{LINEAR}.weight"].double() - expected).abs().max() < 1e-6
