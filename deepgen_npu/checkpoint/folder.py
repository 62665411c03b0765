"""The published folder: find it, read its configs, and check that it is complete.

Everything here reads JSON and safetensors headers only, so a damaged folder is reported within
milliseconds and before torch, diffusers or transformers are imported. Nothing in the folder is ever
executed: its ``deepgen_pipeline.py`` and ``model_index.json`` class names are ignored.
"""

from __future__ import annotations

import logging
import math
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from ..checks import Named, must_be, shown
from ..errors import CheckpointError, DownloadError
from ..hub.download import download, find_downloaded
from ..model.architecture import stacked_states
from ..prompts import PromptTemplate
from ..sizes import SizeRules
from .files import damaged, download_again, how_to_download, missing, printable, read_json, wrong
from .index_keys import LATENT_RGB_FACTORS_KEY, TRAINED_SIDE_KEY
from .quantized import Layers, layers_in, read_layers, without_extras
from .safetensors_header import SafetensorsFile, StoredTensor, read_safetensors, read_safetensors_header
from .schema import CONFIG_FILES, check_shifting, is_table, settings
from .structure import by_model_names, check_structure, model_name
from .tokenizer_files import TokenizerFiles


__all__ = [
    "PARTS",
    "Checkpoint",
    "CheckpointError",
    "StoredTensor",
    "find_model_folder",
    "how_to_download",
    "read_safetensors_header",
    "resolve_model",
]

logger = logging.getLogger(__name__)

PARTS = ("vlm", "connector", "transformer", "vae")

_WEIGHTS = {
    "vlm": "model.safetensors",
    "connector": "model.safetensors",
    "transformer": "diffusion_pytorch_model.safetensors",
    "vae": "diffusion_pytorch_model.safetensors",
}
"""File names as save_pretrained writes them: transformers for the VLM, diffusers for the DiT and the VAE, plain
safetensors for the connector."""


@dataclass(frozen=True)
class Checkpoint:
    """A checked checkpoint folder in the layout of ``deepgenteam/DeepGen-1.0-diffusers``.

    Attributes:
        folder: The folder with ``model_index.json``.
        configs: What the models are built from, for each of ``vlm``, ``connector``, ``transformer``, ``vae`` and
            ``scheduler``: the known keys of the config files, all of them, checked.
        tensors: For each part in `PARTS`, the stored tensors by name.
        prompt_template: The content of ``prompt_template.json``.
        index: The content of ``model_index.json``.
        stored_configs: The content of the config files, as it is.
        quantized: For each part, the quantised layers by the names of their modules.
    """

    folder: Path
    configs: Mapping[str, dict[str, Any]]
    tensors: Mapping[str, Mapping[str, StoredTensor]] = field(repr=False)
    prompt_template: Mapping[str, Any] = field(repr=False)
    index: Mapping[str, Any] = field(repr=False)
    stored_configs: Mapping[str, dict[str, Any]] = field(repr=False)
    quantized: Mapping[str, Layers] = field(repr=False, default_factory=dict)

    @classmethod
    def open(cls, folder: str | os.PathLike[str]) -> Checkpoint:
        """Read and check a folder.

        Raises:
            CheckpointError: Naming the missing or damaged file, or the two numbers that disagree.
        """
        folder = find_model_folder(folder)
        stored = {part: read_json(folder, name) for part, name in CONFIG_FILES.items()}
        template = read_json(folder, "prompt_template.json")
        index = read_json(folder, "model_index.json")
        tokenizer = TokenizerFiles.read(folder)
        files = {part: _part_tensors(folder, part) for part in PARTS}
        tensors = {part: stored for part, (stored, _) in files.items()}
        configs = {part: settings(part, folder / CONFIG_FILES[part], config) for part, config in stored.items()}
        quantized: dict[str, Layers] = {}
        for part, (_, in_headers) in files.items():
            by_name = by_model_names(part, folder / part, tensors[part])
            layers = quantized[part] = read_layers(by_name, in_headers)
            by_name = without_extras(by_name, layers)
            check_structure(part, folder / part, folder / CONFIG_FILES[part], configs[part], by_name)
        checkpoint = cls(folder, configs, tensors, template, index, stored, quantized)
        _check_dimensions(checkpoint)
        _check_language(checkpoint, tokenizer)
        _ = checkpoint.sizes
        latent_rgb_factors(checkpoint)
        return checkpoint

    @property
    def text_config(self) -> dict[str, Any]:
        """Settings of the VLM's language model."""
        return self.configs["vlm"]["text_config"]

    @property
    def vision_config(self) -> dict[str, Any]:
        """Settings of the VLM's vision tower."""
        return self.configs["vlm"]["vision_config"]

    @property
    def sizes(self) -> SizeRules:
        """Which image sizes the folder allows.

        Raises:
            CheckpointError: When the folder's trained side is not a number of pixels that the position grid covers.
        """
        rules = SizeRules.from_configs(self.configs["transformer"], self.configs["vae"], self.vision_config)
        if TRAINED_SIDE_KEY not in self.index:
            return rules
        side = self.index[TRAINED_SIDE_KEY]
        low, high = rules.generation_multiple, rules.longest_side
        if type(side) is not int or not low <= side <= high:
            requirement = f"an integer from {low} to {high} (pixels)"
            raise wrong(self.folder / "model_index.json", TRAINED_SIDE_KEY, side, requirement)
        return replace(rules, trained_side=side)

    def elements(self, part: str) -> int:
        """Number of stored elements of a part; times the bytes of a dtype, its size in memory."""
        return sum(math.prod(tensor.shape) for tensor in self.tensors[part].values())

    def nbytes(self, *parts: str) -> int:
        """Bytes of the weights in the files, of the named parts or of all."""
        return sum(tensor.nbytes for part in parts or PARTS for tensor in self.tensors[part].values())


