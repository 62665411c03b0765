"""Downloads against a loopback hub, each in a fresh process that may reach 127.0.0.1 only."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import hub_server
import pytest
from hub_server import COMMIT, EACH_SOURCE, WEIGHTS, Hub, serve
from platforms import not_on_windows

from deepgen_npu.formatting import format_bytes
from deepgen_npu.hub.download import DATA_FILES, MODEL_ID


ROOT = Path(__file__).resolve().parents[3]
pytestmark = pytest.mark.slow  # a process for each download
DATA = {
    **hub_server.DATA,
    "README.md": b"# model\n",
    "LICENSE": b"terms\n",
    "chat_template.jinja": b"{{ messages }}",
    "tokenizer/vocab.json": b"{}",
    WEIGHTS: random.Random(0).randbytes(300_000),
}
# huggingface_hub writes in pieces of 10 MiB, so a smaller file has no part to continue from.
LARGE = random.Random(1).randbytes(12 * 2**20)
CUT = 11 * 2**20
NEVER = {
    "deepgen_pipeline.py": b"raise SystemExit('remote code')",
    "transformer/model.py": b"raise SystemExit('remote code')",
    "pickle.bin": b"\x80\x04.",
    "weights.pt": b"\x80\x04.",
    "notes.txt": b"not part of the model",
    "../outside.json": b"{}",
}
# Runs in the child process: no other host is reachable, and attempts to reach one are reported.
PRELUDE = """
import json, socket, sys
outside = []
def guard(plain, host_of):
    def inner(*args, **kwargs):
        host = host_of(args)
        if host not in ("127.0.0.1", None):
            outside.append(str(host))
            raise OSError(f"the test forbids {host}")
        return plain(*args, **kwargs)
    return inner
socket.getaddrinfo = guard(socket.getaddrinfo, lambda args: args[0])
socket.socket.connect = guard(
    socket.socket.connect, lambda args: args[1][0] if isinstance(args[1], tuple) else None
)
"""
CALL = """
from deepgen_npu.hub.download import DownloadError, download, find_downloaded
try:
    path = {call}
    answer = {{"path": None if path is None else str(path)}}
except DownloadError as error:
    answer = {{"error": str(error), "cause": type(error.__cause__).__name__}}
