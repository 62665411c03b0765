"""One conditioning for the prompt and one for the negative prompt, over the whole image, as nearly every sampling has.

ComfyUI adds up weighted areas of conditionings. For a single one of weight 1 that is the evaluation itself, to the
bit, at 18 launches and some joined tensors a step: too many for a step of a thousand short operators, in which an NPU
waits for the host.
"""

from __future__ import annotations

from typing import Any

import comfy.model_management as mm
import comfy.samplers
import torch
from comfy.patcher_extension import CallbacksMP, WrappersMP, get_all_wrappers
from torch import Tensor

from ...deepgen_npu.devices import on_device


CALC_COND_BATCH = "sampler_calc_cond_batch_function"
"""ComfyUI's option for what is called in place of its own `calc_cond_batch`."""

SAMPLING = "deepgen_sampling"
"""Key of the `Sampling` in ``transformer_options``."""

PLAIN = frozenset(("cross_attn", "pooled_output", "reference_latents", "model_conds", "uuid"))
"""What a plain conditioning may say. Areas, masks, weights, ranges of steps, hooks and ControlNets are not plain."""


def evaluate_plain(arguments: dict[str, Any]) -> list[Tensor]:
    """The denoised latents [b, C, h, w] of each list of conditionings; those that are not plain are left to ComfyUI.

    Args:
        arguments: ``conds``, ``input`` [b, C, h, w], ``sigma`` [b], ``model`` and ``model_options``. Without guidance
            the conditioning of the negative prompt is None; zeros stand in its place.
    """
    model, conds, options = arguments["model"], arguments["conds"], arguments["model_options"]
    x, sigma = arguments["input"], arguments["sigma"]
    sampling = options["transformer_options"].get(SAMPLING)
    if sampling is None or not any(conds) or not all(map(_is_plain, conds)) or not _is_undisturbed(model, options):
        if sampling is not None and all(conds):
            sampling.guidance.not_plain()
        return comfy.samplers.calc_cond_batch(model, conds, x, sigma, options)
    uuids = [cond[0]["uuid"] for cond in conds if cond]
    pair = sampling.guidance.pair((*uuids, tuple(x.shape), x.device), len(uuids))
    if pair is None:
        return _evaluated(model, options, conds, x, sigma)
    if pair.is_due():
        positive, negative = _evaluated(model, options, conds, x, sigma)
        pair.keep(positive, negative, sigma)
        return [positive, negative]
    positive, _ = _evaluated(model, options, [conds[0], None], x, sigma)
    return [positive, pair.negative(positive, sigma)]


def _evaluated(model: Any, options: dict[str, Any], conds: list[Any], x: Tensor, sigma: Tensor) -> list[Tensor]:
    """The same for conditionings that are plain or None, by ComfyUI only where they do not fit together."""
    # Negative rows come first, as in the library.
    given = [(index, cond[0]) for index, cond in reversed(list(enumerate(conds))) if cond]
    second = _second_card(model, options)
    if second is not None and len(given) == 2:
        found = _on_two_cards(model, second, options["transformer_options"], given, x, sigma)
    else:
        found = _denoised(model, options["transformer_options"], given, x, sigma)
    if found is None:
        return comfy.samplers.calc_cond_batch(model, conds, x, sigma, options)
    return [found[index] if index in found else torch.zeros_like(x) for index in range(len(conds))]


Given = list[tuple[int, dict[str, Any]]]
"""Conditionings with their places in the list."""


def _denoised(model: Any, options: dict[str, Any], given: Given, x: Tensor, sigma: Tensor) -> dict[int, Tensor] | None:
    """The denoised latents [b, C, h, w] of conditionings, evaluated at once; None if they cannot be."""
    rows = _joined(options[SAMPLING], model, [cond for _, cond in given], x)
    if rows is None:
        return None
    transformer_options = {
        **options,
        "cond_or_uncond": [index for index, _ in given],
        "uuids": [cond["uuid"] for _, cond in given],
        "sigmas": sigma,
    }
    count = len(given)
    latents, sigmas = (torch.cat([one] * count) if count > 1 else one for one in (x, sigma))
    denoised = model.apply_model(latents, sigmas, **rows, transformer_options=transformer_options).chunk(count)
    return {index: one for (index, _), one in zip(given, denoised, strict=True)}


