"""LoRAs for the tiny checkpoint in the names and kinds of all trainers, and the weights that each must give.

The weights are computed here by the definitions, without the library.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import torch
from core_checkpoints import LORA_FORMS, RANK, Tensors, _kohya, _peft, _weights, merge_lora
from safetensors.torch import save_file
from torch import Tensor


QUERY = "transformer_blocks.0.attn.to_q"
FUSED = {
    "joint_blocks.0.x_block.attn.qkv": [f"transformer_blocks.0.attn.{name}" for name in ("to_q", "to_k", "to_v")],
    "joint_blocks.1.context_block.attn.qkv": [
        f"transformer_blocks.1.attn.{name}" for name in ("add_q_proj", "add_k_proj", "add_v_proj")
    ],
    "joint_blocks.1.x_block.mlp.fc1": ["transformer_blocks.1.ff.net.0.proj"],
}
SWAPPED = "final_layer.adaLN_modulation.1", "norm_out.linear"
"""Of the last norm the reference implementation has shift before scale."""

Case = tuple[Tensors, Callable[[Tensors], object]]
"""The tensors of a file, and what they make of the weights at strength 1, in place."""

_random = torch.Generator().manual_seed(11)


def _noise(*shape: int) -> Tensor:
    return 0.2 * torch.randn(shape, generator=_random)


def _added(deltas: dict[str, Tensor]) -> Callable[[Tensors], None]:
    def change(tensors: Tensors) -> None:
        for key, delta in deltas.items():
            tensors[key] += delta.reshape(tensors[key].shape)

    return change


def _old_diffusers() -> Tensors:
    """The names of its attention processors."""
    return {
        re.sub(r"\.(to_\w|add_\w_proj)\.lora_(A|B)", r".processor.\1_lora.\2", key)
        .replace("_lora.A", "_lora.down")
        .replace("_lora.B", "_lora.up"): tensor
        for key, tensor in _peft("").items()
    }


def _reference(prefix: str, joined: bool) -> Case:
    """Queries, keys and values as one layer, and halves the other way round."""
    weights, file, deltas = _weights(), {}, {}
    for name, modules in {**FUSED, SWAPPED[0]: [SWAPPED[1]]}.items():
        shapes = [weights[f"{module}.weight"].shape for module in modules]
        down, up = _noise(RANK, shapes[0][1]), _noise(sum(shape[0] for shape in shapes), RANK)
        start = prefix + (name.replace(".", "_") if joined else name)
        factors = ("lora_down", "lora_up") if joined else ("lora_A", "lora_B")
        file |= {f"{start}.{factor}.weight": one for factor, one in zip(factors, (down, up), strict=True)}
        delta = up @ down
        if name == SWAPPED[0]:
            delta = torch.cat(delta.chunk(2)[::-1])
        parts = delta.split([shape[0] for shape in shapes])
        deltas |= {f"{module}.weight": part for module, part in zip(modules, parts, strict=True)}
    return file, _added(deltas)


def _dora(rows: bool) -> Case:
    """Each row, or each column, of the merged weight gets a length of its own."""
    rank, axis = 4, 1 if rows else 0
    shape = _weights()[f"{QUERY}.weight"].shape
    down, up = _noise(rank, shape[1]), _noise(shape[0], rank)
    lengths = 1 + _noise(shape[0], 1).abs() if rows else 1 + _noise(1, shape[1]).abs()

    def change(tensors: Tensors) -> None:
        merged = tensors[f"{QUERY}.weight"] + 0.5 * up @ down
        tensors[f"{QUERY}.weight"] = merged / merged.norm(dim=axis, keepdim=True) * lengths

    start = f"lycoris_{QUERY.replace('.', '_')}"
    file = {"lora_down.weight": down, "lora_up.weight": up, "dora_scale": lengths, "alpha": torch.tensor(rank / 2)}
    return {f"{start}.{name}": tensor for name, tensor in file.items()}, change


def _loha() -> Case:
    rows, columns = _weights()[f"{QUERY}.weight"].shape
    parts = {"w1_a": (rows, 2), "w1_b": (2, columns), "w2_a": (rows, 2), "w2_b": (2, columns)}
    tensors = {name: _noise(*shape) for name, shape in parts.items()}
    delta = (tensors["w1_a"] @ tensors["w1_b"]) * (tensors["w2_a"] @ tensors["w2_b"]) * 0.5
    start = f"lycoris_{QUERY.replace('.', '_')}"
    file = {f"{start}.hada_{name}": tensor for name, tensor in tensors.items()} | {f"{start}.alpha": torch.tensor(1.0)}
    return file, _added({f"{QUERY}.weight": delta})


def _lokr_of_a_fused_layer() -> Case:
    """Its blocks do not end where the queries do."""
    name, modules = next(iter(FUSED.items()))
    rows, columns = _weights()[f"{QUERY}.weight"].shape
    first, second = _noise(8, 4), _noise(3 * rows // 8, columns // 4)
    start = f"lycoris_{name.replace('.', '_')}"
    parts = zip(modules, torch.kron(first, second).chunk(3), strict=True)
    file = {f"{start}.lokr_w1": first, f"{start}.lokr_w2": second, f"{start}.alpha": torch.tensor(1.0)}
    return file, _added({f"{module}.weight": part for module, part in parts})


def _differences() -> Case:
    """Of a weight, a bias and a norm."""
    names = {f"{QUERY}.diff": f"{QUERY}.weight", f"{QUERY}.diff_b": f"{QUERY}.bias"}
    names |= {"transformer_blocks.0.attn.norm_q.w_norm": "transformer_blocks.0.attn.norm_q.weight"}
    weights = _weights()
    file = {name: _noise(*weights[key].shape) for name, key in names.items()}
    deltas = {key: file[name] for name, key in names.items()}
    return {f"diffusion_model.{name}": tensor for name, tensor in file.items()}, _added(deltas)


def _twice() -> Case:
    """One weight by itself, and as a part of a fused layer."""
    (first, one), (second, two) = _reference("", False), (_peft("transformer."), merge_lora)

    def change(tensors: Tensors) -> None:
        one(tensors)
        two(tensors)

    return {**first, **second}, change


CASES: dict[str, Callable[[], Case]] = {
    **{form: lambda form=form: (LORA_FORMS[form](), merge_lora) for form in LORA_FORMS},
    "onetrainer": lambda: (_kohya("lora_transformer_"), merge_lora),
    "old diffusers": lambda: (_old_diffusers(), merge_lora),
    "kohya, reference names": lambda: _reference("lora_unet_", True),
    "reference names": lambda: _reference("model.diffusion_model.", False),
    "dora": lambda: _dora(rows=True),
    "dora of columns": lambda: _dora(rows=False),
    "loha": _loha,
    "lokr": _lokr_of_a_fused_layer,
    "differences": _differences,
    "two names": _twice,
}
ALPHA_BESIDE = "alpha beside"
"""PEFT keeps it in adapter_config.json."""


def _save(tensors: Tensors, path: Path) -> None:
    save_file({key: tensor.clone().contiguous() for key, tensor in tensors.items()}, str(path))


def write_loras(loras: Path, expected: Path) -> list[str]:
    """``loras/NAME.safetensors``, and in ``expected`` all weights of the DiT with it.

    Returns:
        The names below ``loras``, each with a file of the weights in ``expected``.
    """
    cases = {f"{name}.safetensors": make() for name, make in CASES.items()}
    doubled = {key: 2 * tensor if "lora_B" in key else tensor for key, tensor in _peft("base_model.model.").items()}
    cases[f"{ALPHA_BESIDE}/adapter_model.safetensors"] = doubled, merge_lora
    for name, (file, change) in cases.items():
        for folder in (loras, expected):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
        weights = _weights()
        change(weights)
        for path, tensors in ((loras / name, file), (expected / name, weights)):
            _save(tensors, path)
    config = {"peft_type": "LORA", "r": RANK, "lora_alpha": RANK / 2}
    (loras / ALPHA_BESIDE / "adapter_config.json").write_text(json.dumps(config))
    return sorted(cases)


def write_unusable(loras: Path) -> None:
    """Files that are refused, one that has more than it should, and one in a format that is not read."""
    start = f"lycoris_{next(iter(FUSED)).replace('.', '_')}"
    rows, columns = _weights()[f"{QUERY}.weight"].shape
    factors = {"lora_down.weight": _noise(2, columns), "lora_up.weight": _noise(3 * rows, 2)}
    columns_of_all = {**factors, "dora_scale": _noise(1, columns)}
    other = {"lora_unet_double_blocks_0_img_attn_qkv.lora_up.weight": _noise(4, 2)}
    extra = {**_peft("transformer."), "text_encoder.layers.0.lora_A.weight": _noise(2, 4)}
    files = {
        "of another model": other,
        "with more": extra,
        "dora of fused columns": {f"{start}.{part}": one for part, one in columns_of_all.items()},
    }
    for title, tensors in files.items():
        save_file(
            {key: tensor.clone().contiguous() for key, tensor in tensors.items()}, str(loras / f"{title}.safetensors")
        )
    (loras / "pickled.pt").write_bytes(b"")
