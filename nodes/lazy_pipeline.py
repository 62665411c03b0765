"""What goes from the loader to the other nodes: which weights to use, and how.

The DiT is read at once: as a MODEL of ComfyUI it must be there. All else is read when it is first needed. ComfyUI may
drop the output from its cache and run the loader again at any time, so outputs with the same weights share them as
long as one of them lives.
"""

from __future__ import annotations

from copy import copy
from pathlib import Path
from typing import TYPE_CHECKING, Any
from weakref import WeakValueDictionary

import comfy.model_management as mm
import torch

from ..deepgen_npu.checkpoint.folder import Checkpoint
from ..deepgen_npu.checkpoint.weights import load_part, load_scheduler, load_tokenizer
from ..deepgen_npu.components import require_formats
from ..deepgen_npu.denoising import set_timesteps
from ..deepgen_npu.devices import resolve_dtype
from ..deepgen_npu.pipeline import DeepGenPipeline
from ..deepgen_npu.prompts import PromptTemplate, check_prompts
from ..deepgen_npu.sizes import SizeRules
from .model_folder import state_of
from .native.model import model_patcher
from .native.sampling import CAPTURE_GRAPH
from .placement import ComfyPlacement
from .progress import reading_progress
from .reading import disable_mmap
from .vae import ComfyVAE


if TYPE_CHECKING:
    from comfy.model_patcher import ModelPatcher
    from torch import Tensor
    from transformers import PreTrainedTokenizerBase


ENCODINGS_BYTES = 256 << 20
"""Of the cache of encoded prompts and images, which take about 3 MiB each."""

SCHEDULES_OF_DIFFUSERS = ("use_dynamic_shifting", "use_karras_sigmas", "use_exponential_sigmas")
"""Settings of a scheduler that DeepGen 1.0 does not use, and that ComfyUI's ``normal`` does not know."""


class LazyPipeline:
    """A checkpoint folder, its DiT, and the other weights once they were needed.

    Args:
        folder: Of the checkpoint.
        dtype_name: One of the loader's.
        capture_graph: Whether the denoising step is captured and replayed.
        text_device: Where VLM and connector run; None is where the DiT does.

    Raises:
        CheckpointError: When the folder is not complete, or its DiT cannot be read.
        DeviceError: When the device cannot compute with the format of its weights.
    """

    def __init__(self, folder: Path, dtype_name: str, capture_graph: bool, text_device: torch.device | None = None):
        device = mm.get_torch_device()
        self._weights = _shared(folder, resolve_dtype(dtype_name, device), text_device or device)
        self.patcher: ModelPatcher = self._weights.model().clone()
        """The loader's third output. ComfyUI's cache reads it, too: an output with one holds gigabytes."""
        self.patcher.model_options["transformer_options"][CAPTURE_GRAPH] = capture_graph

    def with_patcher(self, patcher: ModelPatcher) -> LazyPipeline:
        """The same checkpoint, drawing with another clone of its MODEL: one that has a LoRA."""
        changed = copy(self)
        changed.patcher = patcher
        return changed

    @property
    def sizes(self) -> SizeRules:
        """Which image sizes the checkpoint allows."""
        return self._weights.sizes

    @property
    def vae(self) -> ComfyVAE:
        """The loader's second output."""
        return self._weights.vae

    @property
    def embedding_width(self) -> int:
        """Of the prompt embeddings that the DiT takes."""
        return self._weights.checkpoint.configs["transformer"]["joint_attention_dim"]

    @property
    def pooled_width(self) -> int:
        """Of the pooled prompt embeddings that the DiT takes."""
        return self._weights.checkpoint.configs["transformer"]["pooled_projection_dim"]

    def check_prompts(self, prompt: str, negative_prompt: str, editing: bool) -> None:
        """Refuse texts that cannot be encoded (see `prompts.check_prompts`); no weights are read."""
        weights = self._weights
        check_prompts(weights.prompt_template, weights.tokenizer, prompt, negative_prompt, editing)

    def load(self) -> DeepGenPipeline:
        """The pipeline, on ComfyUI's memory manager. The first call reads the weights, with a progress bar."""
        return self._weights.load()

    def sigmas(self, steps: int, denoise: float, height: int, width: int) -> Tensor | None:
        """The noise levels [steps + 1] of a checkpoint whose schedule ComfyUI does not have; None: it is ``normal``.

        Args:
            steps: Of the sampling.
            denoise: Denoising strength; below 1 they are the last of a longer schedule.
            height: Of the latents.
            width: Of the latents.
        """
        checkpoint = self._weights.checkpoint
        if not any(checkpoint.configs["scheduler"][setting] for setting in SCHEDULES_OF_DIFFUSERS):
            return None
        latents = torch.empty(1, 1, height, width)
        patch = checkpoint.configs["transformer"]["patch_size"]
        return set_timesteps(load_scheduler(checkpoint), steps, latents, patch, denoise)[1].cpu()

    def get_ram_usage(self) -> int:
        """Bytes of the weights that were read. ComfyUI 0.8 asks outside of any node when main memory runs short."""
        return self._weights.nbytes()


