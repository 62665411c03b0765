"""A hub that lies, stalls or never ends. Whatever it does: the right files, or a clear error and nothing outside."""

from __future__ import annotations

import gzip
import hashlib
import os
import re
import shutil
import time
from pathlib import Path
from typing import Any

import pytest
from hub_server import DATA, EACH_SOURCE, WEIGHTS, Hub, assert_clear, serve
from hypothesis import given
from hypothesis import strategies as st
from platforms import not_on_windows
from property_settings import cases, drawn

from deepgen_npu.errors import DownloadError
from deepgen_npu.hub import transfer
from deepgen_npu.hub.download import MODEL_ID, download
from deepgen_npu.hub.files import is_data_file


def reset(hub: Hub) -> None:
    hub.files, hub.headers, hub.listing_headers, hub.contents = dict(DATA), {}, {}, {}
    hub.drip, hub.stop_at, hub.relist = {}, {}, lambda listing: listing
    hub.log.clear()


def tree(folder: Path) -> dict[str, str]:
    """Everything below a folder, with its content or where it leads."""
    found = {}
    for path in sorted(folder.rglob("*")):
        name = str(path.relative_to(folder))
        if path.is_symlink():
            found[name] = f"-> {os.readlink(path)}"
        else:
            found[name] = "folder" if path.is_dir() else hashlib.sha1(path.read_bytes()).hexdigest()
    return found


def assert_right_or_refused(source: str, box: Path, to: str | None, some_unlisted: bool = False) -> str:
    """The invariant of this file, around one download into an empty box next to other files.

    Args:
        some_unlisted: The list may not have all files; those that it names otherwise are skipped.
    """
    outside = box.parent
    shutil.rmtree(box, ignore_errors=True)
    target = box / to if to else None
    before = tree(outside)
    try:
        folder = download(source, target)
        outcome = "downloaded"
        for name, content in DATA.items():
            if not some_unlisted or (folder / name).exists():
                assert (folder / name).read_bytes() == content, name
    except DownloadError as error:
        assert_clear(error)
        outcome = "refused"
    after = tree(outside)
    assert {name for name in after if not name.startswith("box")} == set(before)
    root = box / (to or "")
    for path in root.rglob("*"):
        # Only complete files that were listed have a final name; ours are hidden, and refs of the cache.
        ours = path.name.startswith(".") or path.suffix == ".incomplete" or path.parent.name == "refs"
        assert path.resolve().is_relative_to(box.resolve())
        if path.is_file() and not ours:
            assert path.read_bytes() in DATA.values(), path
            assert "/".join(path.parts).endswith(tuple(DATA)), path
    return outcome


# ---- what a hub may list, drawn from a description


pieces = st.sampled_from(
    ["..", ".", "", "a", "vae", "~", "C:", "NUL", "con.json", "x" * 300, "\0", "\x1b[2J", "\ud800"]
)
odd_names = st.builds(
    lambda parts, joint, tail: joint.join(parts) + tail,
    st.lists(pieces, min_size=1, max_size=4),
    st.sampled_from(["/", "\\", ":", "//"]),
    st.sampled_from(["", ".json", "/evil.json", "/evil.safetensors", ".py", " ", "."]),
)
hexadecimal = st.builds(
    lambda digits, length: (digits * 70)[:length],
    st.text("0123456789abcdefABCDEF", min_size=1, max_size=8),
    st.sampled_from([0, 1, 7, 39, 40, 41, 63, 64, 65]),
)
numbers = st.one_of(
    st.integers(-(2**70), 2**70), st.floats(), st.just(10**400), st.sampled_from([0, -1, 1, 13, 2**40, 2**63])
)
leaves = st.one_of(st.none(), st.booleans(), numbers, odd_names, hexadecimal, st.text(max_size=20))
anything = st.recursive(
    leaves, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3)
)
FIELDS = {
    "huggingface": ["rfilename", "size", "blobId", "lfs", "lfs.sha256", "lfs.size", "type", "extra", None],
    "modelscope": ["Path", "Size", "Sha256", "Type", "Revision", "extra", None],
}
TOP = {
    "huggingface": ["", "sha", "siblings", "id", "siblings.0"],
    "modelscope": ["", "Code", "Data", "Data.Files", "Data.Files.0", "Success"],
}