def is_model_folder(path: Path) -> bool:
    """Whether there is a ``model_index.json`` in the folder."""
    # Not pathlib's, which lets some of the system's errors through.
    return os.path.isfile(path / "model_index.json")


def model_folders(root: Path, depth: int = 3) -> Iterator[Path]:
    """Checkpoint folders in ``root``, at most ``depth`` levels down, in name order.

    Hidden folders are skipped; links are followed, since models are often kept on another disk.
    """
    try:
        children = sorted(child for child in root.iterdir() if not child.name.startswith("."))
    except OSError:
        return
    for child in children:
        if not os.path.isdir(child):
            continue
        if is_model_folder(child):
            yield child
        elif depth > 1:
            yield from model_folders(child, depth - 1)


def modelscope_spelling(name: str) -> str:
    """ModelScope's spelling of a folder name: ``DeepGen-1.0-diffusers`` is ``DeepGen-1___0-diffusers``."""
    return name.replace(".", "___")


def find_model_folder(path: str | os.PathLike[str]) -> Path:
    """The folder with ``model_index.json`` that ``path`` means.

    ``path`` may be that folder, the same folder in ModelScope's spelling, or a folder that contains exactly
    one checkpoint, as a ModelScope cache does (``<cache>/deepgenteam/DeepGen-1___0-diffusers``).

    Raises:
        CheckpointError: When there is none, or more than one.
    """
    try:
        path = Path(path).expanduser()
    except RuntimeError as error:  # ~USER where there is no such user
        raise CheckpointError(f"There is no folder {path}: {error}") from None
    for candidate in (path, path.parent / modelscope_spelling(path.name)):
        if is_model_folder(candidate):
            return candidate
    if not os.path.exists(path):
        raise CheckpointError(f"There is no folder {path}. {how_to_download()}")
    if not os.path.isdir(path):
        raise CheckpointError(must_be(str(path), "a folder with model_index.json", Named("a file")))
    found = list(model_folders(path))
    if len(found) == 1:
        return found[0]
    if found:
        names = ", ".join(str(folder.relative_to(path)) for folder in found)
        raise CheckpointError(f"{path} contains several checkpoints ({names}): pass one of them.")
    raise missing(path, "model_index.json")


def resolve_model(name_or_path: str | os.PathLike[str]) -> Path:
    """A local checkpoint folder for a path or a Hugging Face id (``owner/name``).

    An id is looked up in the Hugging Face and ModelScope caches first and downloaded when it is
    complete in neither; an interrupted download continues. Only data files are downloaded.

    Raises:
        CheckpointError: When there is no checkpoint at a path.
        deepgen_npu.hub.download.DownloadError: When an id cannot be downloaded.
    """
    text = os.fspath(name_or_path)
    if os.path.exists(os.path.expanduser(text)) or not re.fullmatch(r"[A-Za-z0-9][\w.-]*/[\w.-]+", text):
        return find_model_folder(text)
    found = find_downloaded(text)
    if found is not None:
        try:
            return Checkpoint.open(found).folder
        except CheckpointError as error:
            logger.info("%s is not complete and the download continues: %s", found, error)
    try:
        return find_model_folder(download(model_id=text))
    except DownloadError as error:
        raise DownloadError(f"There is no folder {text} here. As the id of a model: {error}") from error


def _part_tensors(folder: Path, part: str) -> tuple[dict[str, StoredTensor], dict[str, Any]]:
    """The tensors of a part from its shards' headers, compared with the index where there is one.

    Returns:
        The tensors, and what the headers say of quantised layers, by the names that the model has.
    """
    name = _WEIGHTS[part]
    index_name = f"{part}/{name}.index.json"
    if not os.path.lexists(folder / index_name):
        if not os.path.lexists(folder / part / name):
            raise missing(folder, f"{part}/{name}", f" (or {index_name} with its shards)" if part == "vlm" else "")
        file = _header(folder, f"{part}/{name}")
        return file.tensors, _layers_in(part, folder / part / name, file)

    index = folder / index_name
    weight_map = read_json(folder, index_name).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise wrong(index, "weight_map", weight_map, "an object with a file for each tensor")
    for tensor, home in weight_map.items():
        if not isinstance(home, str) or Path(home).name != home or not home.endswith(".safetensors"):
            requirement = "the name of a .safetensors file in the folder of the index"
            raise wrong(index, f"weight_map[{shown(tensor)}]", home, requirement)
    tensors: dict[str, StoredTensor] = {}
    layers: dict[str, Any] = {}
    for shard in sorted(set(weight_map.values())):
        file = _header(folder, f"{part}/{shard}", f" (listed in {index_name})")
        layers |= _layers_in(part, folder / part / shard, file)
        stored = file.tensors
        for tensor, home in weight_map.items():
            if home == shard and tensor not in stored:
                raise damaged(
                    f"{folder / part / shard} lacks the tensor {printable(tensor)}, which {index_name} lists there."
                )
        for tensor in stored:
            if tensor in tensors:
                raise damaged(
                    f"{tensors[tensor].file} and {folder / part / shard} both contain the tensor {printable(tensor)}."
                )
        tensors.update(stored)
    return tensors, layers


