"""Run a ComfyUI server in a fresh base folder, with packs linked in, offline, on the CPU or a simulated NPU."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from dev import ROOT

from .checkouts import Checkout
from .checkouts import find_checkouts as find_checkouts
from .launch import SIMULATED_NPU, WATCH_STDIN


# ComfyUI colours its log since 0.33, and begins each record with its level.
COLOUR = re.compile(r"\x1b\[[0-9;]*m")
LEVEL = re.compile(r"^\[(?:DEBUG|DETAIL|INFO|WARNING|ERROR|CRITICAL)\] ", re.MULTILINE)
LAUNCHER = Path(__file__).with_name("launch.py")
PACK_NAME = "ComfyUI-DeepGen"
FOLDERS = ("custom_nodes", "models", "input", "output", "temp", "user/default")
# A first-time user is met by a tutorial and by release notes, which would cover the canvas.
USER_SETTINGS = {
    "Comfy.TutorialCompleted": True,
    "Comfy.Notification.ShowVersionUpdates": False,
    "Comfy.Locale": "en",
    # Front end 1.27 throws at start over the default of this one, before its targets exist.
    "Comfy.Canvas.NavigationMode": "custom",
}


class ServerError(RuntimeError):
    """The server did not start, died, or did not answer."""


@dataclass(frozen=True)
class ServerOptions:
    """What a server is started with.

    Args:
        packs: folder name below custom_nodes -> the folder to link there.
        args: more ComfyUI command line arguments; ``{base}`` in one stands for the base folder.
        env: more environment variables; None removes one.
        settings: front-end settings of the default user, over `USER_SETTINGS`.
        prepare: called with the base folder before the first start, e.g. to lay out models.
        start_timeout: seconds until the server must answer.
        simulated_npu: MiB of the simulated NPU to run on; with 0 it is the CPU.
        on_card: on the card that ComfyUI finds, instead.
    """

    packs: Mapping[str, Path] = field(default_factory=lambda: {PACK_NAME: ROOT})
    args: Sequence[str] = ()
    env: Mapping[str, str | None] = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict)
    prepare: Callable[[Path], None] | None = None
    start_timeout: float = 180.0
    simulated_npu: int = 0
    on_card: bool = False


@dataclass(frozen=True)
class Response:
    status: int
    body: bytes
    headers: Mapping[str, str]

    def json(self) -> Any:
        return json.loads(self.body)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class ComfyServer:
    """Context manager around one server process; `start`, `stop`, `restart` keep the folder."""

    def __init__(self, checkout: Checkout, options: ServerOptions | None = None) -> None:
        if checkout.problem or checkout.python is None:
            raise ServerError(checkout.problem or f"no interpreter for {checkout.path}")
        self.checkout = checkout
        self.options = options or ServerOptions()
        self.base = Path(tempfile.mkdtemp(prefix=f"deepgen-comfyui-{checkout.version}-"))
        self.log_path = self.base / "server.log"
        self.port = 0
        self.startup_seconds = 0.0
        self._process: subprocess.Popen[bytes] | None = None
        self._log: IO[bytes] | None = None
        # A proxy from the environment must not stand between the tests and 127.0.0.1.
        self._opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))

    def __enter__(self) -> ComfyServer:
        try:
            self._fill_base()
            self.start()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    @property
    def version(self) -> str:
        return self.checkout.version or ""

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def models(self) -> Path:
        return self.base / "models"

    @property
    def input(self) -> Path:
        return self.base / "input"

    @property
    def output(self) -> Path:
        return self.base / "output"

    @property
    def settings_path(self) -> Path:
        """The default user's front-end settings; the server reads them at each request."""
        return self.base / "user" / "default" / "comfy.settings.json"

    def _fill_base(self) -> None:
        for folder in FOLDERS:
            (self.base / folder).mkdir(parents=True, exist_ok=True)
        shutil.copy(self.checkout.path / "input" / "example.png", self.input)
        settings = {**USER_SETTINGS, **self.options.settings}
        self.settings_path.write_text(json.dumps(settings), encoding="utf-8")
        for name, source in self.options.packs.items():
            link = self.base / "custom_nodes" / name
            link.symlink_to(source.resolve(), target_is_directory=True)
        if self.options.prepare:
            self.options.prepare(self.base)

    def _command(self, args: Sequence[str]) -> list[str]:
        return [
            str(self.checkout.python),
            str(LAUNCHER),
            "--base-directory",
            str(self.base),
            # Its default place is inside the checkout, whatever the base directory.
            "--database-url",
            f"sqlite:///{self.base / 'user' / 'comfyui.db'}",
            *([] if self.options.simulated_npu or self.options.on_card else ["--cpu"]),
            "--listen",
            "127.0.0.1",
            "--port",
            str(self.port),
            "--disable-auto-launch",
            "--disable-api-nodes",
            "--preview-method",
            "latent2rgb",
            *(argument.replace("{base}", str(self.base)) for argument in args),
        ]

    def _environment(self, extra: Mapping[str, str | None]) -> dict[str, str]:
        # PYTHONPATH would let the pack import what a user's ComfyUI cannot see.
        dropped = {"PYTHONPATH", "PYTHONHOME", "HF_ENDPOINT"}
        environment = {k: v for k, v in os.environ.items() if k not in dropped}
        # Requests that ignore the offline switches meet a closed port.
        for variable in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
            environment[variable] = environment[variable.lower()] = "http://127.0.0.1:9"
        environment["NO_PROXY"] = environment["no_proxy"] = "127.0.0.1,localhost"
        environment.setdefault("OMP_NUM_THREADS", "1")  # as in tests/conftest.py, which scripts do without
        environment.update(
            COMFYUI_PATH=str(self.checkout.path),
            HF_HUB_OFFLINE="1",
            PYTHONUNBUFFERED="1",
            PYTHONIOENCODING="utf-8",
        )
        environment[WATCH_STDIN] = "1"
        if self.options.simulated_npu:
            environment[SIMULATED_NPU] = str(self.options.simulated_npu)
        for key, value in extra.items():
            if value is None:
                environment.pop(key, None)
            else:
                environment[key] = value
        return environment

    def start(self, args: Sequence[str] = (), env: Mapping[str, str | None] | None = None) -> ComfyServer:
        """Start the process and wait until it answers; `args` and `env` add to the options."""
        if self._process is not None:
            raise ServerError("this server is running already")
        self.port = _free_port()
        self._log = self.log_path.open("ab")
        began = time.monotonic()
        self._process = subprocess.Popen(
            self._command([*self.options.args, *args]),
            env=self._environment({**self.options.env, **(env or {})}),
            stdin=subprocess.PIPE,
            stdout=self._log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            self._wait_until_ready(began + self.options.start_timeout)
        except BaseException:
            self.stop()
            raise
        self.startup_seconds = time.monotonic() - began
        return self

    def _wait_until_ready(self, deadline: float) -> None:
        while True:
            self.check_alive()
            try:
                self.get("/system_stats", timeout=5.0)
                return
            except (OSError, ServerError):
                pass
            if time.monotonic() > deadline:
                raise ServerError(f"ComfyUI {self.version} did not answer\n{self.log_tail()}")
            time.sleep(0.2)

    def check_alive(self) -> None:
        """Raise with the end of the log if the process has ended."""
        code = self._process.poll() if self._process else None
        if self._process is None or code is not None:
            raise ServerError(f"ComfyUI {self.version} ended ({code})\n{self.log_tail()}")

    def stop(self) -> None:
        """End the process and everything it started."""
        process, self._process = self._process, None
        if process is not None:
            for sign in (signal.SIGTERM, signal.SIGKILL):
                try:
                    os.killpg(process.pid, sign)
                except ProcessLookupError:
                    break
                try:
                    process.wait(timeout=5)
                except subprocess.TimeoutExpired:
                    continue
            process.wait()
            if process.stdin:
                process.stdin.close()
        if self._log is not None:
            self._log.close()
            self._log = None

    def restart(self, args: Sequence[str] = (), env: Mapping[str, str | None] | None = None) -> ComfyServer:
        self.stop()
        return self.start(args, env)

    def close(self) -> None:
        self.stop()
        shutil.rmtree(self.base, ignore_errors=True)

    def request(self, path: str, payload: Any = None, method: str | None = None, timeout: float = 60.0) -> Response:
        """Answer of any status; a payload is sent as JSON by POST."""
        data = None if payload is None else json.dumps(payload).encode()
        request = urllib.request.Request(
            self.url + path,
            data=data,
            method=method or ("GET" if payload is None else "POST"),
            headers={"Content-Type": "application/json"} if data else {},
        )
        try:
            with self._opener.open(request, timeout=timeout) as answer:
                return Response(answer.status, answer.read(), dict(answer.headers))
        except urllib.error.HTTPError as error:
            with error:
                return Response(error.code, error.read(), dict(error.headers))

    def _ok(self, path: str, response: Response) -> Response:
        if response.status >= 400:
            text = response.body[:500].decode(errors="replace")
            raise ServerError(f"{path}: HTTP {response.status} {text}")
        return response

    def get(self, path: str, timeout: float = 60.0) -> Response:
        return self._ok(path, self.request(path, timeout=timeout))

    def post(self, path: str, payload: Any) -> Response:
        return self._ok(path, self.request(path, payload))

    def free(self) -> None:
        """Ask the server to unload all models and to forget its cached results."""
        self.post("/free", {"unload_models": True, "free_memory": True})

    def interrupt(self) -> None:
        self.post("/interrupt", {})

    def log_text(self) -> str:
        """Standard output and error of the server since it was first started, without colours and levels."""
        try:
            text = self.log_path.read_text(encoding="utf-8", errors="replace")
        except OSError:
            return ""
        return LEVEL.sub("", COLOUR.sub("", text))

    def log_tail(self, lines: int = 40) -> str:
        return "\n".join(self.log_text().splitlines()[-lines:])

    def memory_mb(self, peak: bool = False) -> float | None:
        """Resident memory of the server process; None where /proc does not have it."""
        key = "VmHWM:" if peak else "VmRSS:"
        pid = self._process.pid if self._process else 0
        try:
            status = Path(f"/proc/{pid}/status").read_text(encoding="ascii", errors="replace")
        except OSError:
            return None
        values = [line.split()[1] for line in status.splitlines() if line.startswith(key)]
        return int(values[0]) / 1024 if values else None
