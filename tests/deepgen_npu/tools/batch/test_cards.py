"""Which cards a worker sees, by what Ray gave it and what the variables of its node say."""

from __future__ import annotations

import pytest

from deepgen_npu.tools.batch.cards import cards_of_a_worker, show_own_cards


ASCEND, CUDA = "ASCEND_RT_VISIBLE_DEVICES", "CUDA_VISIBLE_DEVICES"
UUIDS = ["GPU-b3f1", "GPU-0a77"]


@pytest.mark.parametrize(
    ("kind", "asked", "given", "environment", "seen"),
    [
        ("npu", {"NPU": 1}, {"NPU": ["3"]}, {ASCEND: "3"}, "3"),
        # NOSET: Ray has set nothing.
        ("npu", {"NPU": 1}, {"NPU": ["3"]}, {}, "3"),
        ("npu", {"NPU": 1}, {"NPU": ["6"]}, {ASCEND: "4,5,6,7"}, "6"),
        # The order of a set: CANN would find no card.
        ("npu", {"NPU": 2}, {"NPU": ["7", "6"]}, {ASCEND: "7,6"}, "6,7"),
        ("npu", {"NPU": 4}, {"NPU": [8, 1, 3, 9]}, {ASCEND: "8,1,3,9"}, "1,3,8,9"),
        ("npu", {"NPU": 2}, {"NPU": ["10", "9"]}, {ASCEND: "10,9"}, "9,10"),
        ("npu", {"NPU": 0.5}, {"NPU": ["1"]}, {ASCEND: "1"}, "1"),
        # NPUs declared as GPUs: places among the visible.
        ("npu", {"GPU": 1}, {"NPU": [], "GPU": ["2"]}, {CUDA: "2"}, "2"),
        ("npu", {"GPU": 1}, {"NPU": [], "GPU": ["2"]}, {ASCEND: "4,5,6,7"}, "6"),
        ("npu", {"GPU": 2}, {"GPU": ["1", "0"]}, {ASCEND: "4,5,6,7"}, "4,5"),
        ("cuda", {"GPU": 1}, {"GPU": ["1"]}, {}, "1"),
        ("cuda", {"GPU": 2}, {"GPU": ["1", "0"]}, {CUDA: "1,0"}, "0,1"),
        ("cuda", {"GPU": 2}, {"GPU": UUIDS}, {CUDA: "GPU-b3f1,GPU-0a77,GPU-55cd"}, "GPU-0a77,GPU-b3f1"),
    ],
)
def test_a_worker_sees_the_cards_that_it_was_given(kind, asked, given, environment, seen):
    cards = show_own_cards(kind, asked, given, environment)
    assert environment[{"npu": ASCEND, "cuda": CUDA}[kind]] == seen == ",".join(cards)


def test_a_worker_without_a_card_changes_nothing():
    environment = {ASCEND: "4,5"}
    assert show_own_cards("cpu", {"CPU": 1}, {"NPU": [], "GPU": []}, environment) == []
    assert environment == {ASCEND: "4,5"}


@pytest.mark.parametrize(
    ("kind", "asked", "given", "environment", "message"),
    [
        # What Ray does with a node that declares 8 and shows 4.
        (
            "npu",
            {"NPU": 1},
            {"NPU": ["4", "5"]},
            {},
            f"must get 1 NPU of Ray, got 2 (4, 5). Declare as many as {ASCEND}",
        ),
        ("npu", {"NPU": 1}, {}, {}, "must get 1 GPU of Ray, got none."),
        ("cuda", {"GPU": 2}, {"GPU": ["1"]}, {}, f"must get 2 GPU of Ray, got 1 (1). Declare as many as {CUDA}"),
        ("npu", {"GPU": 1}, {"GPU": ["4"]}, {ASCEND: "0,1"}, f"{ASCEND} must name a card for each GPU that the node"),
        ("npu", {"NPU": 1}, {"NPU": ["first"]}, {}, f"{ASCEND} must be numbers of cards with commas between them"),
    ],
)
def test_cards_that_cannot_be_are_refused(kind, asked, given, environment, message):
    before = dict(environment)
    with pytest.raises(ValueError) as refused:
        show_own_cards(kind, asked, given, environment)
    assert message in str(refused.value) and environment == before


def test_a_worker_needs_the_cards_that_its_devices_name():
    assert cards_of_a_worker("npu", ["npu", None]) == cards_of_a_worker("npu", ["auto", "cpu"]) == 1
    assert cards_of_a_worker("npu", ["npu:0", "npu:1"]) == 2
    assert cards_of_a_worker("cuda", ["cuda", "cuda:3"]) == 4
