"""Fetch the published DeepGen 1.0 folder from Hugging Face or ModelScope, and find it again.

Only data files are ever asked for: a model folder may also hold Python code or pickles, which this package neither
needs nor wants on the user's disk.

The hubs' own libraries do not transfer the files. They ask the hub anew for each file and use what it then tells (a
commit, an ETag) in names of files, so no check of an earlier answer would bind them; they do not compare what came
with what was listed; and they cannot be stopped before the files in flight are whole. Instead `hub_files` checks the
list, and `transfer` brings each file and compares it before it takes its name. Of the libraries only settings are
used: where the hub and its cache are, and who the user is. Files go into real folders: the caches' own layout, so that
other programs find them there, but named by checked ids alone.

Importing this module is cheap; what it needs of others is imported when a function needs it.
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

from ..checks import shown
from ..errors import DownloadError
from ..files import FileError, replacing
from .files import DATA_FILES, INDEX_FILE, BadAnswer, HubFile, Record, is_below, is_intact, place_for, unfinished_path
from .hubs import PLANS, Plan, cached_folders, make_client


if TYPE_CHECKING:
    from .transfer import Client, Watch

__all__ = ["DATA_FILES", "MODEL_ID", "SOURCES", "DownloadError", "DownloadStopped", "download", "find_downloaded"]

MODEL_ID = "deepgenteam/DeepGen-1.0-diffusers"
SOURCES = ("huggingface", "modelscope")
OFFLINE_SWITCHES = ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE")
DISK_FULL = (errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC))

logger = logging.getLogger(__name__)


class DownloadStopped(KeyboardInterrupt):
    """Ctrl-C during a download; the message says what is there."""


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
        DownloadError: The files could not be fetched, or are not what was listed; the message says what to do next.
        DownloadStopped: Ctrl-C. Files that are complete, and the begin of others, are kept for the next call.
        ValueError: ``source``, ``model_id`` or ``revision`` is not of the expected form.
    """
    if source not in SOURCES:
        raise ValueError(f"source must be 'huggingface' or 'modelscope', not {shown(source)}")
    if not _is_model_id(model_id):
        raise ValueError(f"model_id must look like 'owner/name', not {shown(model_id)}")
    if revision is not None and not _is_revision(revision):
        raise ValueError(f"revision must be the name of a branch or tag, or a commit, not {shown(revision)}")
    target = _target(to)
    switch = next((name for name in OFFLINE_SWITCHES if _is_on(name)), None)
    if switch is not None:
        folders = [target] if target else cached_folders(source, model_id, revision)
        for folder in folders:
            if (folder / INDEX_FILE).is_file():
                logger.info("%s is set; using what is in %s", switch, folder)
                return folder
        place = target or f"the {source} cache"
        raise DownloadError(
            f"{switch} is set, so {model_id} may not be downloaded from {source}, and {place} "
            f"holds no {INDEX_FILE}. Unset {switch}, or name a folder that has the model."
        )
    plan: Plan | None = None
    complete: list[str] = []
    try:
        from .transfer import Watch, in_threads

        watch = Watch()

        def ask() -> tuple[Client, Plan]:
            # Who the user is may be a question to the network, too.
            client = make_client(source, watch)
            return client, PLANS[source](client, model_id, revision, target)

        ((client, plan),) = in_threads([ask], watch)
        _bring(client, plan, model_id, complete)
        return plan.folder
    except DownloadError:
        raise
    except KeyboardInterrupt as stopped:
        raise DownloadStopped(_what_is_there(plan, complete)) from stopped
    except Exception as error:
        raise DownloadError(_explain(error, source, model_id, revision, target, plan)) from error


def _target(to: str | os.PathLike[str] | None) -> Path | None:
    if to is None:
        return None
    try:
        if "\0" in os.fspath(to):
            raise RuntimeError("it holds a NUL")
        return Path(to).expanduser().absolute()
    except RuntimeError as error:  # ~USER where there is no such user
        raise DownloadError(f"The folder {shown(os.fspath(to))} cannot be: {error}. Name another.") from None


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
    """Whether it may become part of an address, and of a path in a cache."""
    if not isinstance(text, str) or len(text) > 200:
        return False
    return all(re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.+-]*", part) for part in text.split("/"))


