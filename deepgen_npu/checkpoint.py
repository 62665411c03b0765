"""The published folder: find it, read its configs, and check that it is whole.

Everything here reads JSON and safetensors headers only, so a damaged folder is reported within
milliseconds and before torch, diffusers or transformers are imported. Nothing in the folder is ever
executed: its ``deepgen_pipeline.py`` and ``model_index.json`` class names are ignored.
"""

from __future__ import annotations

import json
import logging
import math
import os
import re
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .download import MODEL_ID, DownloadError, download, find_downloaded


logger = logging.getLogger(__name__)

PARTS = ("vlm", "connector", "transformer", "vae")

# File names as save_pretrained writes them: transformers for the VLM, diffusers for the DiT and the VAE,
# plain safetensors for the connector.
_WEIGHTS = {
    "vlm": "model.safetensors",
    "connector": "model.safetensors",
    "transformer": "diffusion_pytorch_model.safetensors",
    "vae": "diffusion_pytorch_model.safetensors",
}
_MAX_HEADER_BYTES = 100_000_000  # the limit of the safetensors format itself


class CheckpointError(ValueError):
    """A checkpoint folder that is missing, incomplete or inconsistent."""


@dataclass(frozen=True)
class StoredTensor:
    """Where one tensor lies: ``nbytes`` bytes at ``offset`` in ``file``; ``dtype`` is the safetensors name."""

    file: Path
    dtype: str
    shape: tuple[int, ...]
    offset: int
    nbytes: int


@dataclass(frozen=True)
class Checkpoint:
    """A checked checkpoint folder in the layout of ``deepgenteam/DeepGen-1.0-diffusers``.

    Attributes:
        folder: The folder that holds ``model_index.json``.
        configs: One config for each of ``vlm``, ``connector``, ``transformer``, ``vae`` and ``scheduler``.
        tensors: For each part in `PARTS`, the stored tensors by name.
        prompt_template: The content of ``prompt_template.json``.
        index: The content of ``model_index.json``.
    """

    folder: Path
    configs: Mapping[str, dict[str, Any]]
    tensors: Mapping[str, Mapping[str, StoredTensor]] = field(repr=False)
    prompt_template: Mapping[str, Any] = field(repr=False)
    index: Mapping[str, Any] = field(repr=False)

    @classmethod
    def open(cls, folder: str | os.PathLike[str]) -> Checkpoint:
        """Read and check a folder.

        Raises:
            CheckpointError: Naming the missing or damaged file, or the two numbers that disagree.
        """
        folder = find_model_folder(folder)
        configs = {part: _read_json(folder, f"{part}/config.json") for part in PARTS}
        configs["scheduler"] = _read_json(folder, "scheduler/scheduler_config.json")
        template = _read_json(folder, "prompt_template.json")
        _require_tokenizer(folder)
        tensors = {part: _part_tensors(folder, part) for part in PARTS}
        checkpoint = cls(folder, configs, tensors, template, _read_json(folder, "model_index.json"))
        _check_bridges(checkpoint)
        return checkpoint

    @property
    def text_config(self) -> dict[str, Any]:
        """The decoder's part of the VLM config; older exports keep it at the top level."""
        return self.configs["vlm"].get("text_config") or self.configs["vlm"]

    @property
    def vision_config(self) -> dict[str, Any]:
        return self.configs["vlm"]["vision_config"]

    def elements(self, part: str) -> int:
        """Number of stored elements of a part; times the bytes of a dtype, its size in memory."""
        return sum(math.prod(tensor.shape) for tensor in self.tensors[part].values())

    def nbytes(self, *parts: str) -> int:
        """Bytes of the weights in the files, of the named parts or of all."""
        return sum(tensor.nbytes for part in parts or PARTS for tensor in self.tensors[part].values())


def stacked_states(num_hidden_layers: int) -> list[int]:
    """Indices of the hidden states that the connector stacks, deepest first.

    State 0 is the input embedding and state k the output of layer k - 1. The published model has 36
    layers and uses [35, 29, 23, 17, 11, 5] (range(num_layers - 1, 0, -6) in the original).
    """
    return list(range(num_hidden_layers - 1, 0, -6))


def is_model_folder(path: Path) -> bool:
    return (path / "model_index.json").is_file()


