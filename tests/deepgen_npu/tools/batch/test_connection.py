"""How a cluster is found or started, and what its errors say, without Ray."""

from __future__ import annotations

import os
import signal
import socket
import sys
import tempfile
from types import SimpleNamespace
from typing import Any

import pytest
from platforms import not_on_windows

from deepgen_npu.errors import UsageError
from deepgen_npu.tools.batch import connection
from deepgen_npu.tools.batch.connection import connected, import_ray, program, require_listening, temporary_folder
from deepgen_npu.tools.batch.resources import ClusterSettings


HERE = ClusterSettings(2, None, "cpu")
ELSEWHERE = ClusterSettings(2, "head:6379", "cpu")


class FakeRay:
    """Starts, or fails with an error."""

    exceptions = SimpleNamespace(RayError=KeyError)

    def __init__(self, error: Exception | None = None):
        self.error = error
        self.options: dict[str, Any] = {}
        self.ended = False
        self._private = SimpleNamespace(worker=SimpleNamespace(_worker_logs_enabled=True))

    def init(self, **options: Any) -> None:
        self.options = options
        signal.signal(signal.SIGTERM, lambda *_: None)
        if self.error is not None:
            raise self.error

    def shutdown(self) -> None:
        assert not self._private.worker._worker_logs_enabled
        self.ended = True


@pytest.fixture(autouse=True)
def environment(monkeypatch, tmp_path):
    """Without variables of Ray, and with a home folder of its own."""
    for name in list(os.environ):
        if name.startswith("RAY_"):
            monkeypatch.delenv(name)
    for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_USAGE_STATS_ENABLED", connection.LOOPBACK):
        monkeypatch.setenv(name, "")  # so that what is set is taken back
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    monkeypatch.setitem(sys.modules, "ray", SimpleNamespace())


def test_without_ray_the_message_has_the_command(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    monkeypatch.delitem(sys.modules, "ray")
    monkeypatch.setattr(sys, "path", [])
    monkeypatch.setattr(sys, "meta_path", [])
    with pytest.raises(UsageError) as refused:
        import_ray(HERE)
    assert str(refused.value) == "--workers and --address need Ray:\n    pip install -r requirements-scale.txt"


def test_what_is_started_here_has_a_token_of_this_run(monkeypatch):
    import_ray(HERE)
    token = os.environ["RAY_AUTH_TOKEN"]
    assert os.environ["RAY_AUTH_MODE"] == "token" and len(token) == 64
    assert os.environ["RAY_USAGE_STATS_ENABLED"] == os.environ[connection.LOOPBACK] == "0"
    import_ray(HERE)  # Ray has read it
    assert os.environ["RAY_AUTH_TOKEN"] == token


def test_whoever_wants_no_token_gets_none(monkeypatch):
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "1")
    import_ray(HERE)
    assert "RAY_AUTH_TOKEN" not in os.environ and os.environ["RAY_USAGE_STATS_ENABLED"] == "1"


def test_a_cluster_of_others_gets_the_token_of_this_account(tmp_path):
    import_ray(ELSEWHERE)
    assert not {"RAY_AUTH_MODE", "RAY_AUTH_TOKEN", connection.LOOPBACK} & set(os.environ)
    (tmp_path / ".ray").mkdir()
    (tmp_path / ".ray" / "auth_token").write_text("secret")
    import_ray(ELSEWHERE)
    assert os.environ["RAY_AUTH_MODE"] == "token" and "RAY_AUTH_TOKEN" not in os.environ


def test_a_cluster_of_our_own_ends_with_the_block():
    before = signal.getsignal(signal.SIGTERM)
    ray = FakeRay()
    with connected(ray, HERE, {}):
        assert signal.getsignal(signal.SIGTERM) == before and not ray.ended
        folder = ray.options["_temp_dir"]
        assert os.path.isdir(folder) and len(folder) < 56
        assert ray.options["address"] == "local" and not ray.options["log_to_driver"]
        assert ray.options["runtime_env"] == program()
        assert not ray._private.worker._worker_logs_enabled
    assert ray.ended and not os.path.exists(folder) and ray._private.worker._worker_logs_enabled


def test_only_the_package_is_shipped():
    (folder,) = program()["py_modules"]
    assert os.path.basename(folder) == "deepgen_npu" and os.path.isfile(os.path.join(folder, "pipeline.py"))


@not_on_windows("sockets there have no path")
def test_a_long_temporary_folder_is_left_for_a_short_one(monkeypatch, tmp_path):
    long = tmp_path / ("x" * 60)
    long.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(long))
    with temporary_folder() as folder:
        assert os.path.dirname(folder) == connection.SHORT_TEMPORARY
    monkeypatch.setattr(connection, "LONGEST_TEMPORARY", 1000)
    with temporary_folder() as folder:
        assert folder.startswith(str(long))


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (
            RuntimeError("Version mismatch: The cluster was started with:\n    Ray: 2.59.0\n    Python: 3.11.7\n"
            "This process on 10.0.0.1 was started with:\n    Ray: 2.60.0\n    Python: 3.11.9\n"),
            "the cluster must have the versions of this machine, Ray 2.60.0 and Python 3.11.9, got Ray 2.59.0 and "
            "Python 3.11.7.",
        ),
        (ConnectionError("no\n  answer"), "Ray does not start on this machine (no answer)."),
        (KeyError("x" * 999), f"Ray does not start on this machine ('{'x' * 199}...)."),
    ],
)  # fmt: skip
def test_an_error_of_ray_is_one_sentence(error, message):
    ray = FakeRay(error)
    with pytest.raises(UsageError) as refused, connected(ray, HERE, {}):
        pass
    assert str(refused.value) == message and ray.ended and not os.path.exists(ray.options["_temp_dir"])


def test_an_address_where_nobody_listens_is_refused_at_once():
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen()
        address = f"127.0.0.1:{listening.getsockname()[1]}"
        require_listening(address)
    require_listening("auto")
    with pytest.raises(UsageError, match=rf"^There is no cluster of Ray at {address} \(.+\)\.$"):
        require_listening(address)
    for wrong in ("head", "head:", "head:99999", "a/b:1"):
        with pytest.raises(UsageError, match=r"--address must be HOST:PORT of the head of a cluster, or auto, got"):
            require_listening(wrong)
