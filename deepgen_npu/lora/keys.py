"""The ends of the keys in LoRA files: what a tensor is for its layer."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping


NEW_WEIGHT, NEW_BIAS = "new_weight", "new_bias"
"""What replaces a weight or a bias: PEFT saves these of layers that were trained as a whole."""

WEIGHTS = frozenset(("diff", "w_norm", NEW_WEIGHT))
"""Weights, or what is added to them as it is."""

BIASES = frozenset(("up_bias", "diff_b", "b_norm", NEW_BIAS))
"""Biases, or what is added to them."""

_AB = {"A": "down", "B": "up"}

_PARTS: tuple[tuple[re.Pattern[str], Callable[[re.Match[str]], str]], ...] = tuple(
    (re.compile(pattern + r"\Z"), name)
    for pattern, name in (
        # lora_down of kohya, lora.down and lora_linear_layer.down of diffusers, also as processor.to_q_lora.down
        (r"(?:[._]lora\.|\.lora_linear_layer\.|\.lora_)(up|down|mid)(?:\.weight)?", lambda match: match[1]),
        # of PEFT, with or without the name of the adapter
        (r"\.lora_([AB])(?:\.(?!weight$|bias$)[^.]+)?(?:\.weight)?", lambda match: _AB[match[1]]),
        (r"\.lora_B(?:\.(?!bias$)[^.]+)?\.bias", lambda match: "up_bias"),
        (r"\.lora_magnitude_vector(?:\.(?!weight$)[^.]+)?(?:\.weight)?", lambda match: "dora_scale"),
        (r"\.(alpha|dora_scale|diff|diff_b|w_norm|b_norm)", lambda match: match[1]),
        (
            r"\.(hada_w[12]_[ab]|hada_t[12]|lokr_w[12](?:_[ab])?|lokr_t2)(?:\.(?!weight$)[^.]+)?",
            lambda match: match[1],
        ),
        # of algorithms that are not read: named in the error
        (
            r"\.(oft_blocks|oft_diag|oft_R|boft_[RS]|rescale|[ab][12]|on_input|vera_lambda_[bd]|ia3_l)(?:\.[^.]+)?",
            lambda match: f"?{match[1]}",
        ),
        (r"(?:\.base_layer|\.modules_to_save(?:\.[^.]+)?)?\.(weight|bias)", lambda match: f"new_{match[1]}"),
        (r"\.set_weight", lambda match: NEW_WEIGHT),
    )
)

_TOGETHER = (
    ("up", "down"),
    ("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b"),
    ("hada_t1", "hada_t2"),
    ("lokr_w1_a", "lokr_w1_b"),
    ("lokr_w2_a", "lokr_w2_b"),
)
"""Tensors of which a layer has all or none."""


def split(key: str) -> tuple[str, str | None]:
    """The name of a layer, and what the tensor is for it: None if that is not known."""
    for pattern, name in _PARTS:
        if (match := pattern.search(key)) is not None:
            return key[: match.start()], name(match)
    return key, None


def kind_of(parts: Mapping[str, object]) -> str | None:
    """``LoRA``, ``LoHa`` or ``LoKr``, by the parts that each kind must have; None if they are of none of them."""
    for part, kind in (("up", "LoRA"), ("hada_w1_a", "LoHa"), ("lokr_w1", "LoKr"), ("lokr_w1_a", "LoKr")):
        if part in parts:
            return kind
    return None


def check(name: str, keys: Mapping[str, str]) -> None:
    """Whether the parts of a layer are of one known kind and complete.

    Args:
        name: Of the layer.
        keys: By the part that each is.

    Raises:
        ValueError: In words that follow the name of the file.
    """
    unknown = [keys[part] for part in keys if part.startswith("?")]
    if unknown:
        known = "LoRA, DoRA, LoHa, LoKr and full differences are"
        raise ValueError(f"has {unknown[0]}, of a kind of adapter that is not supported; {known}.")
    for group in _TOGETHER:
        present = [part for part in group if part in keys]
        if present and len(present) < len(group):
            absent = next(part for part in group if part not in keys)
            raise ValueError(f"is not complete: {keys[present[0]]} has no {absent} beside it.")
    factors = {number: [part for part in keys if part.startswith(f"lokr_w{number}")] for number in (1, 2)}
    if any(factors.values()) and not all(factors.values()):
        raise ValueError(f"is not complete: {name} has only one of lokr_w1 and lokr_w2.")
    ways = [part for part in ("up", "hada_w1_a", NEW_WEIGHT) if part in keys] + factors[1][:1]
    ways += [f"lokr_w{number}_a" for number in (1, 2) if {f"lokr_w{number}", f"lokr_w{number}_a"} <= keys.keys()]
    if len(ways) > 1:
        raise ValueError(f"changes {name} in two ways at once: {', '.join(keys[part] for part in ways)}.")
    if not ways:
        for part, wanted in (("dora_scale", "up"), ("mid", "up"), ("hada_t1", "hada_w1_a"), ("lokr_t2", "lokr_w2_a")):
            if part in keys:
                raise ValueError(f"is not complete: {keys[part]} has no {wanted} beside it.")
