"""Ranks and alphas that PEFT and diffusers keep beside the tensors of a LoRA."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..checks import must_be, number
from ..errors import LoraError
from ..files import FileError, read_json
from .names import PREFIXES


PEFT_FILE, PEFT_CONFIG = "adapter_model.safetensors", "adapter_config.json"
_METADATA = "lora_adapter_metadata"
"""The key under which diffusers keeps PEFT's settings in the file itself."""

_OTHER_BASE = ("pissa", "olora", "corda", "loftq")
"""Initialisations that change the weights below the adapter: it fits no other weights until it is converted."""


@dataclass(frozen=True)
class Settings:
    """What counts for layers without an alpha of their own.

    Attributes:
        alpha: Numerator of the scale; None is the rank.
        rank: Of adapters whose tensors do not show it.
        alphas: By patterns of names.
        ranks: By patterns of names.
        by_root: The scale is alpha / sqrt(rank) (rsLoRA).
    """

    alpha: float | None = None
    rank: float | None = None
    alphas: Mapping[str, float] = field(default_factory=dict)
    ranks: Mapping[str, float] = field(default_factory=dict)
    by_root: bool = False

    @classmethod
    def read(cls, file: Path, metadata: Mapping[str, str]) -> Settings:
        """From adapter_config.json beside a file of PEFT, or from the file's own metadata.

        Raises:
            LoraError: When there is something else than settings.
        """
        try:
            where, config = _config(file, metadata)
        except FileError as error:
            raise LoraError(str(error)) from None
        try:
            return cls._of(config)
        except (ValueError, TypeError) as error:
            raise LoraError(f"{where}: {error}") from None

    @classmethod
    def _of(cls, config: Mapping[str, Any]) -> Settings:
        initial = config.get("init_lora_weights")
        if isinstance(initial, str) and initial.lower().startswith(_OTHER_BASE):
            advice = "Such an adapter was trained on other weights: save it converted to a plain LoRA."
            raise ValueError(
                must_be("init_lora_weights", "one that leaves the model as it is", initial, advice=advice)
            )
        alpha, rank = config.get("lora_alpha", config.get("alpha")), config.get("r")
        return cls(
            None if alpha is None else _number("lora_alpha", alpha),
            None if rank is None else _rank("r", rank),
            {name: _number("alpha_pattern", one) for name, one in _patterns(config, "alpha_pattern").items()},
            {name: _rank("rank_pattern", one) for name, one in _patterns(config, "rank_pattern").items()},
            config.get("use_rslora") is True,
        )

    def scale(self, name: str, rank: int | None) -> float:
        """What the change of a layer is multiplied by.

        Args:
            name: Of the layer in the file.
            rank: By its tensors; None if they do not show it.
        """
        for prefix in PREFIXES:
            name = name.removeprefix(prefix)
        alpha = _of_pattern(self.alphas, name, self.alpha)
        shown = rank if rank is not None else _of_pattern(self.ranks, name, self.rank)
        if alpha is None or shown is None:
            return 1.0
        return alpha / (math.sqrt(shown) if self.by_root else shown)


def _config(file: Path, metadata: Mapping[str, str]) -> tuple[str, Mapping[str, Any]]:
    """Where the settings are, and they; none if there are none."""
    beside = file.with_name(PEFT_CONFIG)
    if file.name == PEFT_FILE and beside.exists():
        return str(beside), read_json(beside)
    where = f"{file}: {_METADATA}"
    try:
        given = json.loads(metadata.get(_METADATA, "{}"))
    except (ValueError, RecursionError) as error:
        raise FileError(f"{where} is not valid JSON ({error}).") from None
    if not isinstance(given, dict):
        raise FileError(must_be(where, "a JSON object", given))
    prefix = "transformer."
    return where, {key.removeprefix(prefix): value for key, value in given.items() if key.startswith(prefix)}


def _patterns(config: Mapping[str, Any], key: str) -> dict[str, Any]:
    found = config.get(key) or {}
    if not isinstance(found, dict):
        raise TypeError(must_be(key, "an object of numbers", found))
    for pattern in found:
        try:
            re.compile(pattern)
        except re.error as error:
            raise ValueError(must_be(f"a key of {key}", f"a regular expression ({error})", pattern)) from None
    return found


def _number(name: str, value: object) -> float:
    return number(name, value, -1e9, 1e9)


def _rank(name: str, value: object) -> float:
    return number(name, value, 1, 1e9)


def _of_pattern(patterns: Mapping[str, float], name: str, default: float | None) -> float | None:
    """As PEFT finds a pattern: it names the end of a layer's name."""
    return next((value for one, value in patterns.items() if re.match(rf"(.*\.)?({one})$", name)), default)