print("ANSWER" + json.dumps({{**answer, "outside": outside}}))
"""
Run = Callable[..., dict[str, Any]]


@pytest.fixture
def hub() -> Iterator[Hub]:
    with serve(MODEL_ID, {**DATA, **NEVER}) as server:
        yield server


@pytest.fixture
def run(hub: Hub, tmp_path: Path) -> Run:
    """Evaluate a call in a child process whose caches lie in tmp_path and whose hub is ours."""

    def inner(call: str, before: str = "", **variables: str) -> dict[str, Any]:
        dropped = ("HF_", "HUGGING", "TRANSFORMERS_", "MODELSCOPE_", "XDG_")
        env = {
            key: value
            for key, value in os.environ.items()
            if not key.startswith(dropped) and "proxy" not in key.lower()
        }
        home = str(tmp_path / "home")
        env |= {"HOME": home, "USERPROFILE": home, "PYTHONPATH": str(ROOT)}
        env |= {"HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "hf")}
        env |= {"HF_HUB_DISABLE_XET": "1", "HF_HUB_DISABLE_TELEMETRY": "1"}
        env |= {"MODELSCOPE_ENDPOINT": hub.url, "MODELSCOPE_DOMAIN": hub.url}
        env |= variables
        done = subprocess.run(
            [sys.executable, "-c", PRELUDE + before + CALL.format(call=call)],
            check=False,
            env=env,
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=120,
        )
        answers = [line for line in done.stdout.splitlines() if line.startswith("ANSWER")]
        assert answers, done.stdout + done.stderr
        answer = json.loads(answers[-1].removeprefix("ANSWER"))
        assert answer["outside"] == []
        return answer

    return inner


def assert_complete(folder: str | Path) -> None:
    """Every data file is there, byte for byte, and nothing else was brought along."""
    root = Path(folder)
    for name, content in DATA.items():
        assert (root / name).read_bytes() == content, name
    assert not [name for name in NEVER if (root / name).exists()]


def assert_only_data_requested(hub: Hub) -> None:
    assert set(hub.requested("GET")) == set(DATA)
    assert set(hub.requested()) == set(DATA)


@EACH_SOURCE
def test_download_into_folder(source: str, hub: Hub, run: Run, tmp_path: Path) -> None:
    answer = run(f"download({source!r}, to='model')")
    assert answer["path"] == str(tmp_path / "model")
    assert_complete(tmp_path / "model")
    assert_only_data_requested(hub)


@EACH_SOURCE
def test_download_into_cache_and_find(source: str, hub: Hub, run: Run, tmp_path: Path) -> None:
    assert run("find_downloaded()")["path"] is None
    answer = run(f"download({source!r})")
    assert_complete(answer["path"])
    assert_only_data_requested(hub)
    cache = tmp_path / "hf" if source == "huggingface" else tmp_path / "home" / ".cache"
    assert cache in Path(answer["path"]).parents

    hub.log.clear()
    assert run("find_downloaded()")["path"] == answer["path"]
    assert run(f"download({source!r})", HF_HUB_OFFLINE="1")["path"] == answer["path"]
    assert hub.log == []
    assert run(f"download({source!r})")["path"] == answer["path"]
    assert hub.requested("GET") == []


@EACH_SOURCE
def test_cut_transfer_continues_where_it_stopped(source: str, hub: Hub, run: Run) -> None:
    hub.files[WEIGHTS] = LARGE
    hub.stop_at[WEIGHTS] = (CUT, 1)
    answer = run(f"download({source!r}, to='model')")
    if "error" in answer:  # some versions of huggingface_hub resume in the next call only
        assert "run the download again: it continues" in answer["error"]
        answer = run(f"download({source!r}, to='model')")
    assert (Path(answer["path"]) / WEIGHTS).read_bytes() == LARGE
    asked = [item for item in hub.log if item.file == WEIGHTS and item.method == "GET"]
    starts = [int((item.range or "bytes=0-")[6:].split("-")[0]) for item in asked]
    assert len(starts) == 2
    assert starts[0] == 0
    assert CUT // 2 < starts[1] <= CUT


@EACH_SOURCE
def test_failed_download_keeps_complete_files(source: str, hub: Hub, run: Run) -> None:
    hub.stop_at[WEIGHTS] = (100_000, 1_000)
    failed = run(f"download({source!r}, to='model')")
    assert "the transfer failed" in failed["error"]
    assert "run the download again: it continues" in failed["error"]
    assert failed["cause"] != "NoneType"

    hub.stop_at.clear()
    hub.log.clear()
    assert_complete(run(f"download({source!r}, to='model')")["path"])
    assert set(hub.requested("GET")) == {WEIGHTS}


@EACH_SOURCE
@pytest.mark.parametrize(
    ("switch", "value"),
    [
        ("HF_HUB_OFFLINE", "1"),
        ("HF_HUB_OFFLINE", "on"),
        ("TRANSFORMERS_OFFLINE", "TRUE"),
        ("TRANSFORMERS_OFFLINE", "yes"),
    ],
)
def test_offline_switch_forbids_every_request(source: str, switch: str, value: str, hub: Hub, run: Run) -> None:
    answer = run(f"download({source!r})", **{switch: value})
    assert f"Unset {switch}" in answer["error"]
    assert hub.log == []


def test_offline_switch_set_to_zero_allows_downloads(run: Run) -> None:
    assert "path" in run("download()", HF_HUB_OFFLINE="0", TRANSFORMERS_OFFLINE="0")


def test_offline_uses_the_given_folder(hub: Hub, run: Run, tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text("{}")
    assert "does not contain model_index.json" in run("download(to='model')", HF_HUB_OFFLINE="1")["error"]
    (tmp_path / "model" / "model_index.json").write_text("{}")
    answer = run("download(to='model')", HF_HUB_OFFLINE="1")
    assert answer["path"] == str(tmp_path / "model")
    assert hub.log == []


FREE_SPACE = """
import collections, shutil
usage = collections.namedtuple("usage", "total used free")
shutil.disk_usage = lambda path: usage(10**9, 0, {free})
"""


@EACH_SOURCE
@pytest.mark.parametrize("to", ["None", "'model'"])
def test_full_disk_is_refused_before_any_file(source: str, to: str, hub: Hub, run: Run) -> None:
    total = sum(map(len, DATA.values()))
    call = f"download({source!r}, to={to})"
    answer = run(call, FREE_SPACE.format(free=total - 1))
    assert f"needs {format_bytes(total)}, but only {format_bytes(total - 1)} are free" in answer["error"]
    assert "Free 1 bytes more" in answer["error"]
    assert hub.requested() == []
    assert_complete(run(call, FREE_SPACE.format(free=total))["path"])


@EACH_SOURCE
@pytest.mark.parametrize("to", ["None", "'model'"])
def test_only_missing_bytes_need_space(source: str, to: str, hub: Hub, run: Run, tmp_path: Path) -> None:
    call = f"download({source!r}, to={to})"
    hub.files[WEIGHTS] = LARGE
    hub.stop_at[WEIGHTS] = (CUT, 1_000)
    assert "error" in run(call)
    hub.stop_at.clear()
    # Newer versions of huggingface_hub drop the part of a file that they could not finish.
    kept = sum(path.stat().st_size for path in tmp_path.rglob("*.incomplete"))
    rest = len(LARGE) - kept
    assert "are free at" in run(call, FREE_SPACE.format(free=rest - 1))["error"]
    answer = run(call, FREE_SPACE.format(free=rest))
    assert (Path(answer["path"]) / WEIGHTS).read_bytes() == LARGE
    assert answer == run(call, FREE_SPACE.format(free=0))


def test_disk_full_while_writing(run: Run, tmp_path: Path) -> None:
    broken = """