def model_folders(root: Path, depth: int = 3) -> Iterator[Path]:
    """Checkpoint folders in ``root``, at most ``depth`` levels down, in name order.

    Hidden folders are passed over; links are followed, since models are often kept on another disk.
    """
    try:
        children = sorted(child for child in root.iterdir() if not child.name.startswith("."))
    except OSError:
        return
    for child in children:
        if not child.is_dir():
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

    ``path`` may be that folder, the same folder in ModelScope's spelling, or a folder that holds exactly
    one checkpoint, as a ModelScope cache does (``<cache>/deepgenteam/DeepGen-1___0-diffusers``).

    Raises:
        CheckpointError: When there is none, or more than one.
    """
    path = Path(path).expanduser()
    for candidate in (path, path.parent / modelscope_spelling(path.name)):
        if is_model_folder(candidate):
            return candidate
    if not path.exists():
        raise CheckpointError(f"There is no folder {path}. {how_to_download()}")
    if not path.is_dir():
        raise CheckpointError(f"{path} is a file; a checkpoint is a folder with model_index.json.")
    found = list(model_folders(path))
    if len(found) == 1:
        return found[0]
    if found:
        names = ", ".join(str(folder.relative_to(path)) for folder in found)
        raise CheckpointError(f"{path} holds several checkpoints ({names}): name one of them.")
    raise CheckpointError(f"model_index.json is missing in {path}. {how_to_download()}")


def resolve_model(name_or_path: str | os.PathLike[str]) -> Path:
    """A local checkpoint folder for a path or a Hugging Face id (``owner/name``).

    An id is looked up in the Hugging Face and ModelScope caches first and downloaded when it is whole in
    neither; an interrupted download goes on. Only data files are downloaded.

    Raises:
        CheckpointError: When a path holds no checkpoint.
        deepgen_npu.download.DownloadError: When an id cannot be downloaded.
    """
    text = os.fspath(name_or_path)
    if Path(text).expanduser().exists() or not re.fullmatch(r"[A-Za-z0-9][\w.-]*/[\w.-]+", text):
        return find_model_folder(text)
    found = find_downloaded(text)
    if found is not None:
        try:
            return Checkpoint.open(found).folder
        except CheckpointError as error:
            logger.info("%s is to be completed: %s", found, error)
    try:
        return find_model_folder(download(model_id=text))
    except DownloadError as error:
        raise DownloadError(f"There is no folder {text} here. Taken as the id of a model: {error}") from error


def how_to_download() -> str:
    return (
        f"To download {MODEL_ID} (14 GB): python -m deepgen_npu download --to FOLDER "
        "(add --source modelscope where Hugging Face cannot be reached)."
    )


def _read_json(folder: Path, name: str) -> dict[str, Any]:
    path = folder / name
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"))
    except FileNotFoundError:
        raise CheckpointError(f"{name} is missing in {folder}. {how_to_download()}") from None
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise CheckpointError(f"{path} is not valid JSON ({error}). {how_to_download()}") from None
    if not isinstance(content, dict):
        raise CheckpointError(f"{path} holds {type(content).__name__}; a JSON object is wanted.")
    return content


def _require_tokenizer(folder: Path) -> None:
    _read_json(folder, "tokenizer/tokenizer_config.json")
    if (folder / "tokenizer" / "tokenizer.json").is_file():
        return
    for name in ("vocab.json", "merges.txt"):
        if not (folder / "tokenizer" / name).is_file():
            raise CheckpointError(f"tokenizer/{name} is missing in {folder}. {how_to_download()}")


def _part_tensors(folder: Path, part: str) -> dict[str, StoredTensor]:
    """The tensors of a part from its shards' headers, compared with the index where there is one."""
    name = _WEIGHTS[part]
    index_name = f"{part}/{name}.index.json"
    if not (folder / index_name).is_file():
        if not (folder / part / name).is_file():
            wanted = f"{part}/{name}"
            if part == "vlm":
                wanted += f" (or {index_name} with its shards)"
            raise CheckpointError(f"{wanted} is missing in {folder}. {how_to_download()}")
        return read_safetensors_header(folder / part / name)

    weight_map = _read_json(folder, index_name).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(f"{folder / index_name} has no weight_map. {how_to_download()}")
    tensors: dict[str, StoredTensor] = {}
    for shard in sorted(set(map(str, weight_map.values()))):
        if Path(shard).name != shard or not shard.endswith(".safetensors"):
            raise CheckpointError(
                f"{folder / index_name} names the shard {shard!r}; a .safetensors file beside the index is wanted."
            )
        if not (folder / part / shard).is_file():
            raise CheckpointError(
                f"{part}/{shard}, named by {index_name}, is missing in {folder}. {how_to_download()}"
            )
        stored = read_safetensors_header(folder / part / shard)
        for tensor, home in weight_map.items():
            if home == shard and tensor not in stored:
                raise CheckpointError(
                    f"The tensor {tensor}, which {index_name} places in {part}/{shard}, "
                    f"is not in that file in {folder}. {how_to_download()}"
                )
        tensors.update(stored)
    return tensors


