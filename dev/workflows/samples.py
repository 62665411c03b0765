"""The sample workflows, described: nodes, where they stand, what they say. `make_workflows` makes the files.

What runs in a sample as it is opened stays within what the demo model knows, so that it gives the right picture on a
fresh install. What only DeepGen 1.0 can do waits in a muted row below.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nodes.names import EITHER


TEXTS = json.loads(Path(__file__).with_name("workflow_texts.json").read_text(encoding="utf-8"))
MUTED_GROUP = "With DeepGen 1.0 - unmute (Ctrl+M)"
COLUMN = 440
ROW = 720
HEIGHT = 580  # of the tallest node in a row
MUTED = 2


@dataclass
class Node:
    """One node: where it stands, what its widgets say, and where its inputs come from."""

    key: str
    type: str
    box: tuple[int, int, int, int]  # x, y, width, height
    widgets: dict[str, Any] = field(default_factory=dict)
    # Input name: key of the node that feeds it, with ":1" for its second output.
    links: dict[str, str] = field(default_factory=dict)
    title: str = ""
    mode: int = 0


@dataclass
class Sample:
    name: str
    nodes: list[Node]
    groups: dict[str, list[str]]  # title: keys of the nodes in it
    thumbnail: list[str]  # keys of the nodes whose pictures it shows: what went in, and last the result


def loader() -> Node:
    return Node("loader", "DeepGenLoader", (0, 0, 380, 110), {"model": EITHER})


def note(name: str) -> Node:
    def text(language: str) -> str:
        return "\n\n".join([TEXTS[name][language], TEXTS["model"][language], TEXTS["muted"][language]])

    return Node(
        "note", "MarkdownNote", (0, 200, 380, 960), {"text": f"{text('en')}\n\n---\n\n{text('zh')}"}, title="Read me"
    )


def at(column: float, y: int, height: int, width: int = 400) -> tuple[int, int, int, int]:
    return (round(column * COLUMN), y, width, height)


def generate(key: str, column: float, y: int, prompt: str) -> Node:
    widgets = {"prompt": prompt, "control_after_generate": "fixed"}
    return Node(key, "DeepGenTextToImage", at(column, y, HEIGHT), widgets, {"pipeline": "loader"})


def edit(key: str, column: float, y: int, image: str, prompt: str, **more: str) -> Node:
    links = {"pipeline": "loader", "image": image}
    widgets = {"prompt": prompt, "control_after_generate": "fixed"}
    for name, value in more.items():
        (links if name.startswith("image") else widgets)[name] = value
    return Node(key, "DeepGenEdit", at(column, y, HEIGHT), widgets, links)


def encode(key: str, column: float, y: int, prompt: str, height: int = HEIGHT, **image: str) -> Node:
    return Node(key, "DeepGenEncode", at(column, y, height), {"prompt": prompt}, {"pipeline": "loader", **image})


def sample(key: str, column: float, y: int, conditioning: str, **more: Any) -> Node:
    links = {"pipeline": "loader", "conditioning": conditioning}
    widgets = {"control_after_generate": "fixed"}
    for name, value in more.items():
        (links if name == "latent_image" else widgets)[name] = value
    # Room for the live preview below the widgets.
    return Node(key, "DeepGenSample", at(column, y, 440, 300), widgets, links)


def decode(key: str, column: float, y: int, latent: str) -> Node:
    return Node(key, "VAEDecode", at(column, y, 60, 300), links={"samples": latent, "vae": "loader:1"})


def save(key: str, column: float, y: int, image: str, prefix: str, height: int = HEIGHT) -> Node:
    return Node(key, "SaveImage", at(column, y, height), {"filename_prefix": prefix}, {"images": image})


def preview(key: str, column: float, y: int, image: str) -> Node:
    return Node(key, "PreviewImage", at(column, y, 440), links={"images": image})


def load(key: str, column: float, y: int) -> Node:
    return Node(key, "LoadImage", at(column, y, 400), {"image": "example.png"})


def muted(*nodes: Node) -> list[Node]:
    for node in nodes:
        node.mode = MUTED
    return list(nodes)


def complete(name: str, nodes: list[Node], groups: dict[str, list[str]], thumbnail: list[str]) -> Sample:
    """A sample with loader, note, and a group around what is muted."""
    waiting = [node.key for node in nodes if node.mode == MUTED]
    every = {"Step 1 - Load model": ["loader"], **groups, MUTED_GROUP: waiting}
    return Sample(name, [loader(), note(name), *nodes], every, thumbnail)