def _header(folder: Path, name: str, note: str = "") -> SafetensorsFile:
    try:
        return read_safetensors(folder / name)
    except FileNotFoundError:
        raise missing(folder, name, note) from None


def _layers_in(part: str, path: Path, file: SafetensorsFile) -> dict[str, Any]:
    return {model_name(part, name): given for name, given in layers_in(path, file.metadata).items()}


def _check_dimensions(checkpoint: Checkpoint) -> None:
    """The dimensions at which one part hands over to the next must agree."""
    connector, transformer = checkpoint.configs["connector"], checkpoint.configs["transformer"]
    text, vision = checkpoint.text_config, checkpoint.vision_config
    hidden, layers, width = text["hidden_size"], text["num_hidden_layers"], connector["connector"]["hidden_size"]
    count = len(stacked_states(layers))
    of_vlm = (hidden, "hidden_size of vlm/config.json")
    of_connector = (width, "connector.hidden_size of connector/config.json")
    pairs = [
        ("connector", "llm_hidden_size", *of_vlm),
        (
            "connector",
            "projector_1_in",
            count * hidden,
            f"{count} hidden states x {hidden} of the vlm's {layers} layers",
        ),
        ("connector", "projector_1_out", *of_connector),
        ("connector", "projector_2_in", *of_connector),
        ("connector", "projector_3_in", *of_connector),
        (
            "transformer",
            "pooled_projection_dim",
            connector["projector_2_out"],
            "projector_2_out of connector/config.json",
        ),
        (
            "transformer",
            "joint_attention_dim",
            connector["projector_3_out"],
            "projector_3_out of connector/config.json",
        ),
        ("vae", "latent_channels", transformer["in_channels"], "in_channels of transformer/config.json"),
    ]
    values = [(part, key, checkpoint.configs[part][key], *other) for part, key, *other in pairs]
    values.append(("vlm", "vision_config.out_hidden_size", vision["out_hidden_size"], *of_vlm))
    for part, key, found, expected, source in values:
        if found != expected:
            advice = f"The folder mixes different models. {download_again()}"
            message = must_be(key, f"{expected}, the {source}", found, advice=advice)
            raise CheckpointError(f"{checkpoint.folder / part / 'config.json'}: {message}")
    tokens = transformer["pos_embed_max_size"] ** 2
    check_shifting(checkpoint.folder / CONFIG_FILES["scheduler"], checkpoint.configs["scheduler"], tokens)


def _check_language(checkpoint: Checkpoint, tokenizer: TokenizerFiles) -> None:
    """Tokenizer, prompt template and VLM must agree on the ids of special tokens."""
    folder, vlm = checkpoint.folder, checkpoint.configs["vlm"]
    tokenizer.check_ids(checkpoint.text_config["vocab_size"])
    template = PromptTemplate.from_config(checkpoint.prompt_template)
    for key, text, name in (
        ("image_token_id", template.image_token, "IMG_CONTEXT_TOKEN"),
        ("vision_start_token_id", template.image_start, "IMG_START_TOKEN"),
        ("vision_end_token_id", template.image_end, "IMG_END_TOKEN"),
    ):
        number = tokenizer.special_ids.get(text)
        if number is None:
            raise wrong(folder / "prompt_template.json", name, text, f"a special token of {tokenizer.added_file}")
        if vlm[key] is not None and vlm[key] != number:
            requirement = f"{number}, the id in {tokenizer.added_file} of {text} ({name} of prompt_template.json)"
            raise wrong(folder / CONFIG_FILES["vlm"], key, vlm[key], requirement)


def latent_rgb_factors(checkpoint: Checkpoint) -> list[list[float]] | None:
    """The colours of the latents, if the checkpoint has its own: [C + 1, 3] for C latent channels.

    Raises:
        CheckpointError: When there is something else than colours.
    """
    factors = checkpoint.index.get(LATENT_RGB_FACTORS_KEY)
    rows = checkpoint.configs["vae"]["latent_channels"] + 1
    if factors is not None and not is_table(factors, rows, 3):
        requirement = f"a list of {rows} lists of 3 numbers (one for each latent channel, and one to add)"
        raise wrong(checkpoint.folder / "model_index.json", LATENT_RGB_FACTORS_KEY, factors, requirement)
    return factors