def read_safetensors_header(path: Path) -> dict[str, StoredTensor]:
    """Names, dtypes, shapes and places of the tensors in a safetensors file.

    The file format: 8 bytes (little-endian header length), the header as JSON, the data.

    Raises:
        CheckpointError: When the file is cut off, is a Git LFS pointer, or is no safetensors file.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        start = file.read(8)
        if start == b"version ":
            raise CheckpointError(
                f"{path} is a Git LFS pointer of {size} bytes, not the weights: "
                "run `git lfs pull` in the folder. " + how_to_download()
            )
        length = struct.unpack("<Q", start)[0] if len(start) == 8 else size
        if length > min(size - 8, _MAX_HEADER_BYTES):
            raise CheckpointError(f"{path} ({size} bytes) is cut off or is no safetensors file. {how_to_download()}")
        try:
            header = json.loads(file.read(length))
            header.pop("__metadata__", None)
            tensors = {
                name: StoredTensor(
                    file=path,
                    dtype=entry["dtype"],
                    shape=tuple(entry["shape"]),
                    offset=8 + length + entry["data_offsets"][0],
                    nbytes=entry["data_offsets"][1] - entry["data_offsets"][0],
                )
                for name, entry in header.items()
            }
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise CheckpointError(f"{path} has a damaged safetensors header ({error}). {how_to_download()}") from None
    end = max((tensor.offset + tensor.nbytes for tensor in tensors.values()), default=8 + length)
    if end != size:
        raise CheckpointError(
            f"{path} has {size} bytes where its header announces {end}: the download is not complete. "
            + how_to_download()
        )
    return tensors


def _check_bridges(checkpoint: Checkpoint) -> None:
    """The dimensions at which one part hands over to the next must agree."""
    connector = checkpoint.configs["connector"]
    transformer = checkpoint.configs["transformer"]
    text = checkpoint.text_config

    def number(config: Mapping[str, Any], key: str, where: str) -> int:
        value = config.get(key)
        if not isinstance(value, int):
            raise CheckpointError(f"{where} of {checkpoint.folder} has no number {key!r} (it says {value!r}).")
        return value

    hidden = number(text, "hidden_size", "vlm/config.json")
    layers = number(text, "num_hidden_layers", "vlm/config.json")
    stacked = len(stacked_states(layers)) * hidden
    encoder = connector.get("connector")
    if not isinstance(encoder, dict):
        raise CheckpointError(f"connector/config.json of {checkpoint.folder} has no object 'connector'.")
    if not isinstance(checkpoint.configs["vlm"].get("vision_config"), dict):
        raise CheckpointError(f"vlm/config.json of {checkpoint.folder} has no object 'vision_config'.")
    width = number(encoder, "hidden_size", "connector/config.json")
    number(connector, "num_queries", "connector/config.json")
    for key in ("num_hidden_layers", "num_attention_heads", "intermediate_size"):
        number(encoder, key, "connector/config.json")

    def of_connector(key: str) -> tuple[str, int]:
        return f"connector {key}", number(connector, key, "connector/config.json")

    def of_transformer(key: str) -> tuple[str, int]:
        return f"transformer {key}", number(transformer, key, "transformer/config.json")

    states = f"{len(stacked_states(layers))} hidden states x {hidden} of the vlm's {layers} layers"
    vision_out = number(checkpoint.vision_config, "out_hidden_size", "vlm/config.json")
    pairs = [
        (of_connector("llm_hidden_size"), ("vlm hidden_size", hidden)),
        (of_connector("projector_1_in"), (states, stacked)),
        (of_connector("projector_1_out"), ("connector hidden_size", width)),
        (of_connector("projector_2_in"), ("connector hidden_size", width)),
        (of_connector("projector_3_in"), ("connector hidden_size", width)),
        (of_connector("projector_2_out"), of_transformer("pooled_projection_dim")),
        (of_connector("projector_3_out"), of_transformer("joint_attention_dim")),
        (("vlm vision out_hidden_size", vision_out), ("vlm hidden_size", hidden)),
        (
            ("vae latent_channels", number(checkpoint.configs["vae"], "latent_channels", "vae/config.json")),
            of_transformer("in_channels"),
        ),
    ]
    for (left, left_value), (right, right_value) in pairs:
        if left_value != right_value:
            raise CheckpointError(
                f"The parts of {checkpoint.folder} do not fit together: {left} is {left_value}, "
                f"but {right} is {right_value}. The folder mixes different models. {how_to_download()}"
            )


def amount(nbytes: int) -> str:
    """A size of weights or memory, for people."""
    return f"{nbytes / 2**30:.2f} GiB" if nbytes >= 2**27 else f"{nbytes / 2**20:.2f} MiB"