def _second_card(model: Any, options: dict[str, Any]) -> Any:
    """The model's copy on another card, of ComfyUI's MultiGPU CFG Split; None without it."""
    patchers = [one for one in options.get("multigpu_clones", {}).values() if one.model is not model]
    return patchers[0].model if patchers else None


def _on_two_cards(
    model: Any, second: Any, options: dict[str, Any], given: Given, x: Tensor, sigma: Tensor
) -> dict[int, Tensor]:
    """The same with the first of two conditionings on the second card, launched before the other one.

    ComfyUI has a thread for each card, in which steps could not be captured: a capture allows no other thread to use
    a device. Without threads, both cards still compute at the same time, best with captured steps.
    """
    other = second.current_patcher.load_device
    with on_device(other):
        first = _denoised(second, options, given[:1], x.to(other), sigma.to(other))
    last = _denoised(model, options, given[1:], x, sigma)
    assert first is not None and last is not None  # one conditioning always fits together
    return {**last, **{index: one.to(x.device) for index, one in first.items()}}


def _is_plain(cond: list[dict[str, Any]] | None) -> bool:
    return not cond or (len(cond) == 1 and cond[0].keys() <= PLAIN)


def _is_undisturbed(model: Any, options: dict[str, Any]) -> bool:
    """Whether nothing else in ComfyUI takes part in how conditionings are evaluated."""
    patcher = model.current_patcher
    others = (
        patcher.get_all_callbacks(CallbacksMP.ON_PREPARE_STATE),
        get_all_wrappers(WrappersMP.CALC_COND_BATCH, options["transformer_options"]),
        patcher.current_hooks,
        options.get("context_handler"),
    )
    return not any(others)


def _joined(sampling: Any, model: Any, conds: list[dict[str, Any]], x: Tensor) -> dict[str, Any] | None:
    """What the model is called with, for the rows of all conditionings; None if they cannot be evaluated at once."""
    key = (tuple(cond["uuid"] for cond in conds), tuple(x.shape), x.device)
    if key not in sampling.conditionings:
        each = [
            {name: one.process_cond(batch_size=len(x), area=None) for name, one in cond["model_conds"].items()}
            for cond in conds
        ]
        joined = _join(each) if _fit_together(each) and _fits(model, each, x) else None
        sampling.conditionings[key] = None if joined is None else _moved(joined, x.device)
    return sampling.conditionings[key]


def _fit_together(each: list[dict[str, Any]]) -> bool:
    first = each[0]
    return all(
        one.keys() == first.keys() and all(first[name].can_concat(one[name]) for name in first) for one in each[1:]
    )


def _fits(model: Any, each: list[dict[str, Any]], x: Tensor) -> bool:
    """Whether there is memory for all rows at once, by ComfyUI's own rule."""
    free = getattr(model.current_patcher, "get_free_memory", mm.get_free_memory)(x.device)
    shapes = {name: [one[name].size() for one in each] for name in each[0]}
    needed = model.memory_required([len(each) * len(x), *x.shape[1:]], cond_shapes=shapes)
    return len(each) == 1 or needed * 1.5 < free


def _moved(value: Any, device: torch.device) -> Any:
    """Tensors in dicts and lists, on a device."""
    if isinstance(value, dict):
        return {name: _moved(one, device) for name, one in value.items()}
    if isinstance(value, list):
        return [_moved(one, device) for one in value]
    return value.to(device) if isinstance(value, Tensor) else value


def _join(each: list[dict[str, Any]]) -> dict[str, Any]:
    first, others = each[0], each[1:]
    return {name: one.concat([other[name] for other in others]) if others else one.cond for name, one in first.items()}
