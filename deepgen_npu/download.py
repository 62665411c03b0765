"""Fetch the published DeepGen 1.0 folder from Hugging Face or ModelScope, and find it again.

Only data files are ever asked for: a model folder may also hold Python code or pickles, which
this package neither needs nor wants on the user's disk. Importing this module is cheap; the hub
libraries are imported when a function needs them.
"""

from __future__ import annotations

import errno
import glob
import logging
import os
import re
import shutil
from collections.abc import Callable, Iterator
from fnmatch import fnmatch
from pathlib import Path
from typing import NamedTuple


MODEL_ID = "deepgenteam/DeepGen-1.0-diffusers"
SOURCES = ("huggingface", "modelscope")
INDEX_FILE = "model_index.json"
OFFLINE_SWITCHES = ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE")
# ModelScope reads ".*" in a pattern as a regular expression, so no pattern may contain it.
DATA_FILES = ["*.json", "*.safetensors", "*.jinja", "tokenizer/*.txt", "README.md", "LICENSE"]
UNSAFE_FILES = ["../*", "*/../*", "/*", "*:*"]  # names that would leave the destination folder
DISK_FULL = (errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC))

logger = logging.getLogger(__name__)


class DownloadError(RuntimeError):
    """A download could not be done; the message says what to do about it."""


class _File(NamedTuple):
    name: str
    size: int | None  # None when the hub does not tell
    etag: str | None = None


def download(
    source: str = "huggingface",
    to: str | os.PathLike[str] | None = None,
    model_id: str = MODEL_ID,
    revision: str | None = None,
) -> Path:
    """Download the data files of a published model, continuing an earlier attempt.

    With an offline switch (HF_HUB_OFFLINE or TRANSFORMERS_OFFLINE) set, nothing is requested:
    a copy that is already on disk is returned as it is, complete or not.

    Args:
        source: "huggingface" or "modelscope".
        to: Folder that receives the files directly; the source's own cache when None.
        model_id: "owner/name" on the chosen hub.
        revision: Branch, tag or commit; the hub's default when None.

    Returns:
        The folder that holds ``model_index.json``.

    Raises:
        DownloadError: The files could not be fetched; the message says what to do next.
        ValueError: ``source`` or ``model_id`` is not of the expected form.
    """
    if source not in SOURCES:
        raise ValueError(f"source must be 'huggingface' or 'modelscope', not {source!r}")
    if not _is_model_id(model_id):
        raise ValueError(f"model_id must look like 'owner/name', not {model_id!r}")
    target = Path(to).expanduser().absolute() if to is not None else None
    switch = next((name for name in OFFLINE_SWITCHES if _is_on(name)), None)
    if switch is not None:
        folders = [target] if target else _cached_folders(source, model_id, revision)
        for folder in folders:
            if (folder / INDEX_FILE).is_file():
                logger.info("%s is set; using what is in %s", switch, folder)
                return folder
        place = target or f"the {source} cache"
        raise DownloadError(
            f"{switch} is set, so {model_id} may not be downloaded from {source}, and {place} "
            f"holds no {INDEX_FILE}. Unset {switch}, or name a folder that has the model."
        )
    fetch = _from_huggingface if source == "huggingface" else _from_modelscope
    try:
        return fetch(model_id, revision, target)
    except DownloadError:
        raise
    except Exception as error:
        raise DownloadError(_explain(error, source, model_id, revision, target)) from error


def find_downloaded(model_id: str = MODEL_ID) -> Path | None:
    """Find a downloaded model in the Hugging Face or ModelScope cache, without any network.

    Args:
        model_id: "owner/name" as it was downloaded.

    Returns:
        The first folder that has a ``model_index.json``, or None. Whether the other files are
        complete is not checked.
    """
    if _is_model_id(model_id):
        for source in SOURCES:
            for folder in _cached_folders(source, model_id, None):
                if (folder / INDEX_FILE).is_file():
                    return folder
    return None


def _is_on(variable: str) -> bool:
    return os.environ.get(variable, "").strip().lower() in {"1", "true", "yes", "on"}


def _is_model_id(text: str) -> bool:
    return bool(re.fullmatch(r"[A-Za-z0-9_][\w.-]*/[A-Za-z0-9_][\w.-]*", text, re.ASCII))