def replaced(value: Any, path: str, new: object) -> Any:
    """A JSON value with the part at a dotted path replaced."""
    if not path:
        return new
    head, _, rest = path.partition(".")
    if isinstance(value, list):
        index = int(head)
        return [replaced(item, rest, new) if at == index else item for at, item in enumerate(value)]
    if not isinstance(value, dict):
        return value
    return value | {head: replaced(value.get(head, {}), rest, new)}


def entries_of(listing: Any, source: str) -> list[dict[str, Any]]:
    return listing["siblings"] if source == "huggingface" else listing["Data"]["Files"]


def is_listing(listing: Any) -> bool:
    return isinstance(listing, dict) and ("siblings" in listing or "Files" in (listing.get("Data") or {}))


@EACH_SOURCE
@cases(40)
@given(data=st.data())
def test_hostile_listing(source: str, data: st.DataObject, hub: Hub, tmp_path: Path) -> None:
    reset(hub)
    to = data.draw(st.sampled_from([None, "model"]))
    new = data.draw(anything)
    unlisted = False
    if data.draw(st.booleans()):
        path = data.draw(st.sampled_from(TOP[source]))
        unlisted = path.endswith(".0")
        hub.relist = lambda listing: replaced(listing, path, new) if is_listing(listing) else listing
    else:
        field = data.draw(st.sampled_from(FIELDS[source]))
        index = data.draw(st.integers(0, len(DATA) - 1))
        twice = data.draw(st.booleans())
        unlisted = field in ("rfilename", "Path", "type", "Type", None)

        def relist(listing: Any) -> Any:
            if is_listing(listing):
                entries = entries_of(listing, source)
                entry = dict(entries[index])
                changed = replaced(entry, field, new) if field is not None else new
                entries[index : index + 1] = [entry, changed] if twice else [changed]
            return listing

        hub.relist = relist
    drawn[f"listing of {source}"] += 1
    assert_right_or_refused(source, tmp_path / "box", to, unlisted)


@cases(30)
@given(commit=anything.filter(lambda value: not isinstance(value, str) or not re.fullmatch("[0-9a-f]{40}", value)))
def test_a_commit_that_is_not_one(commit: object, hub: Hub, tmp_path: Path) -> None:
    reset(hub)
    hub.relist = lambda listing: listing | {"sha": commit}
    drawn["commit"] += 1
    # NaN is refused before, as no number of JSON.
    with pytest.raises(DownloadError, match=r"the commit must be 40 hexadecimal digits, got .*\)|not valid JSON"):
        download()
    assert hub.requested() == []
    assert not (tmp_path / "box").exists()


@EACH_SOURCE
@cases(15)
@given(data=st.data())
def test_listing_that_is_no_listing(source: str, data: st.DataObject, hub: Hub, tmp_path: Path) -> None:
    """Bytes that are not JSON, or JSON that is deep, long or never ends."""
    reset(hub)
    body = data.draw(
        st.one_of(
            st.binary(max_size=50),
            st.integers(60, 200_000).map(lambda depth: b"[" * depth),
            st.integers(1, 5000).map(lambda depth: b'{"siblings":' * depth + b"[]" + b"}" * depth),
            st.integers(4_000, 100_000).map(lambda digits: b'{"siblings": [{"size": ' + b"9" * digits + b"}]}"),
            st.sampled_from([b"", b"null", b"NaN", b'{"sha": NaN}', b'{"a": 1, "a": 2}', b"\xff\xfe{}", b" " * 2**25]),
        )
    )
    hub.relist = lambda _: body
    drawn[f"no listing of {source}"] += 1
    assert assert_right_or_refused(source, tmp_path / "box", data.draw(st.sampled_from([None, "model"]))) == "refused"


