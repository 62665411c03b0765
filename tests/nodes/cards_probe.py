"""Run in ComfyUI's interpreter by `test_cards`: the model on two simulated NPUs. Prints one JSON line."""

from __future__ import annotations

import json
import logging
from typing import Any


# isort: off
from native_bench import PARTS, core_sample, distance, encoded, importlib, mm, opened, sampled, simulated, state, torch
from native_bench import Records, replaced, unload
# isort: on


guidance_every = importlib.import_module("pack.nodes.guidance_every")
plain = importlib.import_module("pack.nodes.native.plain_conditioning")

denoised = plain._denoised

SECOND = torch.device("npu", 1)
found: dict[str, Any] = {}


def apart(one: Any, other: Any) -> float:
    """Of two lists of conditionings."""
    pairs = zip(one, other, strict=True)
    return max(distance(a.prompt_embeds, b.prompt_embeds) for a, b in pairs)


def one_by_one(model: Any, options: Any, given: list[Any], *tensors: Any) -> Any:
    """Each branch by itself, as on two cards."""
    return {index: one for each in given for index, one in denoised(model, options, [each], *tensors).items()}


def text_encoder() -> None:
    """VLM and connector on the second card."""
    one_card, two_cards = opened("tiny"), opened("tiny", text_device=SECOND)
    expected = encoded(one_card, references=1)
    image = sampled(one_card, expected)
    unload()
    before = state.memory[1].now
    given = encoded(two_cards, references=1)
    loaded = {str(one.model.load_device): one.model.model_size() for one in mm.current_loaded_models}
    text = two_cards.load().placement._patchers["vlm"]
    found["text encoder"] = {
        "apart": max(apart(given, expected), distance(sampled(two_cards, given), image)),
        "second card": state.memory[1].now - before,
        "size": text.model_size(),
        "device": str(text.load_device),
        "loaded on": sorted(loaded),
        "current": torch.npu.current_device(),
        "comfyui runs on": str(mm.get_torch_device()),
    }
    # Out of memory there, once.
    encoding = importlib.import_module("pack.deepgen_npu.encoding")
    computed, placement = encoding.stacked_hidden_states, two_cards.load().placement
    make_room, left = placement.make_room, []

    def out_of_memory_once(*arguments: Any) -> Any:
        if not left:
            raise RuntimeError("NPU out of memory. Tried to allocate 1 GiB")
        return computed(*arguments)

    def make_room_there(part: str) -> None:
        make_room(part)
        left.append(text.loaded_size())

    with (
        replaced(encoding, "stacked_hidden_states", out_of_memory_once),
        replaced(placement, "make_room", make_room_there),
    ):
        given = encoded(two_cards, prompt="a red square")
    found["text encoder"]["after running out of memory"] = {
        "left there": left,
        "apart": apart(given, encoded(one_card, prompt="a red square")),
        "current": torch.npu.current_device(),
    }


def guidance() -> None:
    """ComfyUI's own MultiGPU CFG Split: one branch of guidance on each card."""
    try:
        multigpu = importlib.import_module("comfy.multigpu")
    except ImportError:
        return
    rows: dict[str, Any] = {}
    for capture in (False, True):
        model = opened("tiny", capture_graph=capture)
        given = encoded(model, references=1)
        with replaced(plain, "_denoised", one_by_one):
            expected = core_sample(model.patcher, given)
        split = multigpu.create_multigpu_deepclones(model.patcher, 2, reuse_loaded=True)
        others = split.get_additional_models_with_key("multigpu")
        simulated.reset()
        drawn = [core_sample(split, given) for _ in range(2)]
        rows["captured" if capture else "launched"] = {
            "cards": sorted({str(split.load_device), *(str(one.load_device) for one in others)}),
            "apart": [distance(one, expected) for one in drawn],
            "replays": state.counts.operators["replay of a graph"],
            "current": torch.npu.current_device(),
        }
        every = guidance_every.DeepGenGuidanceEvery
        kept, kept_split = (every.execute(model=one, guidance_every=2).result[0] for one in (model.patcher, split))
        with replaced(plain, "_denoised", one_by_one):
            expected_kept = core_sample(kept, given)
        simulated.reset()
        rows["captured" if capture else "launched"] |= {
            "every second": distance(core_sample(kept_split, given), expected_kept),
            "a change": distance(expected_kept, expected),
            "its replays": state.counts.operators["replay of a graph"],
            "between cards": state.counts.between_devices[0],
        }
        with replaced(plain, "_is_plain", lambda cond: False):  # regions, masks: ComfyUI's threads
            simulated.reset()
            rows[f"in threads, {len(rows)}"] = {
                "apart": [distance(core_sample(split, given), expected)],
                "replays": state.counts.operators["replay of a graph"],
            }
    found["guidance"] = rows


def missing() -> None:
    """What the choices of the loader mean."""
    cards = importlib.import_module("pack.nodes.cards")
    warnings = Records(logging.WARNING)
    cards.logger.addHandler(warnings)
    names = ("default", "cpu", "gpu:0", "gpu:1", "gpu:7")
    devices = {name: str(cards.find_device(name, "the text encoder")) for name in names}
    found["missing"] = {"devices": devices, "log": warnings.messages}


for name in PARTS:
    globals()[name]()
print(json.dumps(found))
