"""Values for the inputs of nodes, drawn by type: what is surely wrong, and what is odd but right.

The values are descriptions (see `probe_pack.values`), since they are built in another process.
"""

from __future__ import annotations

import math
from typing import Any

from hypothesis import strategies as st


Description = dict[str, Any]
Strategy = st.SearchStrategy[Description]

FLOATS = ("float32", "float16", "bfloat16", "float64")
OTHER_DTYPES = ("uint8", "int8", "int64", "bool", "complex64", "float8_e4m3fn")


def plain(value: Any) -> Description:
    return {"kind": "plain", "value": value}


def tensor(shape: list[int], **options: Any) -> Description:
    return {"kind": "tensor", "shape": shape, **options}


def latent(samples: Description, **more: Description) -> Description:
    return {"kind": "latent", "items": {"samples": samples, **more}}


texts = st.text(max_size=30)
whole_numbers = st.integers() | st.sampled_from([2**31, 2**63, -(2**63), 2**64, 10**30, -1, 0])
odd_objects = st.builds(
    lambda name: {"kind": "object", "value": name}, st.sampled_from(["object", "bytes", "set", "type", "complex"])
)
json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-9, 9) | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=5,
)
not_numbers = st.builds(
    lambda value, kind: {"kind": "number", "value": value, "type": kind},
    st.sampled_from(["nan", "inf", "-inf"]),
    st.sampled_from(["float", "numpy", "float32"]),
)
shapes = st.lists(st.integers(0, 5), max_size=6)
# None that might be an image.
small_tensors = st.builds(tensor, shapes.filter(lambda shape: len(shape) != 4))


def anything() -> Strategy:
    return st.one_of(st.builds(plain, json_values), not_numbers, odd_objects, small_tensors)


def of_kind(value: Description, *kinds: type) -> bool:
    return value["kind"] == "plain" and type(value["value"]) in kinds


def numbers_outside(low: float, high: float) -> Strategy:
    outside = st.floats(allow_nan=False, allow_infinity=False).filter(lambda x: not low <= x <= high)
    return st.builds(plain, outside | whole_numbers.filter(lambda x: not low <= x <= high))


def wrong_whole(low: int, high: int, step: int) -> Strategy:
    fraction = st.floats(low, min(high, 2**40)).filter(lambda x: not x.is_integer())
    between = st.integers(low, high).filter(lambda x: x % step) if step > 1 else st.nothing()
    other = anything().filter(lambda value: not of_kind(value, int))
    return numbers_outside(low, high) | st.builds(plain, fraction | between) | not_numbers | other


def wrong_number(low: float, high: float) -> Strategy:
    return numbers_outside(low, high) | not_numbers | anything().filter(lambda value: not of_kind(value, int))


# Of images and latents: one thing wrong with a tensor that is right otherwise.


def wrong_tensor(shape: list[int], limit: int) -> Strategy:
    """Args: limit: a side that is too large, for a view that only pretends to have it."""
    places = range(len(shape))
    return st.one_of(
        st.builds(lambda dtype: tensor(shape, dtype=dtype), st.sampled_from(OTHER_DTYPES)),
        st.builds(lambda kind: tensor(shape, layout=kind), st.sampled_from(["meta", "sparse", "nested", "quantised"])),
        st.builds(lambda fill, at: tensor(shape, fill=fill, at=at), st.sampled_from(["nan", "inf"]), st.integers(0)),
        st.builds(tensor, shapes.filter(lambda s: len(s) != 4)),
        st.builds(
            lambda i: tensor([0 if i == place else n for place, n in enumerate(shape)]), st.sampled_from(places)
        ),
        st.builds(
            lambda i, n: tensor([n if i == place else m for place, m in enumerate(shape)], layout="expanded"),
            st.sampled_from(places[:3]),
            st.integers(limit, 2**40),
        ),
        st.just(tensor([1000, 16000, 16000, shape[-1]], layout="expanded")),
    )


def wrong_image() -> Strategy:
    channels = st.integers(2, 9).filter(lambda n: n not in (3, 4))
    return st.one_of(
        wrong_tensor([1, 64, 64, 3], 16385),
        st.builds(lambda n: tensor([1, 64, 64, n]), channels),
        anything().filter(lambda value: not of_kind(value, type(None))),
    )


def wrong_mask() -> Strategy:
    return st.one_of(
        anything().filter(lambda value: not of_kind(value, type(None)) and value["kind"] != "tensor"),
        st.builds(lambda dtype: tensor([64, 64], dtype=dtype), st.sampled_from(["uint8", "int64", "complex64"])),
        st.just(tensor([0, 64, 64])),
        st.builds(tensor, shapes.filter(lambda s: len(s) not in (2, 3, 4))),
        st.builds(lambda n: tensor([1, n, 8, 8]), st.integers(2, 5)),
        st.builds(lambda at: tensor([8, 8], fill="nan", at=at), st.integers(0)),
        st.builds(lambda kind: tensor([8, 8], layout=kind), st.sampled_from(["meta", "sparse"])),
    )