def _hf_storage(model_id: str) -> Path:
    from huggingface_hub import constants

    return Path(constants.HF_HUB_CACHE).expanduser() / f"models--{model_id.replace('/', '--')}"


def _cached_folders(source: str, model_id: str, revision: str | None) -> Iterator[Path]:
    """Folders where a cache may keep the model, the likeliest first; they need not exist."""
    if source == "huggingface":
        import huggingface_hub as hub

        found = hub.try_to_load_from_cache(model_id, INDEX_FILE, revision=revision)
        if isinstance(found, str):
            yield Path(found).parent
        if revision is None:  # the default branch is not there, but a tag or commit may be
            yield from _newest_first(_hf_storage(model_id) / "snapshots")
        return
    owner, name = model_id.split("/")
    root = Path(os.environ.get("MODELSCOPE_CACHE") or "~/.cache/modelscope").expanduser()
    for base in (root / "models", root / "hub" / "models", root, root / "hub"):
        yield base / owner / name.replace(".", "___")  # written by modelscope < 1.38
        yield base / owner / name
        snapshots = base / f"{owner}--{name}" / "snapshots"  # written by modelscope >= 1.38
        yield from [snapshots / revision] if revision else _newest_first(snapshots)


def _newest_first(folder: Path) -> list[Path]:
    inside = [path for path in folder.glob("*") if path.is_dir()]
    return sorted(inside, key=lambda path: path.stat().st_mtime, reverse=True)


def _from_huggingface(model_id: str, revision: str | None, target: Path | None) -> Path:
    import huggingface_hub as hub

    api = hub.HfApi()
    try:
        info = api.model_info(model_id, revision=revision, files_metadata=True, timeout=20)
    except Exception as error:  # a mirror may not offer sizes; the plain query must work
        logger.debug("the hub told no file sizes: %s", error)
        info = api.model_info(model_id, revision=revision, timeout=20)
    files = []
    for entry in info.siblings or []:
        etag = getattr(entry.lfs, "sha256", None) or entry.blob_id
        files.append(_File(entry.rfilename, entry.size, etag))
    storage = _hf_storage(model_id)

    def present(file: _File) -> int:
        if target is None:
            blob = storage / "blobs" / str(file.etag)
            done = [blob, storage / "snapshots" / str(info.sha) / file.name]
            parts = [blob.with_name(f"{file.etag}.incomplete")]
        else:
            done = [target / file.name]
            working = (target / ".cache" / "huggingface" / "download" / file.name).parent
            parts = list(working.glob(f"*.{file.etag}.incomplete"))
        whole = max(map(_size, done))
        return whole if whole == file.size else max(map(_size, parts), default=0)

    wanted = _prepare(files, present, target or storage, model_id)
    folder = hub.snapshot_download(
        model_id,
        revision=revision,
        local_dir=target,
        allow_patterns=DATA_FILES,
        ignore_patterns=UNSAFE_FILES,
    )
    return _checked(Path(folder), wanted)


def _from_modelscope(model_id: str, revision: str | None, target: Path | None) -> Path:
    try:
        from modelscope.hub.api import HubApi
        from modelscope.hub.snapshot_download import snapshot_download as fetch

        api = HubApi()
    except ImportError as error:
        raise DownloadError(
            f"A ModelScope download needs the modelscope package, which cannot be imported "
            f"({error}). Run `pip install modelscope`, or use --source huggingface."
        ) from error
    chosen = {"revision": revision} if revision else {}
    wanted: list[_File] = []
    folders = [target] if target else list(_cached_folders("modelscope", model_id, revision))

    def present(file: _File) -> int:
        best = 0
        for path in (folder / file.name for folder in folders):
            parts = path.parent.glob(glob.escape(path.name) + "[._]*")  # *.incomplete, *_0_99
            best = max(best, _size(path) or sum(map(_size, parts)))
        return best

    try:
        listing = api.get_model_files(model_id, recursive=True, **chosen)
        files = [_File(str(entry["Path"]), entry.get("Size")) for entry in listing]
    except Exception as error:  # the download itself tells what is wrong
        logger.debug("no file list from ModelScope: %s", error)
    else:
        wanted = _prepare(files, present, target or folders[0], model_id)
    folder = fetch(
        model_id,
        local_dir=str(target) if target else None,
        allow_patterns=DATA_FILES,
        ignore_patterns=UNSAFE_FILES,
        **chosen,
    )
    return _checked(Path(folder), wanted)