@pytest.mark.slow
@EACH_SOURCE
@cases(30)
@given(data=st.data())
def test_hostile_answer_with_a_file(source: str, data: st.DataObject, hub: Hub, tmp_path: Path) -> None:
    """Headers that lead elsewhere, and content that is not what was listed."""
    reset(hub)
    name = data.draw(st.sampled_from(sorted(DATA)))
    kind = data.draw(st.sampled_from(["header", "swapped", "cut", "longer", "endless", "dropped", "redirect"]))
    content = DATA[name]
    header = st.one_of(odd_names, hexadecimal, st.integers(-5, 2**70).map(str)).map(
        lambda text: text.encode("ascii", "ignore").decode().translate({0: "", 10: "", 13: ""})
    )
    if kind == "header":
        key = st.sampled_from(["ETag", "X-Linked-ETag", "X-Repo-Commit", "X-Linked-Size", "Content-Range"])
        key |= st.sampled_from(["Content-Disposition", "Content-Encoding", "Set-Cookie", "Content-Type"])
        hub.headers[data.draw(key)] = data.draw(header)
    elif kind == "swapped":
        flipped = data.draw(st.integers(0, len(content) - 1))
        hub.contents[name] = content[:flipped] + bytes([content[flipped] ^ 1]) + content[flipped + 1 :]
    elif kind == "cut":
        hub.contents[name] = content[: data.draw(st.integers(0, len(content) - 1))]
    elif kind == "longer":
        hub.contents[name] = content + data.draw(st.binary(min_size=1, max_size=40_000))
    elif kind == "endless":
        hub.contents[name] = content * data.draw(st.integers(2, 200))
        hub.headers["Content-Length"] = None
    elif kind == "dropped":
        hub.stop_at[name] = (data.draw(st.integers(0, len(content) - 1)), data.draw(st.integers(1, 5)))
    else:
        answers = data.draw(st.sampled_from([hub.headers, hub.listing_headers]))
        answers["Location"] = data.draw(
            header
            | st.sampled_from(
                [
                    "file:///etc/passwd",
                    "ftp://x/y",
                    "http://",
                    "http://[",
                    "//",
                    "http://127.0.0.1:9/x",
                    f"{hub.url}/x",
                ]
            )
        )
    drawn[f"answer of {source}"] += 1
    outcome = assert_right_or_refused(source, tmp_path / "box", data.draw(st.sampled_from([None, "model"])))
    if kind in ("swapped", "cut", "longer", "endless", "redirect"):
        assert outcome == "refused"


@EACH_SOURCE
def test_an_honest_hub(source: str, hub: Hub, tmp_path: Path) -> None:
    """Without this, a download that always fails would pass the tests above."""
    for to in (None, "model"):
        assert assert_right_or_refused(source, tmp_path / "box", to) == "downloaded"


@cases(200)
@given(name=st.one_of(odd_names, st.text(max_size=30).map(lambda text: text + ".json")))
def test_names_of_files(name: str) -> None:
    drawn["names of files"] += 1
    if is_data_file(name):
        assert name.isascii() and name.isprintable()
        assert not set(name) & set('\\:*?"<>|') and not name.startswith("/")
        assert not any(part.strip(". ") != part or not part for part in name.split("/"))


@not_on_windows("links need rights that users do not have")
@cases(20)
@given(data=st.data())
def test_links_that_lie_in_the_way(data: st.DataObject, hub: Hub, tmp_path: Path) -> None:
    """Whatever in the folder is a link that leads out of it, nothing is written there."""
    reset(hub)
    box = tmp_path / "box"
    shutil.rmtree(box, ignore_errors=True)
    model, outside = box / "model", tmp_path / "outside"
    shutil.rmtree(outside, ignore_errors=True)
    for folder in (model, outside / "vae"):
        folder.mkdir(parents=True)
    (outside / "vae" / "config.json").write_bytes(b"mine")
    file = data.draw(st.sampled_from(sorted(DATA)))
    kind = data.draw(st.sampled_from(["folder", "file", "complete file", "unfinished", "record"]))
    place = model / file
    place.parent.mkdir(exist_ok=True)
    aim = outside / "vae" / "config.json"
    if kind == "folder":
        shutil.rmtree(model / "vae", ignore_errors=True)
        (model / "vae").symlink_to(outside / "vae")
    elif kind == "unfinished":
        full = hub.etag(file) if file == WEIGHTS else hub.blob_id(file)
        place.with_name(f"{place.name}.{full[:8]}.incomplete").symlink_to(aim)
    elif kind == "record":
        (model / ".download.json").symlink_to(aim)
    else:
        if kind == "complete file":
            aim.write_bytes(DATA[file])
        place.symlink_to(aim)
    before = tree(outside)
    drawn["links in the way"] += 1
    try:
        download(to=model)
        assert kind != "folder"
        for name, content in DATA.items():
            assert (model / name).read_bytes() == content
            assert not (model / name).is_symlink()
    except DownloadError as error:
        assert_clear(error)
        assert kind == "folder"
        assert "remove the link" in str(error)
    assert tree(outside) == before


