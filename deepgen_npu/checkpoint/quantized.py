"""The quantised layers of a part, by what its files say: marks beside the weights, or the header."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from .. import files
from ..checks import Named, must, must_be, shown
from ..dtypes import FLOATS_STORED
from ..errors import CheckpointError
from ..quantization.formats import FP8, INPUT_SCALE, MARK, METADATA_KEY, SCALE, STORED, WHAT_TO_DO, LayerFormat
from .files import damaged, printable
from .safetensors_header import StoredTensor
from .structure import model_name


Tensors = Mapping[str, StoredTensor]
Layers = dict[str, LayerFormat]

MAX_MARK_BYTES = 1024
"""Marks have some 70 bytes."""


def read_layers(tensors: Tensors, in_header: Mapping[str, Any]) -> Layers:
    """The quantised layers, by the name of their module.

    Args:
        tensors: Of a part, by the names that the model has.
        in_header: What `layers_in` found, by the names that the model has.

    Raises:
        CheckpointError: For a format that is not known, or tensors that do not fit it. Nothing is read but marks.
    """
    marks = {name.removesuffix(f".{MARK}"): tensor for name, tensor in tensors.items() if name.endswith(f".{MARK}")}
    settings = {**in_header, **_contents(marks)}
    found = {name: _layer(name, given, tensors) for name, given in settings.items()}
    for name, tensor in without_extras(tensors, found).items():
        if tensor.dtype not in FLOATS_STORED and name.removesuffix(".weight") not in found:
            requirement = f"have one of the dtypes {', '.join(FLOATS_STORED)}, or {MARK} beside it"
            message = must(printable(name), requirement, Named(tensor.dtype), advice=WHAT_TO_DO)
            raise CheckpointError(f"{tensor.file}: {message}")
    return found


def without_extras(tensors: Tensors, layers: Iterable[str]) -> dict[str, StoredTensor]:
    """The tensors that a part also has if nothing in it is quantised."""
    extras = {f"{name}.{extra}" for name in layers for extra in (SCALE, MARK, INPUT_SCALE)}
    return {name: tensor for name, tensor in tensors.items() if name not in extras}


def by_stored_names(part: str, names: Iterable[str], layers: Mapping[str, LayerFormat]) -> Layers:
    """Quantised layers by the names that the files have for their modules, of the weights among ``names``.

    Args:
        part: Of the checkpoint.
        names: Of stored tensors.
        layers: By the names of the model's modules.
    """
    modules = (name.removesuffix(".weight") for name in names if name.endswith(".weight"))
    named = {module: model_name(part, f"{module}.weight").removesuffix(".weight") for module in modules}
    return {module: layers[name] for module, name in named.items() if name in layers}


def layers_in(file: Path, metadata: Mapping[str, str]) -> dict[str, Any]:
    """What the header of a file says of its layers, by the names that the file has.

    Raises:
        CheckpointError: When it is not readable.
    """
    if METADATA_KEY not in metadata:
        return {}
    where = f"{METADATA_KEY} of {file}"
    try:
        layers = files.parse_json(metadata[METADATA_KEY].encode(), where).get("layers")
    except files.FileError as error:
        raise damaged(str(error)) from None
    if not isinstance(layers, dict):
        raise damaged(must_be(f"layers in {where}", "an object", layers))
    return layers


def _contents(marks: Tensors) -> dict[str, Any]:
    """The JSON of marks; each file is opened once."""
    by_file: dict[Path, list[tuple[str, StoredTensor]]] = {}
    for name, tensor in marks.items():
        by_file.setdefault(tensor.file, []).append((name, tensor))
    found: dict[str, Any] = {}
    for path, some in by_file.items():
        try:
            with files.open_regular(path) as file:
                for name, tensor in some:
                    where = f"{printable(f'{name}.{MARK}')} of {path}"
                    if tensor.dtype != "U8" or len(tensor.shape) != 1 or tensor.nbytes > MAX_MARK_BYTES:
                        text = f"have at most {MAX_MARK_BYTES} bytes (U8)"
                        raise damaged(must(where, text, _of(tensor)))
                    file.seek(tensor.offset)
                    found[name] = files.parse_json(file.read(tensor.nbytes), where)
        except files.FileError as error:
            raise damaged(str(error)) from None
        except OSError as error:
            raise CheckpointError(f"{path} cannot be read: {error.strerror or error}.") from None
    return found


def _layer(name: str, given: Any, tensors: Tensors) -> LayerFormat:
    weight = tensors.get(f"{name}.weight")
    if weight is None:
        beside = tensors.get(f"{name}.{MARK}") or next(iter(tensors.values()))
        raise damaged(f"{beside.file} lacks {printable(name)}.weight, of which {MARK} says how it is stored.")
    where = f"{weight.file}: {printable(name)}"
    try:
        layer = LayerFormat.parse(given if isinstance(given, dict) else {})
    except ValueError as error:
        raise CheckpointError(f"{where}: {error}") from None
    if weight.dtype != STORED[layer.name] or len(weight.shape) != 2:
        requirement = f"be a matrix of {STORED[layer.name]}, given {MARK} beside it"
        raise damaged(f"{weight.file}: {must(f'{printable(name)}.weight', requirement, _of(weight))}")
    rows, columns = weight.shape
    if layer.group and columns % layer.group:
        raise damaged(
            f"{where}: {must('its columns', f'be a multiple of {layer.group}, its convrot_groupsize', columns)}"
        )
    scale = tensors.get(f"{name}.{SCALE}")
    shapes = [(), (1,)] if layer.name == FP8 else [(rows, 1), (rows,), (), (1,)]
    if scale is None:
        raise damaged(f"{where} has no {SCALE} beside it.")
    if scale.dtype != "F32" or scale.shape not in shapes:
        requirement = f"be F32 {' or '.join(json.dumps(shape) for shape in shapes)}"
        raise damaged(f"{scale.file}: {must(f'{printable(name)}.{SCALE}', requirement, _of(scale))}")
    return layer


def _of(tensor: StoredTensor) -> Named:
    return Named(f"{tensor.dtype} {shown(list(tensor.shape))}")
