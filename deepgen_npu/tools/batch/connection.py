"""A cluster of Ray: one that runs, or one of our own on this machine.

Ray is imported inside functions: nobody needs it for one device.
"""

from __future__ import annotations

import contextlib
import logging
import os
import re
import secrets
import shutil
import signal
import socket
import tempfile
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ...checks import Named, must, must_be
from ...errors import UsageError
from ...formatting import command
from ...requirements import how_to_install
from .pool import short
from .resources import AUTO, ClusterSettings, address_of, own_node


LOOPBACK = "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"
"""With 0 a cluster listens on the loopback interface alone, as by itself on Windows and macOS. It is read when Ray is
imported. The address of that interface, passed to Ray, would become that of the machine."""

SHORT_TEMPORARY = "/tmp"
"""Where there is always room for a short name, outside of Windows."""

LONGEST_TEMPORARY = 40
"""Characters of a folder for Ray: the names of its sockets, of at most 107 bytes, have about 65 below it."""


def import_ray(settings: ClusterSettings) -> Any:
    """Ray, set up so that nothing goes out, and that nobody else can use what is started here.

    Raises:
        UsageError: When it is not installed.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    mode = os.environ.get("RAY_AUTH_MODE")
    if address_of(settings) is None:
        os.environ[LOOPBACK] = "0"
    if address_of(settings) is None and mode in (None, "token"):
        # Of other users of this machine. Without a token in the environment, Ray writes one into the home folder.
        os.environ["RAY_AUTH_MODE"] = "token"
        os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
    elif mode is None and has_token():
        # Ray looks for it by itself with the address auto alone.
        os.environ["RAY_AUTH_MODE"] = "token"
    try:
        import ray  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        reason = "" if error.name == "ray" else f", which does not load here ({error})"
        install = how_to_install("requirements-scale.txt", "scale")
        raise UsageError(f"--workers and --address need Ray{reason}:{command(install)}".rstrip()) from None
    # It logs a traceback on every machine without CANN.
    logging.getLogger("ray._private.accelerators.npu").setLevel(logging.CRITICAL)
    return ray


def has_token() -> bool:
    """Whether this account has a token for clusters, where Ray looks for it."""
    named = os.environ.get("RAY_AUTH_TOKEN_PATH")
    return bool(os.environ.get("RAY_AUTH_TOKEN")) or Path(named or Path.home() / ".ray" / "auth_token").is_file()


@contextlib.contextmanager
def connected(ray: Any, settings: ClusterSettings, worker: Mapping[str, Any]) -> Iterator[None]:
    """A cluster in reach: one that runs, or one of our own, of which nothing is left afterwards.

    Raises:
        UsageError: When there is none.
    """
    address = address_of(settings)
    options: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    with contextlib.ExitStack() as stack:
        if address is None:
            folder = stack.enter_context(temporary_folder())
            options |= {"address": "local", "_temp_dir": folder, **own_node(settings, worker)}
        else:
            require_listening(address)
            options["address"] = address
        stack.enter_context(quiet(ray))
        stack.callback(ray.shutdown)
        try:
            with own_signals():
                ray.init(runtime_env=program(), **options)
        except (ConnectionError, RuntimeError, ValueError, TimeoutError, OSError, ray.exceptions.RayError) as error:
            raise UsageError(_not_connected(error, address)) from None
        yield


def _not_connected(error: Exception, address: str | None) -> str:
    text = str(error)
    versions = re.findall(r"Ray: (\S+)\s+Python: (\S+)", text)
    if len(versions) == 2:
        theirs, ours = (f"Ray {one} and Python {other}" for one, other in versions)
        return must("the cluster", f"have the versions of this machine, {ours}", Named(theirs))
    if address is None:
        return f"Ray does not start on this machine ({short(error)})."
    return (
        f"No cluster of Ray answers at {address} ({short(error)}). If it wants a token, put that of its nodes into "
        "~/.ray/auth_token, readable by you alone, or into RAY_AUTH_TOKEN."
    )


def program() -> dict[str, Any]:
    """What workers get besides their settings: this package, without tests and models."""
    return {"py_modules": [str(Path(__file__).parents[2])]}


@contextlib.contextmanager
def temporary_folder() -> Iterator[str]:
    """For the sessions of a cluster of our own: short, since it has sockets."""
    usual = tempfile.gettempdir()
    fits = len(usual) < LONGEST_TEMPORARY or os.name == "nt"
    folder = tempfile.mkdtemp(prefix="dgray-", dir=usual if fits else SHORT_TEMPORARY)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def own_signals() -> Iterator[None]:
    """Ray sets a handler for SIGTERM, which would end a batch without a word: the one before is the right one."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@contextlib.contextmanager
def quiet(ray: Any) -> Iterator[None]:
    """Ray prints of each dead worker what it is said to have died of, even if the output of workers is not wanted."""
    switches = vars(ray._private.worker)
    before = switches.get("_worker_logs_enabled")
    switches["_worker_logs_enabled"] = False
    try:
        yield
    finally:
        switches["_worker_logs_enabled"] = before


def require_listening(address: str) -> None:
    """Somebody listens at the address: Ray itself would try for minutes.

    Raises:
        UsageError: When nobody does, or it is no address.
    """
    if address == AUTO:
        return
    found = re.fullmatch(r"\[?([^\[\]/]+)\]?:([0-9]{1,5})", address)
    if found is None or int(found[2]) > 65535:
        raise UsageError(must_be("--address", "HOST:PORT of the head of a cluster, or auto", address))
    try:
        socket.create_connection((found[1], int(found[2])), timeout=10).close()
    except OSError as error:
        raise UsageError(f"There is no cluster of Ray at {address} ({error.strerror or error}).") from None
