"""The two hubs: where their caches store a model, how each lists its files, and its answers, checked."""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import quote

from ..checks import must_be
from ..errors import DownloadError
from ..files import FileError, parse_json, read_bytes
from .files import COMMIT, BadAnswer, HubFile, checked_files, checked_id, is_data_file


if TYPE_CHECKING:
    from .transfer import Client, Watch

logger = logging.getLogger(__name__)


class Plan(NamedTuple):
    """What to fetch, and where.

    Attributes:
        folder: Receives the files.
        root: The folder that links in it may lead to.
        files: As the hub lists them, checked.
        address: The address of a file by its name.
        ref: The file that names the commit once all files are there; None where there is none.
    """

    folder: Path
    root: Path
    files: list[HubFile]
    address: Callable[[str], str]
    ref: Path | None = None


def _hf_storage(model_id: str) -> Path:
    from huggingface_hub import constants

    return Path(constants.HF_HUB_CACHE).expanduser() / f"models--{model_id.replace('/', '--')}"


def cached_folders(source: str, model_id: str, revision: str | None) -> Iterator[Path]:
    """Folders where a cache may store the model, the most likely first; they need not exist."""
    if source == "huggingface":
        storage = _hf_storage(model_id)
        commit = revision or ""
        with contextlib.suppress(OSError, FileError):
            commit = read_bytes(storage / "refs" / (revision or "main"), 100).decode("ascii", "replace").strip()
        if COMMIT.fullmatch(commit):
            yield storage / "snapshots" / commit
        if revision is None:  # the default branch is not there, but a tag or commit may be
            yield from _newest_first(storage / "snapshots")
        return
    owner, name = model_id.split("/")
    root = _modelscope_cache()
    for base in (root / "models", root / "hub" / "models", root, root / "hub"):
        yield base / owner / name.replace(".", "___")  # written by modelscope < 1.38
        yield base / owner / name
        snapshots = base / f"{owner}--{name}" / "snapshots"  # written by modelscope >= 1.38, and here
        yield from [snapshots / revision] if revision else _newest_first(snapshots)


def _modelscope_cache() -> Path:
    return Path(os.environ.get("MODELSCOPE_CACHE") or "~/.cache/modelscope").expanduser()


def _newest_first(folder: Path) -> list[Path]:
    inside = [path for path in folder.glob("*") if path.is_dir()]
    return sorted(inside, key=lambda path: path.stat().st_mtime, reverse=True)


def make_client(source: str, watch: Watch) -> Client:
    """A client of one of `SOURCES`, with the user's token if there is one.

    Raises:
        DownloadError: The token or the address is malformed.
    """
    from .transfer import Client

    secret = {}
    if source == "huggingface":
        from huggingface_hub import constants, get_token

        endpoint = constants.ENDPOINT
        token = None if constants.HF_HUB_DISABLE_IMPLICIT_TOKEN else get_token()
    else:
        endpoint = _modelscope_address()
        token = os.environ.get("MODELSCOPE_API_TOKEN")
        if token is None:
            with contextlib.suppress(Exception):  # the library is optional, and so is a login
                from modelscope_hub.config import HubConfig

                token = HubConfig().token
        if token:
            secret["Cookie"] = f"m_session_id={token}"
    if token:
        if not (token.isascii() and token.isprintable()):  # an error of the transfer would show it
            raise DownloadError(f"The token for {source} must be printable ASCII. Log in again, or correct it.")
        secret["Authorization"] = f"Bearer {token}"
    return Client(endpoint, secret, watch)


def _modelscope_address() -> str:
    address = os.environ.get("MODELSCOPE_ENDPOINT") or os.environ.get("MODELSCOPE_DOMAIN") or "https://modelscope.cn"
    return address if "://" in address else f"https://{address}"