@EACH_SOURCE
@cases(15)
@given(data=st.data())
def test_what_an_earlier_attempt_left(source: str, data: st.DataObject, hub: Hub, tmp_path: Path) -> None:
    """Unfinished files of any length and content, complete ones that were damaged, and ranges that are ignored."""
    reset(hub)
    model = tmp_path / "model"
    shutil.rmtree(model, ignore_errors=True)
    (model / "transformer").mkdir(parents=True)
    content = DATA[WEIGHTS]
    length = data.draw(st.integers(0, len(content) + 10))
    left = content[:length] if data.draw(st.booleans()) else bytes(length)
    unfinished = model / f"{WEIGHTS}.{hub.etag(WEIGHTS)[:8]}.incomplete"
    (model / WEIGHTS if data.draw(st.booleans()) else unfinished).write_bytes(left)
    hub.ignores_ranges = data.draw(st.booleans())
    if data.draw(st.booleans()):
        hub.headers["Content-Range"] = "bytes 7-9/10"
    drawn["left by an earlier attempt"] += 1
    download(source, model)
    assert (model / WEIGHTS).read_bytes() == content
    assert not list(model.rglob("*.incomplete"))


@EACH_SOURCE
def test_a_redirect_gets_no_secret(source: str, hub: Hub, tmp_path: Path) -> None:
    with serve(MODEL_ID, dict(DATA)) as elsewhere:
        path = f"/{MODEL_ID}/resolve/main/model_index.json"
        hub.files = {"model_index.json": DATA["model_index.json"]}
        hub.headers["Location"] = elsewhere.url + path
        assert (download(source, tmp_path / "model") / "model_index.json").read_bytes() == DATA["model_index.json"]
        assert hub.log and all("secret of" in (request.user or "") for request in hub.log)
        assert [request.user for request in elsewhere.log] == [None]


@pytest.mark.parametrize("location", ["http://a/b", "file:///x", "ftp://a/b", "http://[", "https://a:b/", None])
def test_redirects_from_https(location: str | None) -> None:
    assert transfer._follow("https://hub/x", "/y") == "https://hub/y"
    assert transfer._follow("https://hub/x", "https://cdn/y") == "https://cdn/y"
    with pytest.raises(ValueError, match=r"^the target of a redirect must be a URL of https, got "):
        transfer._follow("https://hub/x", location)


@pytest.mark.slow
@EACH_SOURCE
@pytest.mark.parametrize("what", ["info", WEIGHTS])
@pytest.mark.parametrize("at_once", [-1, 10])
def test_a_hub_that_drips(
    source: str, what: str, at_once: int, hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transfer, "STALLED_SECONDS", 1)
    hub.drip[what] = at_once
    begin = time.monotonic()
    with pytest.raises(DownloadError, match="the transfer stalled for 1 seconds") as caught:
        download(source, tmp_path / "model")
    assert time.monotonic() - begin < 20
    assert_clear(caught.value)


@pytest.mark.slow
@EACH_SOURCE
def test_a_listing_that_grows_when_it_is_read(source: str, hub: Hub, tmp_path: Path) -> None:
    bomb = gzip.compress(bytes(2**28), 9)
    hub.relist = lambda _: bomb
    hub.listing_headers["Content-Encoding"] = "gzip"
    with pytest.raises(DownloadError, match=r"must have at most 16777216 bytes, got more") as caught:
        download(source, tmp_path / "model")
    assert_clear(caught.value)
