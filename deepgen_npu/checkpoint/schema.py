"""What each config of a checkpoint may contain: keys, types, ranges.

Each function takes the content of a file and returns the settings that the model is built from: only the keys named
here, all of them, each of its type and within its range. No other key of a file reaches a library. Numbers that the
stored tensors decide are compared with them in `structure`; then `relations` looks at how settings of one
file fit each other.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from .. import checks
from ..checks import Named
from ..errors import CheckpointError
from .files import wrong


CONFIG_FILES = {
    "vlm": "vlm/config.json",
    "connector": "connector/config.json",
    "transformer": "transformer/config.json",
    "vae": "vae/config.json",
    "scheduler": "scheduler/scheduler_config.json",
}

PROJECTORS = tuple(f"projector_{index}_{end}" for index in (1, 2, 3) for end in ("in", "out"))

Settings = dict[str, Any]

_MISSING = object()
_MANY = 1 << 30


class Section:
    """One object of a JSON file, whose values are read by key, type and range.

    Args:
        file: For messages.
        content: The object.
        inside: Keys that lead to it, each with a dot.
    """

    def __init__(self, file: Path, content: Mapping[str, Any], inside: str = ""):
        self.file, self.content, self.inside = file, content, inside

    def wrong(self, key: str, requirement: str) -> CheckpointError:
        """The error for the value of a key, or for a key that is missing."""
        found = self.content.get(key, Named("nothing (the key is missing)"))
        return wrong(self.file, f"{self.inside}{key}", found, requirement)

    def integer(self, key: str, default: Any = _MISSING, low: int = 1, high: int = _MANY) -> int:
        """An integer from ``low`` to ``high``; without a default the key must be there."""
        requirement = f"an integer from {low} to {high}"
        return self._get(key, default, requirement, lambda value: checks.integer(key, value, low, high))

    def number(self, key: str, default: Any = _MISSING, low: float = 0.0, high: float = 1.0) -> float:
        """A finite number from ``low`` to ``high``; without a default the key must be there."""
        requirement = f"a number from {low:g} to {high:g}"
        return self._get(key, default, requirement, lambda value: checks.number(key, value, low, high))

    def choice(self, key: str, default: Any, *others: Any) -> Any:
        """One of the given values; the first where the key is missing."""
        values = (default, *others)

        def check(value: Any) -> Any:
            # 1 is not True.
            return next(one for one in values if type(one) is type(value) and one == value)

        return self._get(key, default, _or(values), check)

    def flag(self, key: str, default: bool) -> bool:
        """True or false."""
        return self.choice(key, default, not default)

    def integers(
        self, key: str, default: Any = _MISSING, low: int = 1, high: int = _MANY, length: int | None = None
    ) -> list[int]:
        """A list of integers from ``low`` to ``high``, of any length or the given one."""
        count = "" if length is None else f"{length} "
        requirement = f"a list of {count}integers from {low} to {high}"

        def check(value: Any) -> list[int]:
            if not isinstance(value, (list, tuple)) or (length is not None and len(value) != length):
                raise ValueError
            return [checks.integer(key, one, low, high) for one in value]

        return self._get(key, default, requirement, check)

    def repeated(self, key: str, value: str, count: int) -> list[str]:
        """A list of ``count`` times the same string, which may be left out."""
        if (found := self.content.get(key)) is not None:
            # The length first: it is not longer than the file.
            if not isinstance(found, (list, tuple)) or len(found) != count or any(one != value for one in found):
                raise self.wrong(key, f"a list of {count} times {value!r}")
        return [value] * count

    def section(self, key: str) -> Section:
        """An object within this one."""
        found = self.content.get(key)
        if not isinstance(found, Mapping):
            raise self.wrong(key, "an object")
        return Section(self.file, found, f"{self.inside}{key}.")

    def given(self, key: str) -> bool:
        """Whether the key is there and not null."""
        return self.content.get(key) is not None

    def _get(self, key: str, default: Any, requirement: str, check: Callable[[Any], Any]) -> Any:
        value = self.content.get(key, default)
        if value is not _MISSING:
            try:
                return check(value)
            except (TypeError, ValueError, StopIteration):
                pass
        raise self.wrong(key, requirement)


def settings(part: str, file: Path, content: Mapping[str, Any]) -> Settings:
    """The settings of ``vlm``, ``connector``, ``transformer``, ``vae`` or ``scheduler`` in a config.

    What this returns may be given to it again.

    Raises:
        CheckpointError: Naming file and key, the requirement and the value.
    """
    return _READERS[part](Section(file, content))


def _connector(config: Section) -> Settings:
    encoder = config.section("connector")
    return {
        "connector": {
            "hidden_size": encoder.integer("hidden_size"),
            "intermediate_size": encoder.integer("intermediate_size"),
            "num_hidden_layers": encoder.integer("num_hidden_layers"),
            "num_attention_heads": encoder.integer("num_attention_heads"),
            # Those of the original's ConnectorConfig; the published file leaves them out.
            "hidden_act": encoder.choice("hidden_act", "gelu_pytorch_tanh"),
            "layer_norm_eps": encoder.number("layer_norm_eps", 1e-6, 1e-12, 0.1),
        },
        **{key: config.integer(key) for key in ("num_queries", "llm_hidden_size")},
        **{key: config.integer(key) for key in PROJECTORS},
    }


def _transformer(config: Section) -> Settings:
    channels = config.integer("in_channels", 16)
    return {
        "sample_size": config.integer("sample_size", 128, high=1 << 16),
        "patch_size": config.integer("patch_size", 2, high=1 << 10),
        "in_channels": channels,
        "out_channels": config.integer("out_channels", 16) if config.given("out_channels") else channels,
        "num_layers": config.integer("num_layers"),
        "attention_head_dim": config.integer("attention_head_dim"),
        "num_attention_heads": config.integer("num_attention_heads"),
        "joint_attention_dim": config.integer("joint_attention_dim"),
        "caption_projection_dim": config.integer("caption_projection_dim"),
        "pooled_projection_dim": config.integer("pooled_projection_dim"),
        "pos_embed_max_size": config.integer("pos_embed_max_size"),
        "dual_attention_layers": config.integers("dual_attention_layers", [], low=0),
        "qk_norm": config.choice("qk_norm", None, "rms_norm"),
    }


def _vae(config: Section) -> Settings:
    channels = config.integers("block_out_channels")
    if not 1 <= len(channels) <= 8:
        raise config.wrong("block_out_channels", "a list of 1 to 8 numbers")
    return {
        # Red, green and blue.
        "in_channels": config.choice("in_channels", 3),
        "out_channels": config.choice("out_channels", 3),
        "down_block_types": config.repeated("down_block_types", "DownEncoderBlock2D", len(channels)),
        "up_block_types": config.repeated("up_block_types", "UpDecoderBlock2D", len(channels)),
        "block_out_channels": channels,
        "layers_per_block": config.integer("layers_per_block", 1),
        "act_fn": config.choice("act_fn", "silu", "swish"),
        "latent_channels": config.integer("latent_channels"),
        "norm_num_groups": config.integer("norm_num_groups", 32),
        "sample_size": config.integer("sample_size", high=1 << 16),
        "scaling_factor": config.number("scaling_factor", low=0.01, high=100),
        "shift_factor": config.number("shift_factor", low=-100, high=100) if config.given("shift_factor") else None,
        # This pipeline scales by scaling_factor and shift_factor alone.
        "latents_mean": config.choice("latents_mean", None),
        "latents_std": config.choice("latents_std", None),
        "force_upcast": config.flag("force_upcast", True),
        "use_quant_conv": config.flag("use_quant_conv", True),
        "use_post_quant_conv": config.flag("use_post_quant_conv", True),
        "mid_block_add_attention": config.flag("mid_block_add_attention", True),
    }


def _scheduler(config: Section) -> Settings:
    found = {
        "num_train_timesteps": config.integer("num_train_timesteps", 1000, 1, 100_000),
        "shift": config.number("shift", 1.0, 0.01, 100),
        "use_dynamic_shifting": config.flag("use_dynamic_shifting", False),
        "base_shift": config.number("base_shift", 0.5, 0, 100),
        "max_shift": config.number("max_shift", 1.15, 0, 100),
        "base_image_seq_len": config.integer("base_image_seq_len", 256),
        "max_image_seq_len": config.integer("max_image_seq_len", 4096),
        "use_karras_sigmas": config.flag("use_karras_sigmas", False),
        "use_exponential_sigmas": config.flag("use_exponential_sigmas", False),
        "time_shift_type": config.choice("time_shift_type", "exponential", "linear"),
        # Other models use these: noise at the other end, noise that no seed determines, another package.
        "invert_sigmas": config.choice("invert_sigmas", False),
        "shift_terminal": config.choice("shift_terminal", None),
        "stochastic_sampling": config.choice("stochastic_sampling", False),
        "use_beta_sigmas": config.choice("use_beta_sigmas", False),
    }
    if found["use_karras_sigmas"] and found["use_exponential_sigmas"]:
        raise config.wrong("use_exponential_sigmas", "false, since use_karras_sigmas is true")
    if found["max_image_seq_len"] <= found["base_image_seq_len"]:
        raise config.wrong("max_image_seq_len", f"greater than {found['base_image_seq_len']}, the base_image_seq_len")
    if found["max_shift"] < found["base_shift"]:
        raise config.wrong("max_shift", f"at least {found['base_shift']}, the base_shift")
    return found


def _vlm(config: Section) -> Settings:
    # Older exports keep the settings of the language model at the top level.
    flat = config.content.get("text_config") in (None, {})
    text = _text(config if flat else config.section("text_config"))
    vision = _vision(config.section("vision_config"))
    return {
        "text_config": text,
        "vision_config": vision,
        "image_token_id": config.integer("image_token_id", 151655, 0, text["vocab_size"] - 1),
        # What is not None is compared with the tokenizer.
        **{
            key: config.integer(key, low=0, high=text["vocab_size"] - 1) if config.given(key) else None
            for key in ("vision_start_token_id", "vision_end_token_id")
        },
    }


def _text(config: Section) -> Settings:
    layers, heads = config.integer("num_hidden_layers", low=2), config.integer("num_attention_heads")
    if config.given("layer_types"):
        config.repeated("layer_types", "full_attention", layers)
    # transformers 5 writes all rope settings into one object, 4.x the base next to it.
    rope = config.section("rope_parameters" if config.given("rope_parameters") else "rope_scaling")
    for key in ("rope_type", "type"):
        rope.choice(key, "default", "mrope")
    base = rope if rope.given("rope_theta") else config
    return {
        "vocab_size": config.integer("vocab_size"),
        "hidden_size": config.integer("hidden_size"),
        "intermediate_size": config.integer("intermediate_size"),
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": config.integer("num_key_value_heads") if config.given("num_key_value_heads") else heads,
        "hidden_act": config.choice("hidden_act", "silu"),
        "max_position_embeddings": config.integer("max_position_embeddings", 128000),
        "rms_norm_eps": config.number("rms_norm_eps", 1e-5, 1e-12, 0.1),
        "rope_theta": base.number("rope_theta", 1e6, 1, 1e12),
        "rope_scaling": {
            "mrope_section": rope.integers("mrope_section", length=3),
            "rope_type": "default",
            "type": "default",
        },
        # The model was trained without windows.
        "use_sliding_window": config.choice("use_sliding_window", False, None) or False,
        # lm_head, which this is about, is never made.
        "tie_word_embeddings": True,
    }


def _vision(config: Section) -> Settings:
    return {
        "depth": config.integer("depth"),
        "hidden_size": config.integer("hidden_size"),
        "hidden_act": config.choice("hidden_act", "silu"),
        "intermediate_size": config.integer("intermediate_size"),
        "num_heads": config.integer("num_heads"),
        # Qwen's own files call it in_chans.
        "in_channels": config.choice("in_channels" if config.given("in_channels") else "in_chans", 3),
        "patch_size": config.integer("patch_size", 14, high=1 << 10),
        "spatial_merge_size": config.integer("spatial_merge_size", 2, high=1 << 6),
        "temporal_patch_size": config.integer("temporal_patch_size", 2, high=1 << 6),
        "window_size": config.integer("window_size", 112),
        "out_hidden_size": config.integer("out_hidden_size"),
        "fullatt_block_indexes": config.integers("fullatt_block_indexes", [7, 15, 23, 31], low=0),
    }


_READERS: dict[str, Callable[[Section], Settings]] = {
    "vlm": _vlm,
    "connector": _connector,
    "transformer": _transformer,
    "vae": _vae,
    "scheduler": _scheduler,
}


def relations(part: str, file: Path, settings: Mapping[str, Any]) -> None:
    """Refuse settings that do not fit each other, where no stored tensor shows which is right.

    Raises:
        CheckpointError: As `settings`.
    """
    config = Section(file, settings)
    if part == "connector":
        _divisor(config.section("connector"), "num_attention_heads", "hidden_size")
    elif part == "transformer":
        if settings["num_attention_heads"] * settings["attention_head_dim"] % 4:
            raise config.wrong(
                "attention_head_dim", "a number whose product with num_attention_heads is a multiple of 4"
            )
        if settings["sample_size"] < settings["patch_size"]:
            raise config.wrong("sample_size", f"at least {settings['patch_size']}, the patch_size")
        if settings["out_channels"] != settings["in_channels"]:
            # The velocity is added to the latents.
            raise config.wrong("out_channels", f"{settings['in_channels']}, the in_channels")
    elif part == "vae":
        channels = settings["block_out_channels"]
        if any(one % settings["norm_num_groups"] for one in channels):
            raise config.wrong("norm_num_groups", f"a divisor of each of {channels}, the block_out_channels")
        # Tiles of this size overlap by a quarter, in pixels as in latents.
        if settings["sample_size"] % (step := 4 << (len(channels) - 1)):
            raise config.wrong("sample_size", f"a multiple of {step}")
    elif part == "vlm":
        _divisor(config.section("text_config"), "num_attention_heads", "hidden_size")
        _divisor(config.section("text_config"), "num_key_value_heads", "num_attention_heads")
        _vision_relations(config.section("vision_config"))


def _vision_relations(vision: Section) -> None:
    settings = vision.content
    _divisor(vision, "num_heads", "hidden_size")
    if settings["hidden_size"] // settings["num_heads"] % 4:
        raise vision.wrong(
            "num_heads",
            f"a number for which hidden_size {settings['hidden_size']} gives heads whose width is a multiple of 4",
        )
    cell, window = settings["patch_size"] * settings["spatial_merge_size"], settings["window_size"]
    # A window larger than the image is padded with empty cells.
    if window % cell or window > 32 * cell:
        raise vision.wrong("window_size", f"a multiple of {cell} from {cell} to {32 * cell}")
    indexes, depth = settings["fullatt_block_indexes"], settings["depth"]
    if len(set(indexes)) != len(indexes) or max(indexes, default=0) >= depth:
        raise vision.wrong("fullatt_block_indexes", f"a list of different integers from 0 to {depth - 1}")


def check_shifting(file: Path, scheduler: Mapping[str, Any], tokens: int) -> None:
    """Refuse a shift that grows with the image beyond what can be computed at ``tokens`` image tokens."""
    if not scheduler["use_dynamic_shifting"]:
        return
    base, first = scheduler["base_shift"], scheduler["base_image_seq_len"]
    slope = (scheduler["max_shift"] - base) / (scheduler["max_image_seq_len"] - first)
    for count in (1, tokens):
        if not 0 < (mu := base + slope * (count - first)) <= 50:
            raise wrong(file, f"the shift of base_shift and max_shift for {count} tokens", mu, "from 0 to 50")


def is_table(value: object, rows: int, columns: int) -> bool:
    """Whether it is a list of ``rows`` lists of ``columns`` finite numbers."""

    def is_row(row: object) -> bool:
        return isinstance(row, list) and len(row) == columns and all(map(_is_colour, row))

    return isinstance(value, list) and len(value) == rows and all(map(is_row, value))


def _is_colour(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) <= 1000


def _divisor(config: Section, key: str, dividend_key: str) -> None:
    if (dividend := config.content[dividend_key]) % config.content[key]:
        raise config.wrong(key, f"a divisor of {dividend}, the {dividend_key}")


def _or(values: Sequence[Any]) -> str:
    words = {None: "null", True: "true", False: "false"}
    return " or ".join(words[one] if one is None or isinstance(one, bool) else repr(one) for one in values)
