"""From a checked folder to models, one part at a time and without a second copy of the weights.

Each model is built from its config with parameters that occupy no memory. Its tensors are then read from
the file straight into their final storage; those that stay on the CPU as they are stored are views of the mapped
file. safetensors' own loader always maps it, and mapped pages count as resident until the file is closed, so
converting 10 GB that way peaks at 15.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn import Identity, Module

from ..devices import is_out_of_memory
from ..errors import CheckpointError
from ..model.connector import Connector
from ..model.positions import STAYS_ON_HOST, keep_positions_on_host
from ..model.projections import lay_together, places_together
from ..quantization.formats import SCALE, LayerFormat
from ..quantization.linear import quantized_layers, replace_layers
from ..quantization.support import require_support
from .folder import Checkpoint
from .quantized import without_extras
from .reading import BytesRead, Means, read_tensor
from .schema import CONFIG_FILES, settings
from .structure import by_model_names
from .tokenizer_files import TokenizerFiles


if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


# ComfyUI calls this in inference mode and later moves the model outside of it, which tensors made there refuse.
@torch.inference_mode(False)
def load_part(
    checkpoint: Checkpoint,
    part: str,
    dtype: torch.dtype,
    device: torch.device | str = "cpu",
    on_bytes_read: BytesRead | None = None,
    disable_mmap: bool = False,
) -> Module:
    """Load ``vlm``, ``connector``, ``transformer`` or ``vae``, ready for inference.

    Args:
        checkpoint: The checked folder.
        part: Which of the four.
        dtype: Of the weights. Rotary frequencies of the VLM are computed, not stored, and stay float32.
        device: Where the weights are read to; nothing of their size is kept on the host on the way.
        on_bytes_read: Called with the number of bytes of each piece that was read.
        disable_mmap: Whether weights that stay on the CPU as they are stored are read, too. Otherwise they are views
            of the file, where that is safe (see `mapping`).

    Raises:
        CheckpointError: When names or shapes of tensors do not match the config.
        DeviceError: When the device cannot compute with the part's quantised weights.
    """
    stored = by_model_names(part, checkpoint.folder / part, checkpoint.tensors[part])
    layers = checkpoint.quantized.get(part, {})
    require_support(layers.values(), torch.device(device))
    with _named(checkpoint, part):
        model = empty_model(part, checkpoint.configs[part], layers)
    state: dict[str, Tensor] = {}
    places = places_together(model, dtype, torch.device(device)) if part == "transformer" else {}
    with Means(disable_mmap, max(tensor.nbytes for tensor in stored.values())) as means:
        for name, tensor in without_extras(stored, layers).items():
            if name.removesuffix(".weight") not in layers:
                home, place = home_of(name, device), places.pop(name, None)
                state[name] = read_tensor(tensor, dtype, home, on_bytes_read, means, place)
        for name in layers:
            state[f"{name}.weight"] = read_tensor(stored[f"{name}.weight"], None, device, on_bytes_read, means)
            scale = read_tensor(stored[f"{name}.{SCALE}"], None, device, on_bytes_read, means)
            shape = model.get_submodule(name).weight_scale.shape
            # A file may have one scale for all rows: kernels take one for each.
            state[f"{name}.{SCALE}"] = (
                scale.reshape(-1, *shape[1:]).expand(shape).contiguous() if shape else scale.view(())
            )
    with _named(checkpoint, part):
        return filled(model, state, device)


def filled(model: Module, state: dict[str, Tensor], device: torch.device) -> Any:
    """A model without memory, as `empty_model` makes it, with its weights on ``device``, ready for inference.

    Args:
        model: It gets the tensors themselves.
        state: Is empty afterwards: what still held them would keep a second copy of those that are laid together.
        device: Where they go.
    """
    from diffusers import SD3Transformer2DModel

    model.requires_grad_(False)
    model.load_state_dict(state, assign=True)
    state.clear()
    if isinstance(model, SD3Transformer2DModel):
        keep_positions_on_host(model)
    # Rotary frequencies, which no file contains, were computed on the CPU.
    model.to(device).eval()
    if isinstance(model, SD3Transformer2DModel):
        lay_together(model)
    return model


def home_of(name: str, device: torch.device | str) -> torch.device | str:
    """Where a tensor of a model on ``device`` is kept: there, except for the DiT's table of positions."""
    return "cpu" if name == STAYS_ON_HOST else device