import errno, io, deepgen_npu.hub.transfer as transfer
class Full(io.FileIO):
    def write(self, data):
        raise OSError(errno.ENOSPC, "No space left on device")
transfer.os.fdopen = lambda fd, mode: io.BufferedRandom(Full(fd, "r+"))
"""
    answer = run("download(to='model')", broken)
    assert "the disk is full" in answer["error"]
    assert answer["cause"] == "OSError"
    assert not [path for path in (tmp_path / "model").rglob("*") if path.is_file()]


def test_hub_without_sizes(hub: Hub, run: Run) -> None:
    hub.status["sizes"] = 501
    assert_complete(run("download(to='model')", FREE_SPACE.format(free=10**9))["path"])


@pytest.mark.parametrize(
    ("route", "status", "reason", "advice"),
    [
        ("info", 404, "it does not exist there, or is private", "use --source modelscope, or set HF_ENDPOINT"),
        (
            "info",
            401,
            "it does not exist there, or is private",
            "set HF_TOKEN or log in:\n    hf auth login\nThen run",
        ),
        (
            "file",
            403,
            "access to it is restricted",
            "Request access on its page, then set HF_TOKEN or log in:\n    hf ",
        ),
        ("info", 500, "the transfer failed", "set HF_ENDPOINT to a mirror"),
    ],
)
def test_refusals_of_the_hub(route: str, status: int, reason: str, advice: str, hub: Hub, run: Run) -> None:
    hub.status[route] = status
    answer = run("download(to='model')")
    assert reason in answer["error"]
    assert advice in answer["error"]
    assert hub.url in answer["error"]
    assert MODEL_ID in answer["error"]
    assert answer["cause"] != "NoneType"


def test_modelscope_unknown_model(hub: Hub, run: Run) -> None:
    answer = run("download('modelscope', model_id='nobody/nothing')")
    assert "it does not exist there" in answer["error"]
    assert "--source huggingface" in answer["error"]
    assert "log in:\n    modelscope login\n" in answer["error"]
    assert hub.requested() == []


def test_unknown_revision(run: Run) -> None:
    answer = run("download(revision='v9')")
    assert "failed" in answer["error"]
    assert "v9" in answer["error"]


@EACH_SOURCE
def test_no_network(source: str, run: Run, tmp_path: Path) -> None:
    """A hub that cannot be reached is an error, even over files of an unfinished download."""
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "model_index.json").write_text("{}")
    nobody = "http://127.0.0.1:9"
    answer = run(
        f"download({source!r}, to='model')",
        HF_ENDPOINT=nobody,
        MODELSCOPE_ENDPOINT=nobody,
        MODELSCOPE_DOMAIN=nobody,
    )
    assert "Check the network" in answer["error"]
    assert answer["cause"] != "NoneType"


def test_repository_of_another_kind(hub: Hub, run: Run) -> None:
    del hub.files["model_index.json"]
    assert "has no model_index.json" in run("download()")["error"]
    assert hub.requested() == []


def test_modelscope_needs_no_package_of_its_own(run: Run) -> None:
    missing = "sys.modules.update(modelscope=None, modelscope_hub=None)\n"
    assert_complete(run("download('modelscope')", missing)["path"])


@pytest.mark.parametrize(
    "layout",
    [
        "models/deepgenteam/DeepGen-1___0-diffusers",
        "models/deepgenteam/DeepGen-1.0-diffusers",
        "hub/models/deepgenteam/DeepGen-1___0-diffusers",
        "hub/deepgenteam/DeepGen-1___0-diffusers",
        "hub/deepgenteam/DeepGen-1.0-diffusers",
        "deepgenteam/DeepGen-1___0-diffusers",
        "models/deepgenteam--DeepGen-1.0-diffusers/snapshots/master",
    ],
)
@pytest.mark.parametrize("variable", [False, True])
def test_find_in_modelscope_cache(layout: str, variable: bool, run: Run, tmp_path: Path) -> None:
    root = tmp_path / "ms" if variable else tmp_path / "home" / ".cache" / "modelscope"
    environment = {"MODELSCOPE_CACHE": str(root)} if variable else {}
    folder = root / layout
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    assert run("find_downloaded()", **environment)["path"] is None
    (folder / "model_index.json").write_text("{}")
    assert run("find_downloaded()", **environment)["path"] == str(folder)


@pytest.mark.parametrize("branch", ["main", "v1"])
def test_find_in_huggingface_cache(branch: str, hub: Hub, run: Run, tmp_path: Path) -> None:
    storage = tmp_path / "cache" / "models--deepgenteam--DeepGen-1.0-diffusers"
    folder = storage / "snapshots" / COMMIT
    (folder / "vae").mkdir(parents=True)
    (folder / "vae" / "config.json").write_text("{}")
    (storage / "refs").mkdir()
    (storage / "refs" / branch).write_text(COMMIT)
    place = {"HF_HUB_CACHE": str(tmp_path / "cache")}
    assert run("find_downloaded()", **place)["path"] is None
    (folder / "model_index.json").write_text("{}")
    assert run("find_downloaded()", **place)["path"] == str(folder)
    assert run("find_downloaded('other/model')", **place)["path"] is None
    assert hub.log == []


@not_on_windows("the hub's library makes copies where links need rights")
def test_the_cache_is_shared_with_the_hubs_library(hub: Hub, run: Run) -> None:
    """Its copy is used, ours is found by it, and what a new commit left as it was is not fetched again."""
    hub.files = dict(DATA)
    theirs = f"""__import__("huggingface_hub").snapshot_download({MODEL_ID!r}, allow_patterns={DATA_FILES!r}"""
    folder = Path(run(f"{theirs})")["path"])
    assert (folder / WEIGHTS).is_symlink()
    hub.log.clear()
    assert run("download()")["path"] == str(folder)
    assert hub.requested() == []

    hub.files["model_index.json"] = b'{"_class_name": "Y"}'
    later = folder.with_name(COMMIT[::-1])
    hub.relist = lambda listing: {**listing, "sha": later.name}
    assert run("download()")["path"] == str(later)
    assert hub.requested() == ["model_index.json"]
    assert run(f"{theirs}, local_files_only=True)")["path"] == str(later)
    assert (folder / "model_index.json").read_bytes() == DATA["model_index.json"]
