"""Fetch the published DeepGen 1.0 folder from Hugging Face or ModelScope, and find it again.

Only data files are requested: a model folder may also contain Python code or pickles, which this package neither
needs nor wants on the user's disk.

The hubs' own libraries do not transfer the files. They query the hub again for each file and use its answer (a
commit, an ETag) in names of files, so no check of an earlier answer would bind them; they do not compare the content
with the list; and they cannot be stopped before the files in flight are complete. Instead `files` checks the list, and
`transfer` fetches each file and compares it before it gets its name. The libraries only provide settings: the
addresses of the hub and its cache, and the user's token. Files go into real folders in the layout of the caches, so
that other programs find them there, but named by checked ids alone.

Importing this module is cheap; its dependencies are imported when a function needs them.
"""

from __future__ import annotations

import contextlib
import errno
import glob
import logging
import os
import re
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from ..checks import must_be, one_of, shown
from ..errors import DownloadError
from ..files import FileError, replacing
from ..formatting import command, format_bytes, format_download
from .files import DATA_FILES, INDEX_FILE, BadAnswer, HubFile, Record, is_below, is_intact, place_for, unfinished_path
from .hubs import PLANS, Plan, cached_folders, make_client


if TYPE_CHECKING:
    from .transfer import Client, Watch

__all__ = [
    "DATA_FILES",
    "DOWNLOAD_BYTES",
    "DOWNLOAD_SIZE",
    "MODEL_ID",
    "SOURCES",
    "DownloadError",
    "DownloadStopped",
    "download",
    "find_downloaded",
]

MODEL_ID = "deepgenteam/DeepGen-1.0-diffusers"
"""The published model."""

DOWNLOAD_BYTES = 14_346_247_966
"""The weight files of `MODEL_ID`, headers included; its other files have a few MB. The connector is stored in
float32, so once loaded in bfloat16 the model takes less: 13.5 GB (12.6 GiB)."""

DOWNLOAD_SIZE = format_download(DOWNLOAD_BYTES)
"""`DOWNLOAD_BYTES` in words, for every text that mentions the download."""

SOURCES = ("huggingface", "modelscope")
"""The hubs that have the model, the default first."""

OFFLINE_SWITCHES = ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE")
"""Environment variables that forbid every request."""

DISK_FULL = (errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC))
"""Error numbers of a full disk and of a quota that is used up."""

logger = logging.getLogger(__name__)