def wrong_latent(channels: int) -> Strategy:
    shape = [2, channels, 8, 8]
    good = tensor(shape)
    noise_mask = wrong_mask() | st.builds(lambda count: tensor([count, 64, 64]), st.integers(3, 9))
    wrong_index = st.one_of(
        anything().filter(lambda value: not of_kind(value, type(None), list)),
        st.builds(lambda items: plain(items), st.lists(st.integers(0, 9)).filter(lambda items: len(items) != 2)),
        st.builds(
            lambda one: {"kind": "list", "items": [plain(0), one]},
            st.builds(plain, st.integers(max_value=-1) | st.integers(4096) | st.floats(0.1, 0.9) | st.booleans())
            | anything().filter(lambda value: not of_kind(value, int)),
        ),
    )
    return st.one_of(
        st.builds(latent, wrong_tensor(shape, 16385) | anything()),
        st.builds(lambda n: latent(tensor([1, n, 8, 8])), st.integers(1, 40).filter(lambda n: n != channels)),
        st.builds(lambda h: latent(tensor([1, channels, h, 8])), st.integers(1, 99).filter(lambda h: h % 2)),
        st.builds(lambda fill: latent(tensor(shape, fill=fill, at=1)), st.floats(10001, 1e30)),
        st.builds(lambda mask: latent(good, noise_mask=mask), noise_mask),
        st.builds(lambda index: latent(good, batch_index=index), wrong_index),
        anything().filter(lambda value: not of_kind(value, type(None))),
    )


def wrong_value(declared: dict[str, Any], channels: int) -> Strategy:
    """What an input of a node must refuse, by what the node declares."""
    kind = declared["type"]
    if kind == "INT":
        return wrong_whole(declared["min"], declared["max"], declared["step"] or 1)
    if kind == "FLOAT":
        return wrong_number(declared["min"], declared["max"])
    if kind == "STRING":
        return anything().filter(lambda value: not of_kind(value, str))
    if kind == "BOOLEAN":
        return anything().filter(lambda value: not of_kind(value, bool))
    if kind == "COMBO":
        return anything().filter(lambda value: not of_kind(value, str) or value["value"] not in declared["options"])
    if declared["name"] in ("image_2", "image_3", "image_4"):
        # Neither one image nor a batch as large as image.
        return wrong_image() | st.builds(lambda count: tensor([count, 64, 64, 3]), st.integers(2, 9))
    wrong = {"IMAGE": wrong_image(), "LATENT": wrong_latent(channels), "MASK": wrong_mask()}.get(kind, anything())
    # None is nothing that is connected.
    return wrong.filter(lambda value: value != plain(None)) if declared["optional"] else wrong | st.just(plain(None))


# Odd, and right all the same.


def right_whole(value: int) -> Strategy:
    kinds = st.sampled_from(["int", "float", "numpy", "float32", "int64", "fraction"])
    return st.builds(lambda kind: {"kind": "number", "value": str(value), "type": kind}, kinds)


def right_image() -> Strategy:
    sides = st.integers(1, 80)
    made = st.builds(
        lambda h, w, c, dtype, layout, fill: tensor([1, h, w, c], dtype=dtype, layout=layout, fill=fill),
        sides,
        sides,
        st.sampled_from([1, 3, 4]),
        st.sampled_from(FLOATS),
        st.sampled_from(["dense", "strided", "gradient", "expanded"]),
        st.sampled_from(["noise", -1.0, 0.5, 300.0]),
    )
    return made


def right_latent(channels: int) -> Strategy:
    return st.builds(
        lambda batch, dtype, layout, mask, index: latent(
            tensor([batch, channels, 8, 8], dtype=dtype, layout=layout),
            **({"noise_mask": mask} if mask else {}),
            **({"batch_index": plain([index] * batch)} if index is not None else {}),
        ),
        st.integers(1, 2),
        st.sampled_from(FLOATS),
        st.sampled_from(["dense", "strided", "gradient", "expanded"]),
        st.none() | st.builds(tensor, st.sampled_from([[64, 64], [1, 8, 8], [1, 1, 3, 5]])) | st.just(plain(None)),
        st.none() | st.integers(0, 50),
    )


def right_mask() -> Strategy:
    return st.builds(
        lambda shape, dtype, fill: tensor(shape, dtype=dtype, fill=fill),
        st.sampled_from([[64, 64], [1, 7, 50], [1, 1, 3, 5], [1, 1]]),
        st.sampled_from([*FLOATS, "bool"]),
        st.sampled_from(["noise", -1.0, 0.0, 0.5, 300.0]),
    )


def right_value(declared: dict[str, Any], usual: Description, channels: int) -> Strategy:
    """What an input must take, near to a usual value."""
    kind = declared["type"]
    if kind == "INT":
        return right_whole(usual["value"])
    if kind == "FLOAT":
        low, high = declared["min"], declared["max"]
        return st.builds(plain, st.floats(low, high) | st.integers(math.ceil(low), math.floor(high)))
    if kind == "STRING":
        return st.builds(plain, texts)
    if kind in ("IMAGE", "LATENT", "MASK"):
        right = {"IMAGE": right_image, "LATENT": lambda: right_latent(channels), "MASK": right_mask}[kind]()
        return right | st.just(plain(None)) if declared["optional"] else right
    return st.just(usual)