def _bring(client: Client, plan: Plan, model_id: str, complete: list[str]) -> None:
    """Fetch what is not there; ``complete`` receives the names that are."""
    from tqdm.auto import tqdm

    from .transfer import in_threads

    if not any(file.name == INDEX_FILE for file in plan.files):
        raise DownloadError(
            f"{model_id} has no {INDEX_FILE}, so it is not a model in the Diffusers folder "
            f"layout; nothing was downloaded. Name a converted model such as {MODEL_ID}."
        )
    if not is_below(plan.folder, plan.root):
        raise DownloadError(f"{plan.folder} leads outside of {plan.root}. Nothing is written there; remove the link.")
    watch, record = client.watch, Record(plan.folder)

    def look() -> None:
        bar.update(sum(list(watch.have.values())) - bar.n)

    def is_there(file: HubFile) -> bool:
        path = plan.folder / file.name
        there = is_intact(path, file, plan.root, record, watch.alive) or _taken_over(file, plan, record, watch)
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
        there = in_threads([lambda file=file: is_there(file) for file in plan.files], watch, look)
        missing = [file for file, found in zip(plan.files, there, strict=True) if not found]
        _check_room(missing, plan.folder, model_id)
        # The small ones first: they tell early when something is wrong.
        missing.sort(key=lambda file: file.size)
        in_threads([lambda file=file: fetch(file) for file in missing], watch, look)
        look()
    outside = [file.name for file in plan.files if not is_below(plan.folder / file.name, plan.root)]
    if outside:
        raise DownloadError(f"{', '.join(outside)} in {plan.folder} leads outside of it. Remove such links.")
    if plan.ref is not None and is_below(plan.ref.parent, plan.root):
        # A cache that is complete may be one that cannot be written to.
        with contextlib.suppress(OSError):
            plan.ref.parent.mkdir(parents=True, exist_ok=True)
            with replacing(plan.ref) as unfinished:
                unfinished.write_text(plan.folder.name, encoding="ascii")


def _taken_over(file: HubFile, plan: Plan, record: Record, watch: Watch) -> bool:
    """Whether the cache has the content already, of another commit say; then it is put in its place without a copy."""
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
        except OSError:  # a file system without hard links: it is fetched
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
            f"{model_id} still needs {_amount(needed)}, but only {_amount(free)} are free at "
            f"{folder}. Free {_amount(needed - free)} more there, or choose another disk."
        )


def _amount(count: int) -> str:
    return f"{count / 1e9:.2f} GB" if count >= 10**7 else f"{count} bytes"


def _what_is_there(plan: Plan | None, complete: list[str]) -> str:
    """The message of Ctrl-C."""
    again = "The same command goes on from there."
    if plan is None:
        return f"Stopped before any file was asked for. {again}"
    done = sorted(set(complete))
    names = f" ({', '.join(done)})" if done else ""
    return (
        f"Stopped. {len(done)} of {len(plan.files)} files are complete in {plan.folder}{names}; what came of others "
        f"is kept beside them as *.incomplete. {again}"
    )


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    """The error and what led to it."""
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
    where, other, login = "ModelScope", "--source huggingface", "`modelscope login` (or MODELSCOPE_API_TOKEN)"
    if source == "huggingface":
        from huggingface_hub.constants import ENDPOINT as where  # noqa: N811

        other = "HF_ENDPOINT set to a mirror you trust, or --source modelscope"
        login = "Hugging Face's `hf auth login` (or HF_TOKEN)"
    detail = str(error)
    if any(isinstance(item, OSError) and item.errno in DISK_FULL for item in _chain(error)):
        why, next_step = "the disk is full", "Free space there (the next run says how much)"
    elif isinstance(error, (BadAnswer, FileError)):
        why = "what it answered cannot be right"
        next_step = f"If that stays so, use {other}"
    elif code == "RevisionNotFound" or (status == 404 and revision and plan is None):
        why, next_step = f"there is no revision {revision!r} of it", "Check its name and the revision's"
    elif code == "GatedRepo" or status == 403:
        why, next_step = "access to it is restricted", f"Ask for access on its page, log in with {login}"
    elif status in (401, 404):
        why = "it does not exist there, or is private"
        next_step = f"Check its name, log in with {login} if it is private, or use {other}"
    elif isinstance(error, OSError) and error.filename is not None:
        why, detail = "a file cannot be written or read", f"{error.filename}: {error.strerror}"
        next_step = "Mend that, or choose another folder"
    else:
        why = "the transfer failed"
        next_step = f"Check the network; if this address cannot be reached, use {other}"
    # Of text from elsewhere only what prints.
    detail = "".join(mark if mark.isprintable() else " " for mark in detail)
    detail = " ".join(detail.split())[:400].rstrip(".")
    if not type(error).__module__.startswith(f"{__package__}."):
        detail = f"{type(error).__name__}: {detail}"
    return (
        f"Downloading {model_id} from {where} to {folder or 'its cache'} failed: {why} ({detail}). "
        f"{next_step}; then start the download again: it continues, and files that are complete are kept."
    )
