"""Runs nodes in ComfyUI's interpreter, without a server: one JSON line in, one out.

Usage: COMFYUI_PATH=<checkout> python input_worker.py PACK MODELS

In:  {"node": NAME, "inputs": {NAME: description}}, the values described as in `probe_pack.values`; "pipeline",
     "model", "conditioning" and "region" may be {"kind": "made"}. Or {"describe": true}, for the inputs that each node
     declares.
Out: {"error": MESSAGE, "type": NAME, "asked": times that the weights were asked for before it, "seconds": ...}, or
     {"images": [...], ...}.
"""

from __future__ import annotations

import asyncio
import importlib
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

from load_module import launch, load_module, load_pack


PROBE_PACK = Path(__file__).parents[2] / "dev" / "comfyui" / "probe_pack"
answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
os.dup2(2, 1)  # what others print is no answer


pack, models = sys.argv[1:]
launch().enter(os.environ["COMFYUI_PATH"], ["--cpu", "--disable-api-nodes"])

import execution  # noqa: E402
import folder_paths  # noqa: E402
import torch  # noqa: E402


values = load_module("probe_values", PROBE_PACK / "values.py")
folder_paths.models_dir = models
folder_paths.add_model_folder_path("loras", f"{models}/loras")
extension = asyncio.run(load_pack(pack).comfy_entrypoint())
nodes = {node.GET_SCHEMA().node_id: node for node in asyncio.run(extension.get_node_list())}
lazy_pipeline = importlib.import_module("pack.nodes.lazy_pipeline")

asked = 0
load = lazy_pipeline.LazyPipeline.load


def counted(self: Any) -> Any:
    global asked
    asked += 1
    return load(self)


lazy_pipeline.LazyPipeline.load = counted


def call(node: str, function: str, inputs: dict[str, Any]) -> Any:
    """As ComfyUI's executor calls it."""
    lists = {name: [value] for name, value in inputs.items()}
    call = execution._async_map_node_over_list("prompt", "node", nodes[node], lists, function)
    (result,) = asyncio.run(call)
    return result


def made(name: str, described: dict[str, Any]) -> Any:
    if described["kind"] != "made":
        return values.build(described)
    if name == "pipeline":
        return PIPELINE
    if name == "model":
        return PIPELINE.patcher
    if name == "region":
        return call("DeepGenCropRegion", RUN, {**CROP, "context": 2.0}).result[2]
    if name == "conditioning":
        images = torch.zeros(1, 64, 64, 3) if described.get("references") else None
        return encoded(images, described.get("side", 64))
    raise ValueError(name)


def encoded(image: Any, side: int) -> Any:
    inputs = {"prompt": "a red circle", "negative_prompt": "", "size_mode": "width and height", "image": image}
    return call("DeepGenEncode", RUN, {"pipeline": PIPELINE, "width": side, "height": side, **inputs}).result[0]


def numbers_of(result: Any) -> Any:
    """What a test wants to know of an output."""
    if isinstance(result, dict):
        result = result["samples"]
    if isinstance(result, torch.Tensor):
        data = result.float()
        finite, low, high = bool(torch.isfinite(data).all()), float(data.min()), float(data.max())
        return {
            "shape": list(result.shape),
            "finite": finite,
            "low": low,
            "high": high,
            "sum": float(data.sum()),
            "rows": [float(row.sum()) for row in data],
        }
    return {"kind": type(result).__name__}


def declared(one: Any) -> dict[str, Any]:
    limits = {key: getattr(one, key, None) for key in ("min", "max", "step", "options")}
    return {"name": one.id, "type": one.io_type, "optional": one.optional, **limits}


def answer(request: dict[str, Any]) -> dict[str, Any]:
    global asked
    if request.get("describe"):
        checked = importlib.import_module("pack.nodes.check").DeepGenNode.execute.__func__
        assert all(node.execute.__func__ is checked for node in nodes.values()), "a node has an execute of its own"
        return {name: [declared(one) for one in node.GET_SCHEMA().inputs] for name, node in nodes.items()}
    inputs = {name: made(name, described) for name, described in request["inputs"].items()}
    asked, start = 0, time.perf_counter()
    try:
        result = call(request["node"], request.get("function", RUN), inputs)
    except Exception as error:
        found: dict[str, Any] = {"error": str(error), "type": type(error).__name__}
    else:
        found = {"result": result if isinstance(result, (bool, str)) else [numbers_of(one) for one in result.result]}
    return {**found, "asked": asked, "seconds": time.perf_counter() - start}


RUN = "EXECUTE_NORMALIZED"
CROP = {"image": torch.zeros(1, 64, 64, 3), "mask": torch.ones(1, 64, 64)}
PIPELINE = call("DeepGenLoader", RUN, {"model": "tiny", "dtype": "float32"}).result[0]
for line in sys.stdin:
    answers.write(json.dumps(answer(json.loads(line))) + "\n")
    answers.flush()
