"""The parts of a pipeline: loading and moving them. `pipeline` runs them."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from tqdm.auto import tqdm

from .checkpoint.folder import PARTS, Checkpoint, resolve_model
from .checkpoint.reading import BytesRead
from .checkpoint.weights import copy_to, load_part, load_scheduler, load_tokenizer
from .checks import must_be
from .devices import resolve_device, resolve_dtype
from .dtypes import dtype_of_part
from .encoding_cache import EncodingCache
from .errors import CheckpointError
from .graphs import CaptureGraph, Graphs
from .lora.adapters import Adapters
from .model.projections import lay_together
from .placement import ModelOffload, Placement, StayInPlace, device_of
from .prompts import PromptTemplate
from .quantization.linear import quantized_layers
from .quantization.support import require_support
from .sizes import SizeRules


if TYPE_CHECKING:
    from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, SD3Transformer2DModel
    from transformers import PreTrainedTokenizerBase, Qwen2_5_VLForConditionalGeneration
    from typing_extensions import Self

    from .model.connector import Connector


def device_map(device: torch.device, text_encoder_device: str | torch.device | None = None) -> dict[str, torch.device]:
    """The device of each part; VLM and connector may have another than DiT and VAE."""
    text = device if text_encoder_device is None else resolve_device(text_encoder_device)
    return {part: text if part in ("vlm", "connector") else device for part in PARTS}


def require_formats(checkpoint: Checkpoint, devices: Mapping[str, torch.device]) -> None:
    """Refuse weights in a format that a part's device cannot compute with, before anything is read.

    Raises:
        DeviceError: Naming the format to take instead.
    """
    for part, layers in checkpoint.quantized.items():
        if part in devices:
            require_support(layers.values(), devices[part])


@dataclass(frozen=True)
class Part:
    """Where a part of the model lies between runs, and how large it is there."""

    device: str
    nbytes: int


class Components:
    """VLM, tokenizer, connector, DiT, VAE and scheduler of one checkpoint, and where they run."""

    def __init__(
        self,
        vlm: Qwen2_5_VLForConditionalGeneration,
        tokenizer: PreTrainedTokenizerBase,
        connector: Connector,
        transformer: SD3Transformer2DModel,
        vae: AutoencoderKL,
        scheduler: FlowMatchEulerDiscreteScheduler,
        prompt_template: PromptTemplate,
        placement: Placement | None = None,
        sizes: SizeRules | None = None,
    ):
        self.vlm = vlm
        self.tokenizer = tokenizer
        self.connector = connector
        self.transformer = transformer
        self.vae = vae
        self.scheduler = scheduler
        self.prompt_template = prompt_template
        self.placement = placement or StayInPlace(self._models)
        self.sizes = sizes or SizeRules.from_configs(
            transformer.config, vae.config, vlm.config.vision_config.to_dict()
        )
        self.vae_scale_factor = self.sizes.vae_factor
        self.capture_graph: CaptureGraph = False
        """Capture the denoising step in a graph of the device (NPU, CUDA) and replay it.

        The output is identical; if capture is unavailable, a warning is logged. ``"auto"`` captures where a
        measurement on this machine, at the first run of a size, finds it to be identical and faster. Graphs are kept
        for the next run of the same size, until the weights move."""
        self.graphs = Graphs()
        """Graphs of earlier runs. They hold the activations of a step; ``clear()`` frees them."""
        self.encodings = EncodingCache()
        """Cache of encoded prompts and references. It is off until its ``max_bytes`` is set."""
        self._cfg_transformers: list[SD3Transformer2DModel] = []
        self._adapters = Adapters(transformer)
        self._progress_bar_config: dict[str, Any] = {}
        image_token = tokenizer.convert_tokens_to_ids(prompt_template.image_token)
        if image_token != vlm.config.image_token_id:
            requirement = f"{image_token}, the tokenizer's id of {prompt_template.image_token} (prompt_template.json)"
            raise CheckpointError(must_be("image_token_id of vlm/config.json", requirement, vlm.config.image_token_id))

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | os.PathLike[str],
        torch_dtype: torch.dtype | str | None = "auto",
        device: str | torch.device | None = None,
        text_encoder_device: str | torch.device | None = None,
        attn_implementation: str | None = None,
        on_bytes_read: BytesRead | None = None,
        disable_mmap: bool = False,
    ) -> Self:
        """Load the published folder part by part. No code of the folder is executed.

        Args:
            pretrained_model_name_or_path: A local folder, or a Hugging Face id: then the local caches of
                Hugging Face and ModelScope are searched before anything is downloaded.
            torch_dtype: ``torch.float32``, ``torch.bfloat16``, ``torch.float16``, their names, or ``auto``:
                bfloat16 where the device multiplies in it, float16 on cards without it, float32 on other CPUs (see
                `devices.best_dtype`). With float16 the VAE, and sums within the other parts, are in float32.
            device: Where the weights are loaded to. None loads them to the CPU; the dtype ``auto`` is then that of
                the device that ``auto`` finds, since that is where they will go.
            text_encoder_device: Another device for VLM and connector, for instance a second card.
            attn_implementation: The VLM's attention in transformers: ``sdpa`` (the default of transformers, as with
                None), ``eager`` or a flash attention.
            on_bytes_read: Called with the size of each piece read, for a progress bar.
            disable_mmap: Read all weights into memory. Otherwise those that stay on the CPU in the dtype of the files
                are views of the mapped files, on Linux and local disks: loading is then a matter of moments, and each
                weight is read at its first use. Until the pipeline is gone such a file must not be overwritten or cut
                in place, which changes the model or ends the process (SIGBUS); replacing it by renaming another onto
                it is safe.

        Raises:
            CheckpointError: When something is missing or does not fit, before any weights are read.
        """
        checkpoint = Checkpoint.open(resolve_model(pretrained_model_name_or_path))
        where = resolve_device(device or "cpu")
        # Only "auto" needs to know where an unplaced pipeline will go: looking sets devices up.
        undecided = device is None and torch_dtype in (None, "auto")
        pipe = cls.from_checkpoint(
            checkpoint,
            resolve_dtype(torch_dtype, resolve_device("auto") if undecided else where),
            devices=device_map(where, text_encoder_device),
            on_bytes_read=on_bytes_read,
            disable_mmap=disable_mmap,
        )
        if attn_implementation is not None:
            pipe.vlm.set_attn_implementation(attn_implementation)
        return pipe

    @classmethod
    def from_checkpoint(
        cls,
        checkpoint: Checkpoint,
        dtype: torch.dtype,
        devices: Mapping[str, torch.device],
        loaded: Mapping[str, Any] | None = None,
        on_bytes_read: BytesRead | None = None,
        disable_mmap: bool = False,
    ) -> Self:
        """Load a checked folder, each part to its device.

        Args:
            checkpoint: The folder.
            dtype: Of the weights (see `dtypes.dtype_of_part`).
            devices: A device for each of ``vlm``, ``connector``, ``transformer`` and ``vae`` that is read.
            loaded: Parts that are loaded already, by these names; they may have another dtype.
            on_bytes_read: As in `from_pretrained`.
            disable_mmap: As in `from_pretrained`.
        """
        require_formats(checkpoint, devices)
        template = PromptTemplate.from_config(checkpoint.prompt_template)
        sizes = checkpoint.sizes
        tokenizer = load_tokenizer(checkpoint)
        parts = dict(loaded or {})
        for part in PARTS:
            if part not in parts:
                own = dtype_of_part(part, dtype)
                parts[part] = load_part(checkpoint, part, own, devices[part], on_bytes_read, disable_mmap)
        return cls(
            tokenizer=tokenizer,
            scheduler=load_scheduler(checkpoint),
            prompt_template=template,
            sizes=sizes,
            **parts,
        )

    @property
    def _models(self) -> dict[str, Any]:
        return {
            "vlm": self.vlm,
            "connector": self.connector,
            "transformer": self.transformer,
            "vae": self.vae,
        }

    @property
    def components(self) -> dict[str, Any]:
        """All parts by name, as the constructor takes them."""
        return {
            **self._models,
            "tokenizer": self.tokenizer,
            "scheduler": self.scheduler,
            "prompt_template": self.prompt_template,
        }

    def memory(self) -> dict[str, Part]:
        """Where each part is, and its size there: parameters and buffers.

        The DiT's table of positions, hundreds of MiB, stays on the CPU, and counts there only.
        """
        sizes = {}
        for name, module in self._models.items():
            device = device_of(module)
            tensors = {id(tensor): tensor for tensor in (*module.parameters(), *module.buffers())}
            here = sum(tensor.nbytes for tensor in tensors.values() if tensor.device == device)
            sizes[name] = Part(str(device), here)
        return sizes

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the DiT's weights, in which it computes."""
        return self.transformer.dtype

    def to(self, device: str | torch.device, text_encoder_device: str | torch.device | None = None) -> Self:
        """Move every part to ``npu``, ``npu:1``, ``cuda``, ``cpu`` or ``auto``. Ends model offload and CFG parallel.

        The dtype is chosen in `from_pretrained`: casting later would also cast the VLM's rotary frequencies,
        which are float32 in the published model.

        Args:
            device: Where the parts go.
            text_encoder_device: Another device for VLM and connector, for instance a second card.
        """
        devices = device_map(resolve_device(device), text_encoder_device)
        self._require_support(devices)
        self._forget_copies()
        for part, model in self._models.items():
            model.to(devices[part])
        lay_together(self.transformer)
        self.placement = StayInPlace(self._models)
        return self

    def enable_model_cpu_offload(self, device: str | torch.device = "auto") -> None:
        """Keep the parts on the CPU and move each to ``device`` for its stage only.

        The peak on the device is then the largest part (the VLM, 7 GiB in bfloat16) plus activations.
        """
        target = resolve_device(device)
        self._require_support(device_map(target))
        self._forget_copies()
        self.placement = ModelOffload(self._models, target)
        self.placement.release()

    def enable_cfg_parallel(self, device: str | torch.device) -> None:
        """Evaluate the two branches of classifier-free guidance on two devices at once.

        The positive branch stays where the DiT is; the negative one gets a copy of the DiT's weights on ``device``.
        Without `capture_graph` both may have to wait for the host, which launches their operators. `to` ends it.

        Raises:
            ValueError: When the DiT is on that device, or model offload is enabled.
        """
        target, here = resolve_device(device), device_of(self.transformer)
        if isinstance(self.placement, ModelOffload):
            raise ValueError("CFG parallel and model offload cannot be combined: call to() first, which ends offload.")
        if target == here:
            raise ValueError(must_be("device", f"another device than {here}, which the DiT is on", str(target)))
        require_support(quantized_layers(self.transformer).values(), target)
        self._cfg_transformers = [copy_to(self.transformer, target)]

    def _forget_copies(self) -> None:
        """Of the DiT: on a second device, and in graphs."""
        self._cfg_transformers = []
        self.graphs.clear()

    def _require_support(self, devices: Mapping[str, torch.device]) -> None:
        for part, model in self._models.items():
            require_support(quantized_layers(model).values(), devices[part])

    def load_lora_weights(
        self, path: str | os.PathLike[str], adapter_name: str | None = None, weight: float = 1.0
    ) -> str:
        """Merge a LoRA into the DiT's weights, beside those that are loaded already.

        It costs nothing while images are drawn. The weights before are kept on the host, of the changed layers only;
        the merged ones are computed from them in float32 and rounded once.

        Args:
            path: A .safetensors file, or a folder that diffusers or PEFT saved. Names of diffusers, PEFT, kohya,
                LyCORIS, OneTrainer and of SD3's reference implementation are known; LoRA, DoRA, LoHa, LoKr, full
                differences, biases and norms. Keys that match nothing are listed in the log.
            adapter_name: To change its strength by; None takes the name of the file.
            weight: Its strength, from -100 to 100: 1 is as trained, 0 changes nothing.

        Returns:
            The name.

        Raises:
            LoraError: When the file cannot be read, is made for another model, or is of a kind that is not known.
                Then nothing has changed.
            TypeError, ValueError: For a name that is loaded already or a weight that cannot be.
        """
        return self._adapters.load(path, adapter_name, weight, self._cfg_transformers)

    def set_adapters(
        self, adapter_names: str | Sequence[str], adapter_weights: float | Sequence[float] | None = None
    ) -> None:
        """Set the strengths of loaded LoRAs, all at once; those that are not named get 0.

        Args:
            adapter_names: One or several, as `load_lora_weights` returned them.
            adapter_weights: One for each name, or one number for all; None is 1.
        """
        self._adapters.set(adapter_names, adapter_weights, self._cfg_transformers)

    @property
    def adapter_weights(self) -> dict[str, float]:
        """The strength of each loaded LoRA by its name, in the order in which they were loaded."""
        return self._adapters.weights

    def unload_lora_weights(self) -> None:
        """Take all LoRAs out: the DiT's weights are again what they were, to the bit."""
        self._adapters.unload(self._cfg_transformers)

    def enable_vae_tiling(self) -> None:
        """Decode and encode in overlapping tiles where an image is larger than the VAE's training size (1024 pixels).

        Needs less memory at large sizes. It is an approximation: normalisation and attention see a tile instead of
        the image. With the demo's VAE and its tiles of 64 pixels, pixels differ by 10.6 of 255 levels on average.
        """
        self.vae.enable_tiling()

    def disable_vae_tiling(self) -> None:
        """Decode and encode images in one piece, whatever their size."""
        self.vae.disable_tiling()

    def progress_bar(self, total: int) -> tqdm:
        """The progress bar of a run with ``total`` steps."""
        return tqdm(total=total, **self._progress_bar_config)

    def set_progress_bar_config(self, **config: Any) -> None:
        """Arguments for tqdm, for instance ``disable=True``."""
        self._progress_bar_config = config