def from_huggingface(client: Client, model_id: str, revision: str | None, target: Path | None) -> Plan:
    """The plan of a download from Hugging Face or a mirror: into ``target``, or its cache."""
    from .transfer import Refused

    api = f"{client.endpoint}/api/models/{model_id}"
    about = api + (f"/revision/{quote(revision, safe='')}" if revision else "")
    try:
        info = parse_json(client.read(f"{about}?blobs=true"), "the list of files")
    except Refused as refused:  # a mirror may not offer sizes; the plain query must work
        if refused.status in (401, 403, 404):
            raise
        logger.debug("the hub does not list file sizes: %s", refused)
        info = parse_json(client.read(about), "the list of files")
    commit = checked_id("the commit", info.get("sha"), COMMIT)
    entries = _hf_entries(info.get("siblings"), "rfilename", "blobId", "sha256")
    if any(entry["size"] is None for entry in entries if is_data_file(entry["name"])):
        # `parse_json` takes an object, and the answer is a list.
        tree = b'{"tree": %s}' % client.read(f"{api}/tree/{commit}?recursive=true")
        entries = _hf_entries(parse_json(tree, "the tree of files").get("tree"), "path", "oid", "oid")
    storage = _hf_storage(model_id)
    return Plan(
        folder=target or storage / "snapshots" / commit,
        root=target or storage,
        files=checked_files(entries),
        address=lambda name: f"{client.endpoint}/{model_id}/resolve/{commit}/{quote(name)}",
        ref=None if target or revision == commit else storage / "refs" / (revision or "main"),
    )


def _hf_entries(listed: object, name: str, blob_id: str, sha256: str) -> list[dict[str, Any]]:
    """The two kinds of list that the hub has, in the form of `checked_files`."""
    entries = []
    for entry in _objects(listed):
        if entry.get("type", "file") != "file":
            continue
        large = entry.get("lfs")
        of_large = large if isinstance(large, dict) else {}
        entries.append(
            {
                "name": entry.get(name),
                "size": entry.get("size"),
                "blob_id": entry.get(blob_id),
                "sha256": of_large.get(sha256),
                "large": large is not None,
            }
        )
    return entries


def _objects(listed: object) -> list[dict[str, Any]]:
    if not isinstance(listed, list):
        raise BadAnswer(must_be("the list of files", "a list of objects", listed))
    for value in listed:
        if not isinstance(value, dict):
            raise BadAnswer(must_be("an entry of the list of files", "an object", value))
    return listed


def from_modelscope(client: Client, model_id: str, revision: str | None, target: Path | None) -> Plan:
    """The plan of a download from ModelScope: into ``target``, or its cache."""
    from .transfer import Refused

    api = f"{client.endpoint}/api/v1/models/{model_id}/repo"
    branch = revision or "master"
    where = f"Revision={quote(branch, safe='')}"
    answer = parse_json(client.read(f"{api}/files?{where}&Recursive=True"), "the list of files")
    code, data = answer.get("Code", 200), answer.get("Data")
    if type(code) is int and code != 200:  # its errors may come with the status 200
        raise Refused(code, f"{api}/files")
    if not isinstance(data, dict):
        raise BadAnswer(must_be("the Data of the answer", "an object", data))
    entries = [
        {
            "name": entry.get("Path"),
            "size": entry.get("Size"),
            "blob_id": None,
            "sha256": entry.get("Sha256") or None,
            "large": str(entry.get("Path")).endswith(".safetensors"),
        }
        for entry in _objects(data.get("Files"))
        if entry.get("Type", "blob") == "blob"
    ]
    # A download begun by an older version of ModelScope's library is completed where it is.
    old = (path for path in cached_folders("modelscope", model_id, None) if path.parent.name != "snapshots")
    began = None if revision else next((path for path in old if path.is_dir()), None)
    owner, name = model_id.split("/")
    folder = target or began or _modelscope_cache() / "models" / f"{owner}--{name}" / "snapshots" / branch
    return Plan(
        folder=folder,
        root=folder,
        files=checked_files(entries),
        address=lambda name: f"{api}?{where}&FilePath={quote(name, safe='')}",
    )


PLANS = {"huggingface": from_huggingface, "modelscope": from_modelscope}
"""How to plan a download, by source."""