class _Weights:
    def __init__(self, checkpoint: Checkpoint, dtype: torch.dtype, text_device: torch.device):
        devices = {"vlm": text_device, "connector": text_device, "transformer": mm.get_torch_device()}
        require_formats(checkpoint, devices)
        self.sizes = checkpoint.sizes
        self.prompt_template = PromptTemplate.from_config(checkpoint.prompt_template)
        # Never float16 unless asked for with --fp16-vae: ComfyUI does not run this VAE in it either. And bfloat16 only
        # with a model in it: ComfyUI takes every NPU to be capable of it.
        dtypes = [torch.bfloat16] if dtype == torch.bfloat16 else []
        self.vae = ComfyVAE(checkpoint, mm.vae_dtype(mm.vae_device(), dtypes))
        self.checkpoint = checkpoint
        self._dtype, self._text_device = dtype, text_device
        self._transformer: Any = None
        self._model: ModelPatcher | None = None
        self._pipe: DeepGenPipeline | None = None

    def tokenizer(self) -> PreTrainedTokenizerBase:
        """Loaded by itself only for a long text that is there before the weights are."""
        return load_tokenizer(self.checkpoint) if self._pipe is None else self._pipe.tokenizer

    def model(self) -> ModelPatcher:
        """The DiT as a MODEL, read where ComfyUI keeps idle models. Others are clones of it."""
        if self._model is None:
            self._transformer = load_part(
                self.checkpoint,
                "transformer",
                self._dtype,
                mm.unet_offload_device(),
                reading_progress(self.checkpoint, "transformer"),
                disable_mmap(),
            )
            self._model = model_patcher(self._transformer, self.checkpoint, self._dtype)
        return self._model

    def load(self) -> DeepGenPipeline:
        if self._pipe is None:
            self._pipe = self._read()
        return self._pipe

    def nbytes(self) -> int:
        if self._pipe is not None:
            assert isinstance(self._pipe.placement, ComfyPlacement)
            return self._pipe.placement.nbytes()
        return self.vae.get_ram_usage() + (self._model.model_size() if self._model else 0)

    def _read(self) -> DeepGenPipeline:
        """Read what is missing to where ComfyUI keeps idle models."""
        model = self.model()
        missing = ["vlm", "connector"] + ([] if self.vae.is_loaded else ["vae"])
        on_bytes_read = reading_progress(self.checkpoint, *missing)
        pipe = DeepGenPipeline.from_checkpoint(
            self.checkpoint,
            self._dtype,
            devices=dict.fromkeys(("vlm", "connector"), mm.text_encoder_offload_device()),
            loaded={
                "transformer": self._transformer,
                "vae": self.vae.first_stage_model.read(on_bytes_read),
            },
            on_bytes_read=on_bytes_read,
            disable_mmap=disable_mmap(),
        )
        pipe.placement = ComfyPlacement(pipe, model, self.vae.patcher, self._text_device)
        pipe.encodings.max_bytes = ENCODINGS_BYTES
        return pipe


_KNOWN: WeakValueDictionary[tuple[str, torch.dtype, torch.device], _Weights] = WeakValueDictionary()


def _shared(folder: Path, dtype: torch.dtype, text_device: torch.device) -> _Weights:
    """The weights of a folder in the state it has now."""
    key = (state_of(folder), dtype, text_device)
    weights = _KNOWN.get(key)
    if weights is None:
        weights = _KNOWN[key] = _Weights(Checkpoint.open(folder), dtype, text_device)
    return weights