@contextmanager
def _named(checkpoint: Checkpoint, part: str) -> Iterator[None]:
    """Turn what a library raises about a part that passed all checks into an error that names the part.

    Running out of memory is not a fault of the checkpoint. What ends a run from outside is never raised in here.
    """
    try:
        yield
    except Exception as error:
        if isinstance(error, (CheckpointError, MemoryError)) or is_out_of_memory(error):
            raise
        reason = f"{type(error).__name__}: {error}".strip()[:500]
        raise CheckpointError(
            f"{checkpoint.folder / CONFIG_FILES.get(part, part)}: the {part} cannot be built from it ({reason})."
        ) from error


def copy_to(model: Module, device: torch.device) -> Any:
    """A copy of a DiT or VAE on another device; nothing of its size is kept elsewhere on the way."""
    config = dict(model.config)
    with torch.device("meta"):
        copy = type(model).from_config(config)  # pyright: ignore[reportAttributeAccessIssue]
    replace_layers(copy, quantized_layers(model))
    state = {name: tensor.to(home_of(name, device)) for name, tensor in model.state_dict().items()}
    return filled(copy, state, device)


def load_scheduler(checkpoint: Checkpoint):
    """The ``FlowMatchEulerDiscreteScheduler`` with the folder's settings."""
    from diffusers import FlowMatchEulerDiscreteScheduler

    with _named(checkpoint, "scheduler"):
        return FlowMatchEulerDiscreteScheduler.from_config(dict(checkpoint.configs["scheduler"]))


def load_tokenizer(checkpoint: Checkpoint) -> PreTrainedTokenizerBase:
    """The Qwen2 tokenizer of the folder, in its fast form. Only its own files are read and no remote code runs."""
    files = TokenizerFiles.read(checkpoint.folder)
    files.check_ids(checkpoint.text_config["vocab_size"])
    with _named(checkpoint, "tokenizer"):
        return files.build()


def empty_model(part: str, config: Mapping[str, Any], layers: Mapping[str, LayerFormat] | None = None) -> Any:
    """The model of a part as its config describes it, with parameters that occupy no memory (meta device).

    The VLM comes without its ``lm_head``: the published folder leaves it out, since it is the embedding again,
    and image generation never uses it. Its rotary frequencies are real.

    Args:
        part: ``vlm``, ``connector``, ``transformer`` or ``vae``.
        config: Its settings.
        layers: Those that are quantised, by the names of their modules.
    """
    model = _empty_model(part, settings(part, Path(CONFIG_FILES[part]), config))
    replace_layers(model, layers or {})
    return model


def _empty_model(part: str, config: dict[str, Any]) -> Any:
    if part == "connector":
        with torch.device("meta"):
            return Connector(config)
    if part == "vlm":
        from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

        # The device of a with statement belongs to this thread; accelerate's init_empty_weights would put the
        # modules of every other thread on the meta device as well.
        with _quiet_transformers():
            # transformers writes into its config, and does not accept None.
            given = {key: value for key, value in copy.deepcopy(config).items() if value is not None}
            with torch.device("meta"):
                model = Qwen2_5_VLForConditionalGeneration(Qwen2_5_VLConfig.from_dict(given))
            model.lm_head = Identity()
            _make_rotary_buffers(model)
        return model
    from diffusers import AutoencoderKL, SD3Transformer2DModel

    model_class = {"transformer": SD3Transformer2DModel, "vae": AutoencoderKL}[part]
    with torch.device("meta"):
        return model_class.from_config(config)


def _make_rotary_buffers(vlm: Any) -> None:
    """Compute the rotary frequencies, which no file contains, of a VLM that was built on the meta device."""
    text, vision = vlm.config.get_text_config(), vlm.config.vision_config
    for module in vlm.modules():
        if not any(buffer.is_meta for buffer in module.buffers(recurse=False)):
            continue
        kind = type(module)
        config = vision if "Vision" in kind.__name__ else text
        # transformers 4.5x makes the vision tower's from the half of a head's width.
        by_config = next(iter(inspect.signature(kind).parameters)) == "config"
        made = kind(config) if by_config else kind(vision.hidden_size // vision.num_heads // 2)
        for name, value in vars(made).items():
            if isinstance(value, Tensor):
                setattr(module, name, value)
        for name, buffer in made.named_buffers():
            setattr(module, name, buffer)


@contextmanager
def _quiet_transformers() -> Iterator[None]:
    """Silence transformers 5, which warns about the rope settings of configs that 4.5x wrote; both mean the same."""
    from transformers.utils import logging as transformers_logging

    verbosity = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(verbosity)