def _size(path: Path) -> int:
    return path.stat().st_size if path.is_file() else 0


def _prepare(files: list[_File], present: Callable[[_File], int], folder: Path, model_id: str) -> list[_File]:
    """Keep the data files; refuse a repository of another kind and a disk that is too full."""
    wanted = [
        file
        for file in files
        if any(fnmatch(file.name, pattern) for pattern in DATA_FILES)
        and not any(fnmatch(file.name, pattern) for pattern in UNSAFE_FILES)
    ]
    if not any(file.name == INDEX_FILE for file in wanted):
        raise DownloadError(
            f"{model_id} has no {INDEX_FILE}, so it is not a model in the Diffusers folder "
            f"layout; nothing was downloaded. Name a converted model such as {MODEL_ID}."
        )
    needed = sum(max(0, file.size - present(file)) for file in wanted if file.size)
    while not folder.exists():
        folder = folder.parent
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise DownloadError(
            f"{model_id} still needs {_amount(needed)}, but only {_amount(free)} are free at "
            f"{folder}. Free {_amount(needed - free)} more there, or choose another disk."
        )
    return wanted


def _amount(count: int) -> str:
    return f"{count / 1e9:.2f} GB" if count >= 10**7 else f"{count} bytes"


def _checked(folder: Path, wanted: list[_File]) -> Path:
    missing = [name for name in {INDEX_FILE, *(f.name for f in wanted)} if not (folder / name).is_file()]
    if missing:
        raise DownloadError(
            f"The download into {folder} ended without {', '.join(sorted(missing))}. Start it "
            f"again to continue: files that are complete are kept."
        )
    return folder


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    """The error, its causes, and the per-file errors that ModelScope collects."""
    seen: list[BaseException | None] = [error]
    for item in seen:
        if item is not None:
            yield item
            more = [item.__cause__, item.__context__, *getattr(item, "failed_files", {}).values()]
            seen += [other for other in more if other not in seen]


def _explain(error: Exception, source: str, model_id: str, revision: str | None, target: Path | None) -> str:
    chain = list(_chain(error))
    kinds = {base.__name__ for item in chain for base in type(item).__mro__}
    replies = [getattr(item, "response", None) for item in chain] + chain
    codes = {getattr(reply, "status_code", None) for reply in replies}
    where = "ModelScope"
    other = "--source huggingface"
    login = "ModelScope's `modelscope login`"
    if source == "huggingface":
        from huggingface_hub.constants import ENDPOINT as where  # noqa: N811

        other = "HF_ENDPOINT set to a mirror you trust, or --source modelscope"
        login = "Hugging Face's `hf auth login` (or HF_TOKEN)"
    if any(isinstance(item, OSError) and item.errno in DISK_FULL for item in chain):
        why, next_step = "the disk is full", "Free space there (the next run says how much)"
    elif "OfflineModeIsEnabled" in kinds:
        why = "this process was started with an offline switch"
        next_step = f"Unset {' and '.join(OFFLINE_SWITCHES)}, start anew"
    elif "RevisionNotFoundError" in kinds:
        why, next_step = f"there is no revision {revision!r}", "Name another revision"
    elif "GatedRepoError" in kinds or 403 in codes:
        why = "access to it is restricted"
        next_step = f"Ask for access on its page, log in with {login}"
    elif {"RepositoryNotFoundError", "NotExistError"} & kinds or {401, 404} & codes:
        why = "it does not exist there, or is private"
        next_step = f"Check its name, log in with {login} if it is private, or use {other}"
    else:
        why = "the transfer failed"
        next_step = f"Check the network; if this address cannot be reached, use {other}"
    detail = " ".join(str(error).split())[:300]
    return (
        f"Downloading {model_id} from {where} to {target or 'its cache'} failed: {why} "
        f"({type(error).__name__}: {detail}). {next_step}; then start the download again: it "
        f"continues, and files that are complete are kept."
    )