class DownloadStopped(KeyboardInterrupt):
    """Ctrl-C during a download; the message lists what is complete."""


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
        The folder that contains ``model_index.json``.

    Raises:
        DownloadError: The files could not be fetched, or differ from the list; the message says what to do.
        DownloadStopped: Ctrl-C. Complete files, and the start of others, are kept for the next call.
        ValueError: ``source``, ``model_id`` or ``revision`` is not of the expected form.
    """
    one_of("source", source, SOURCES)
    if not _is_model_id(model_id):
        raise ValueError(must_be("model_id", "of the form 'owner/name'", model_id))
    if revision is not None and not _is_revision(revision):
        raise ValueError(must_be("revision", "a branch, a tag or a commit", revision))
    target = _target(to)
    switch = next((name for name in OFFLINE_SWITCHES if _is_on(name)), None)
    if switch is not None:
        folders = [target] if target else cached_folders(source, model_id, revision)
        for folder in folders:
            if (folder / INDEX_FILE).is_file():
                logger.info("%s is set; using %s as it is", switch, folder)
                return folder
        place = target or f"the {source} cache"
        raise DownloadError(
            f"{switch} is set, so {model_id} may not be downloaded from {source}, and {place} "
            f"does not contain {INDEX_FILE}. Unset {switch}, or pass a folder that contains the model."
        )
    plan: Plan | None = None
    complete: list[str] = []
    try:
        from .transfer import Watch, in_threads

        watch = Watch()

        def connect() -> tuple[Client, Plan]:
            # Looking up the token may take a request as well.
            client = make_client(source, watch)
            return client, PLANS[source](client, model_id, revision, target)

        ((client, plan),) = in_threads([connect], watch)
        _fetch_missing(client, plan, model_id, complete)
        return plan.folder
    except DownloadError:
        raise
    except KeyboardInterrupt as stopped:
        raise DownloadStopped(_summary(plan, complete)) from stopped
    except Exception as error:
        raise DownloadError(_explain(error, source, model_id, revision, target, plan)) from error


def _target(to: str | os.PathLike[str] | None) -> Path | None:
    if to is None:
        return None
    try:
        if "\0" in os.fspath(to):
            raise RuntimeError("it contains a NUL")
        return Path(to).expanduser().absolute()
    except RuntimeError as error:  # ~USER where there is no such user
        raise DownloadError(f"The folder {shown(os.fspath(to))} is not possible: {error}. Choose another.") from None


def find_downloaded(model_id: str = MODEL_ID) -> Path | None:
    """Find a downloaded model in the Hugging Face or ModelScope cache, without any network.

    Args:
        model_id: "owner/name" as it was downloaded.

    Returns:
        The first folder with a ``model_index.json``, or None. Whether the other files are
        complete is not checked.
    """
    if _is_model_id(model_id):
        for source in SOURCES:
            for folder in cached_folders(source, model_id, None):
                if (folder / INDEX_FILE).is_file():
                    return folder
    return None


def _is_on(variable: str) -> bool:
    return os.environ.get(variable, "").strip().lower() in {"1", "true", "yes", "on"}


def _is_model_id(text: object) -> bool:
    part = r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,95}"
    return isinstance(text, str) and bool(re.fullmatch(f"{part}/{part}", text))


def _is_revision(text: object) -> bool:
    """Whether it may become part of an address and of a path in a cache."""
    if not isinstance(text, str) or len(text) > 200:
        return False
    return all(re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.+-]*", part) for part in text.split("/"))


def _fetch_missing(client: Client, plan: Plan, model_id: str, complete: list[str]) -> None:
    """Fetch the files that are missing; ``complete`` receives the names of those that are there."""
    from tqdm.auto import tqdm

    from .transfer import in_threads

    if not any(file.name == INDEX_FILE for file in plan.files):
        raise DownloadError(
            f"{model_id} has no {INDEX_FILE}, so it is not a model in the Diffusers folder "
            f"layout; nothing was downloaded. Choose a converted model such as {MODEL_ID}."
        )
    if not is_below(plan.folder, plan.root):
        raise DownloadError(
            f"{plan.folder} is a link that leads out of {plan.root}. Nothing was written; remove the link."
        )
    watch, record = client.watch, Record(plan.folder)

    def show_progress() -> None:
        bar.update(sum(list(watch.have.values())) - bar.n)

    def is_there(file: HubFile) -> bool:
        path = plan.folder / file.name
        there = is_intact(path, file, plan.root, record, watch.alive) or _linked_from_cache(file, plan, record, watch)
        if there:
            record.add(file, path)
            complete.append(file.name)
            watch.have[file.name] = file.size
        return there

    def fetch(file: HubFile) -> None:
        place = place_for(file, plan.folder)
        client.fetch(plan.address(file.name), file, place)
        record.add(file, place)
        complete.append(file.name)
        for stale in place.parent.glob(f"{glob.escape(place.name)}.????????.incomplete"):
            stale.unlink(missing_ok=True)

    total = sum(file.size for file in plan.files)
    quiet = _is_on("HF_HUB_DISABLE_PROGRESS_BARS")
    with tqdm(total=total, desc="Downloading", unit="B", unit_scale=True, mininterval=0.5, disable=quiet) as bar:
        there = in_threads([lambda file=file: is_there(file) for file in plan.files], watch, show_progress)
        missing = [file for file, found in zip(plan.files, there, strict=True) if not found]
        _check_room(missing, plan.folder, model_id)
        # The small ones first: they fail early when something is wrong.
        missing.sort(key=lambda file: file.size)
        in_threads([lambda file=file: fetch(file) for file in missing], watch, show_progress)
        show_progress()
    outside = [file.name for file in plan.files if not is_below(plan.folder / file.name, plan.root)]
    if outside:
        raise DownloadError(f"Links lead out of {plan.folder}: {', '.join(outside)}. Remove them.")
    if plan.ref is not None and is_below(plan.ref.parent, plan.root):
        # A complete cache may be read-only.
        with contextlib.suppress(OSError):
            plan.ref.parent.mkdir(parents=True, exist_ok=True)
            with replacing(plan.ref) as unfinished:
                unfinished.write_text(plan.folder.name, encoding="ascii")


def _linked_from_cache(file: HubFile, plan: Plan, record: Record, watch: Watch) -> bool:
    """Whether the cache has the content already, for instance of another commit; it is then linked, not copied."""
    if plan.folder == plan.root:
        return False
    for other in (plan.root / "blobs" / file.id, *plan.root.glob(f"snapshots/*/{file.name}")):
        if not is_intact(other, file, plan.root, record, watch.alive):
            continue
        place = place_for(file, plan.folder)
        link = place.with_name(f".{secrets.token_hex(4)}")
        try:
            os.link(other.resolve(), link)
            link.replace(place)
        except OSError:  # a file system without hard links: fetch it
            return False
        return True
    return False


def _check_room(missing: list[HubFile], folder: Path, model_id: str) -> None:
    kept = 0
    for file in missing:
        with contextlib.suppress(OSError):
            kept += min(file.size, unfinished_path(folder / file.name, file).lstat().st_size)
    needed = sum(file.size for file in missing) - kept
    while not folder.exists():
        folder = folder.parent
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise DownloadError(
            f"{model_id} still needs {format_bytes(needed)}, but only {format_bytes(free)} are free at "
            f"{folder}. Free {format_bytes(needed - free)} more there, or choose another disk."
        )


def _summary(plan: Plan | None, complete: list[str]) -> str:
    """The message of Ctrl-C."""
    again = "Run the same command again to continue."
    if plan is None:
        return f"Stopped before any file was requested. {again}"
    done = sorted(set(complete))
    names = f" ({', '.join(done)})" if done else ""
    return (
        f"Stopped. {len(done)} of {len(plan.files)} files are complete in {plan.folder}{names}; parts of others "
        f"are kept there as *.incomplete. {again}"
    )


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    """The error and its causes."""
    seen: list[BaseException] = []
    while error is not None and error not in seen:
        seen.append(error)
        error = error.__cause__ or error.__context__
    return iter(seen)


def _explain(
    error: Exception, source: str, model_id: str, revision: str | None, target: Path | None, plan: Plan | None
) -> str:
    folder = plan.folder if plan else target
    status, code = getattr(error, "status", None), getattr(error, "code", None)
    where, other = "ModelScope", "--source huggingface"
    login = f"set MODELSCOPE_API_TOKEN or log in:{command('modelscope login')}"
    if source == "huggingface":
        from huggingface_hub.constants import ENDPOINT as where  # noqa: N811

        other = "--source modelscope, or set HF_ENDPOINT to a mirror you trust"
        login = f"set HF_TOKEN or log in:{command('hf auth login')}"
    detail = str(error)
    if any(isinstance(item, OSError) and item.errno in DISK_FULL for item in _chain(error)):
        why, advice = "the disk is full", "Free space there; the next run reports how much."
    elif isinstance(error, (BadAnswer, FileError)):
        why, advice = "the hub's answer is wrong", f"If it stays wrong, use {other}."
    elif code == "RevisionNotFound" or (status == 404 and revision and plan is None):
        why, advice = f"the model has no revision {revision!r}", "Check the names of the model and the revision."
    elif code == "GatedRepo" or status == 403:
        why, advice = "access to it is restricted", f"Request access on its page, then {login}"
    elif status in (401, 404):
        why = "it does not exist there, or is private"
        advice = f"Check its name, or use {other}. If it is private, {login}"
    elif isinstance(error, OSError) and error.filename is not None:
        why, detail = "a file cannot be written or read", f"{error.filename}: {error.strerror}"
        advice = "Fix that, or choose another folder."
    else:
        why, advice = "the transfer failed", f"Check the network; if this address cannot be reached, use {other}."
    # Text from elsewhere must not add lines or control characters.
    detail = "".join(mark if mark.isprintable() else " " for mark in detail)
    detail = " ".join(detail.split())[:400].rstrip(".")
    if not type(error).__module__.startswith(f"{__package__}."):
        detail = f"{type(error).__name__}: {detail}"
    separator = "" if advice.endswith("\n") else " "
    return (
        f"Downloading {model_id} from {where} to {folder or 'its cache'} failed: {why} ({detail}). {advice}{separator}"
        "Then run the download again: it continues, and complete files are kept."
    )
