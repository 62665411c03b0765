"""What goes from the loader to the other nodes: which weights to use, and how. They are read when first needed.

ComfyUI may drop the output from its cache and run the loader again at any time, so it costs nothing to make, and
outputs with the same weights share them as long as one of them lives.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING
from weakref import WeakValueDictionary

import comfy.model_management as mm
import torch

from ..deepgen_npu.checkpoint.folder import PARTS, Checkpoint
from ..deepgen_npu.checkpoint.weights import load_tokenizer
from ..deepgen_npu.devices import resolve_dtype
from ..deepgen_npu.pipeline import DeepGenPipeline
from ..deepgen_npu.prompts import PromptTemplate, check_prompts
from ..deepgen_npu.sizes import SizeRules
from .model_folder import state_of
from .placement import ComfyPlacement, WholePatcher
from .progress import latent_format, reading_progress
from .vae import ComfyVAE


if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


ENCODINGS_BYTES = 256 << 20
"""Of the cache of encoded prompts and images, which take about 3 MiB each."""


class LazyPipeline:
    """A checkpoint folder and a dtype, and the weights once they were needed.

    Args:
        folder: Of the checkpoint.
        dtype_name: One of the loader's.
        capture_graph: Whether the denoising step is captured and replayed.

    Raises:
        CheckpointError: When the folder is not complete.
    """

    def __init__(self, folder: Path, dtype_name: str, capture_graph: bool):
        self.capture_graph = capture_graph
        self._weights = _shared(folder, resolve_dtype(dtype_name, mm.get_torch_device()))

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
        pipe = self._weights.load()
        pipe.capture_graph = self.capture_graph
        return pipe

    # For ComfyUI's cache, which asks outside of any node: nothing is read, and nothing raised.

    def get_ram_usage(self) -> int:
        """Bytes of the weights that were read; ComfyUI 0.8 asks when main memory runs short."""
        return self._weights.nbytes()

    @property
    def patcher(self) -> WholePatcher | None:
        """The DiT's, once it was read. Later versions of ComfyUI assume that an output with one holds gigabytes."""
        return self._weights.denoiser()


class _Weights:
    def __init__(self, checkpoint: Checkpoint, dtype: torch.dtype):
        self.sizes = checkpoint.sizes
        self.prompt_template = PromptTemplate.from_config(checkpoint.prompt_template)
        # Never float16 unless asked for with --fp16-vae: ComfyUI does not run this VAE in it either.
        dtypes = [] if dtype == torch.float32 else [torch.bfloat16]
        self.vae = ComfyVAE(checkpoint, mm.vae_dtype(mm.vae_device(), dtypes))
        self._latent_format = latent_format(checkpoint)
        self.checkpoint = checkpoint
        self._dtype = dtype
        self._pipe: DeepGenPipeline | None = None

    def tokenizer(self) -> PreTrainedTokenizerBase:
        """Loaded by itself only for a long text that is there before the weights are."""
        return load_tokenizer(self.checkpoint) if self._pipe is None else self._pipe.tokenizer

    def load(self) -> DeepGenPipeline:
        if self._pipe is None:
            self._pipe = self._read()
        return self._pipe

    def nbytes(self) -> int:
        if self._pipe is None:
            return self.vae.get_ram_usage()
        assert isinstance(self._pipe.placement, ComfyPlacement)
        return self._pipe.placement.nbytes()

    def denoiser(self) -> WholePatcher | None:
        placement = self._pipe.placement if self._pipe else None
        return placement.denoiser if isinstance(placement, ComfyPlacement) else None

    def _read(self) -> DeepGenPipeline:
        """Read the weights to where ComfyUI keeps idle models."""
        missing = [part for part in PARTS if part != "vae" or not self.vae.is_loaded]
        on_bytes_read = reading_progress(self.checkpoint, *missing)
        pipe = DeepGenPipeline.from_checkpoint(
            self.checkpoint,
            self._dtype,
            devices={
                "vlm": mm.text_encoder_offload_device(),
                "connector": mm.unet_offload_device(),
                "transformer": mm.unet_offload_device(),
            },
            vae=self.vae.first_stage_model.read(on_bytes_read),
            on_bytes_read=on_bytes_read,
        )
        pipe.placement = ComfyPlacement(pipe, self.vae.patcher, self._latent_format)
        pipe.encodings.max_bytes = ENCODINGS_BYTES
        return pipe


_KNOWN: WeakValueDictionary[tuple[str, torch.dtype], _Weights] = WeakValueDictionary()


def _shared(folder: Path, dtype: torch.dtype) -> _Weights:
    """The weights of a folder in the state it has now."""
    key = (state_of(folder), dtype)
    weights = _KNOWN.get(key)
    if weights is None:
        weights = _KNOWN[key] = _Weights(Checkpoint.open(folder), dtype)
    return weights
