"""The VLM's inputs and outputs against what transformers itself computes."""

from __future__ import annotations

import inspect

import pytest
import torch

from deepgen_npu.model.architecture import stacked_states
from deepgen_npu.model.vision_language import attention_mask, rope_positions, stacked_hidden_states
from deepgen_npu.prompts import tokenize


def test_stacked_states_of_the_published_depth():
    assert stacked_states(36) == [35, 29, 23, 17, 11, 5]
    assert stacked_states(12) == [11, 5]


@pytest.mark.parametrize("count", [0, 1, 2])
def test_positions_are_those_of_transformers(pipe, count):
    height, width = 160, 96
    cells = [(height // 32, width // 32)] * count
    template = pipe.prompt_template
    texts = [
        template.for_editing(text, [rows * columns for rows, columns in cells]) if count else text
        for text in ("short", "a prompt that is quite a bit longer")
    ]
    ids, valid = tokenize(pipe.tokenizer, texts)
    ours = rope_positions(ids, valid, pipe.vlm.config.image_token_id, cells)

    model = pipe.vlm.model
    arguments = {"input_ids": ids, "attention_mask": valid.long()}
    if count:
        arguments["image_grid_thw"] = torch.tensor([[1, 2 * rows, 2 * columns] for rows, columns in cells] * 2)
    if "mm_token_type_ids" in inspect.signature(model.get_rope_index).parameters:
        arguments["mm_token_type_ids"] = (ids == pipe.vlm.config.image_token_id).int()
    theirs, _ = model.get_rope_index(**arguments)
    assert torch.equal(ours[:, valid], theirs[:, valid])


@pytest.mark.parametrize("padded", [False, True])
def test_hidden_states_are_those_of_the_stock_model(pipe, padded):
    """Rows that are no padding equal the stock forward's hidden states."""
    texts = ["a cat", "a very small cat on a mat"] if padded else ["a cat", "a dog"]
    ids, valid = tokenize(pipe.tokenizer, texts)
    queries = pipe.connector.meta_queries
    with torch.no_grad():
        ours = stacked_hidden_states(pipe.vlm, ids, valid, queries)
        decoder = pipe.vlm.model.language_model
        embeds = torch.cat([decoder.embed_tokens(ids), queries.expand(2, -1, -1)], dim=1)
        mask = torch.nn.functional.pad(valid, (0, len(queries)), value=True)
        positions = rope_positions(
            torch.nn.functional.pad(ids, (0, len(queries))), mask, pipe.vlm.config.image_token_id, []
        )
        states = decoder(
            inputs_embeds=embeds,
            attention_mask=mask.long(),
            position_ids=positions,
            use_cache=False,
            output_hidden_states=True,
        ).hidden_states
    expected = torch.cat([states[index] for index in (35, 29, 23, 17, 11, 5)], dim=-1)
    assert ours.shape == expected.shape == (2, ids.shape[1] + len(queries), 6 * 32)
    torch.testing.assert_close(ours[mask], expected[mask], atol=2e-5, rtol=1e-4)
    if padded:
        assert not mask.all()
        # The original's padded rows too: SDPA gives them zero attention.
        torch.testing.assert_close(ours, expected, atol=2e-5, rtol=1e-4)


def test_layers_above_the_deepest_state_do_not_run(pipe):
    ran = []
    decoder = pipe.vlm.model.language_model
    hooks = [
        module.register_forward_hook(lambda *_, name=name: ran.append(name))
        for name, module in (("last layer", decoder.layers[-1].mlp), ("norm", decoder.norm))
    ]
    try:
        pipe.encode_prompt("a cat", height=64, width=64)
    finally:
        for hook in hooks:
            hook.remove()
    assert ran == []


def test_masks_are_boolean_and_never_empty():
    valid = torch.tensor([[False, False, True, True], [True, True, True, True]])
    mask = attention_mask(valid, "sdpa", torch.float32)
    assert mask is not None and mask.dtype == torch.bool and mask.shape == (2, 1, 4, 4)
    assert mask.any(dim=-1).all()
    assert mask[0, 0].tolist() == [
        [True, False, False, False],
        [False, True, False, False],
        [False, False, True, False],
        [False, False, True, True],
    ]
    additive = attention_mask(valid, "eager", torch.float32)
    assert additive is not None and torch.equal(additive == 0, mask)
