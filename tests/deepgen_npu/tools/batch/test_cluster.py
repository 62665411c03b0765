"""Rows drawn by Ray, on one cluster for all tests: the same bits, the right cards, and nothing lost."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import random
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from batch_files import write_rows
from golden import TINY
from PIL import Image
from platforms import linux_only
from ray_workers import LOOPBACK, ROOT, Placed, TogetherCluster, listening, write_torch_npu

from deepgen_npu.checkpoint.folder import Checkpoint
from deepgen_npu.errors import UsageError
from deepgen_npu.tools.batch.cards import VISIBLE
from deepgen_npu.tools.batch.cluster import Cluster, ClusterSettings
from deepgen_npu.tools.batch.connection import own_signals, program, quiet
from deepgen_npu.tools.batch.fingerprints import pixels_hash
from deepgen_npu.tools.batch.folder import OutputFolder
from deepgen_npu.tools.batch.loading import load_painter
from deepgen_npu.tools.batch.local import Local
from deepgen_npu.tools.batch.manifest import Entry
from deepgen_npu.tools.batch.resources import actor_options
from deepgen_npu.tools.batch.rows import Defaults, Row, read_rows
from deepgen_npu.tools.batch.survey import Job
from deepgen_npu.tools.fingerprint import fingerprint
from dev.stand_in_worker import SETTINGS, StandInCluster


pytestmark = [linux_only("clusters run it"), pytest.mark.slow]

NOSET = "RAY_EXPERIMENTAL_NOSET_ASCEND_RT_VISIBLE_DEVICES"
ASCEND, CUDA = VISIBLE["npu"], VISIBLE["cuda"]

# Of a dead node, Ray would wait longer.
SYSTEM = {"health_check_initial_delay_ms": 0, "health_check_period_ms": 500, "health_check_failure_threshold": 8}


@pytest.fixture(scope="module")
def nodes(tmp_path_factory) -> Iterator[Any]:
    """A cluster of two nodes: 8 NPUs, and 4 NPUs that are declared as GPUs."""
    folder = tempfile.mkdtemp(prefix="dgray-", dir="/tmp")
    path = write_torch_npu(tmp_path_factory.mktemp("site") / "site", torch.__version__)
    with pytest.MonkeyPatch.context() as patch:
        # Where Ray notes the address of the last cluster, too. It must be short, since there are sockets in it.
        patch.setenv("RAY_TMPDIR", folder)
        os.mkdir(f"{folder}/ray")
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        patch.setenv("RAY_AUTH_MODE", "token")
        patch.setenv("RAY_AUTH_TOKEN", secrets.token_hex(32))
        for name in (ASCEND, CUDA, NOSET, "RAY_ADDRESS"):
            patch.delenv(name, raising=False)
        import ray
        from ray.cluster_utils import Cluster as Nodes

        logging.getLogger("ray._private.accelerators.npu").setLevel(logging.CRITICAL)
        home = sorted(os.listdir(Path.home()))
        head = {"num_cpus": 8, "resources": {"NPU": 8.0, "place": 1.0}, "_system_config": SYSTEM}
        env = {"PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
        options: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
        with quiet(ray):
            with own_signals():  # those of tests that follow
                found = Nodes(initialize_head=True, head_node_args={**head, "include_dashboard": False})
                found.second = found.add_node(num_cpus=4, num_gpus=4, resources={"place": 1.0})
                ray.init(address=found.address, runtime_env={**program(), "env_vars": env}, **options)
            # Ray tries for a while.
            found.stranger = connecting(found.address, RAY_AUTH_TOKEN="0" * 64)
            yield found
            ray.shutdown()
            found.shutdown()
    shutil.rmtree(folder, ignore_errors=True)
    assert sorted(os.listdir(Path.home())) == home


@pytest.fixture(scope="module")
def table(tmp_path_factory) -> Path:
    """Rows of all kinds, one of them bad."""
    folder = tmp_path_factory.mktemp("table")
    Image.linear_gradient("L").convert("RGB").resize((96, 64)).save(folder / "reference.png")
    small = {"height": 64, "width": 64, "num_inference_steps": 2}
    rows: list[Any] = [{"id": f"row{number}", "prompt": f"a cat {'in a hat ' * number}"} for number in range(5)]
    rows += [
        {"id": "three", "prompt": "a dog", "n": 3, "negative_prompt": "blur"},
        {"id": "edit", "prompt": "make it red", "images": "reference.png"},
        {"id": "gone", "prompt": "make it blue", "images": "nowhere.png"},
    ]
    return write_rows(folder / "rows.jsonl", [{**small, **row} for row in rows])


def jobs_of(table: Path, seed: int | None = None) -> list[Job]:
    """The rows of a table, shuffled by a seed. Files that are not there are found by whoever draws."""
    jobs = [Job(row, f"{row.number:064x}", {}) for row in read_rows(table, Defaults()) if isinstance(row, Row)]
    if seed is not None:
        random.Random(seed).shuffle(jobs)
    return jobs


def settings_of(output: Path, **others: Any) -> dict[str, Any]:
    output.mkdir(exist_ok=True)
    facts = {"model": fingerprint(Checkpoint.open(TINY))}
    switches = dict.fromkeys(("offload", "capture_graph", "disable_mmap", "vae_tiling"), False)
    common = {"device": "cpu", "dtype": "float32", "text_encoder_device": None, "loras": [], "facts": facts}
    return {**switches, **common, "model": str(TINY), "output": str(output), **others}


def bits_of(entries: list[Entry], output: Path) -> dict[str, Any]:
    """What there is of each row; images are those that the lines speak of."""
    for entry in entries:
        files = [Image.open(output / name) for name in entry.files]
        assert [pixels_hash(image) for image in files] == list(entry.sha256), entry.id
    assert not list(output.rglob(".*"))
    assert len({entry.id for entry in entries}) == len(entries)
    return {entry.id: (entry.status, tuple(entry.sha256), entry.error) for entry in entries}


@pytest.fixture(scope="module")
def locally(table, tmp_path_factory) -> dict[str, Any]:
    output = tmp_path_factory.mktemp("local")
    entries = list(Local(lambda: load_painter(settings_of(output))).draw(iter(jobs_of(table))))
    found = bits_of(entries, output)
    assert sum(status == "ok" for status, _, _ in found.values()) == 7
    return found


def test_workers_draw_the_same_bits_as_this_process(nodes, table, locally, tmp_path):
    cluster = together(tmp_path, ClusterSettings(2, None, "cpu"))
    entries = list(drawn(cluster, iter(jobs_of(table, seed=1))))
    assert bits_of(entries, tmp_path / "out") == locally
    assert len({entry.device for entry in entries}) == 2 == len(cluster.workers)
    assert cluster.workers[0]["versions"]["torch"] == torch.__version__


def drawn(cluster: Cluster, jobs: Iterator[Job]) -> Iterator[Entry]:
    with cluster._folder.locked():
        yield from cluster.draw(jobs)


def together(
    tmp_path: Path, settings: ClusterSettings, env: Mapping[str, str] | None = None, **more
) -> TogetherCluster:
    """A cluster whose workers draw when all are up."""
    output, place = tmp_path / "out", tmp_path / "up"
    place.mkdir()
    worker = settings_of(output, together=(str(place), settings.workers), **more)

    class InEnvironment(TogetherCluster):
        def options(self, asked):
            return {**super().options(asked), **({"runtime_env": {"env_vars": dict(env)}} if env else {})}

    return InEnvironment(settings, worker, OutputFolder(output), print)


def test_workers_draw_the_same_bits_on_cards_of_their_own(nodes, table, tmp_path):
    jobs = jobs_of(table)[4:7]  # the simulation takes its time
    env = {NOSET: "1", ASCEND: "8,9,10,11,12,13,14,15"}
    cluster = together(tmp_path, ClusterSettings(2, None, "npu"), env, device="npu")
    entries = list(drawn(cluster, iter(jobs)))
    one = bits_of(entries, tmp_path / "out")
    assert [facts["place"] for facts in cluster.workers] == ["npu:0", "npu:0"]
    cards = [facts["cards"] for facts in cluster.workers]
    assert [len(found) for found in cards] == [1, 1] and cards[0] != cards[1]
    assert all(8 <= int(card) < 16 for (card,) in cards) and "Ascend" in cluster.workers[0]["device"]

    # Two cards a worker, which Ray numbers in the order of a set.
    other = tmp_path / "two"
    other.mkdir()
    cluster = together(other, ClusterSettings(1, None, "npu"), None, device="npu", text_encoder_device="npu:1")
    assert bits_of(list(drawn(cluster, iter(jobs[::-1]))), other / "out") == one
    assert [len(facts["cards"]) for facts in cluster.workers] == [2]

    cluster = together(
        tmp_path / "two" / "up", ClusterSettings(1, None, "npu", {"NPU": 1.0}), text_encoder_device="npu:1"
    )
    with pytest.raises(UsageError, match=r"^On .*: npu:1 does not exist: this machine has npu:0\. ASCEND_RT_VIS"):
        list(drawn(cluster, iter(jobs)))


@pytest.mark.parametrize(
    ("env", "asked", "may_see"),
    [
        ({}, {"NPU": 1.0}, range(8)),
        ({NOSET: "1"}, {"NPU": 1.0}, range(8)),
        ({ASCEND: "4,5,6,7,12,13,14,15"}, {"NPU": 2.0}, (4, 5, 6, 7, 12, 13, 14, 15)),
        ({}, {"GPU": 1.0}, range(4)),
        ({ASCEND: "4,5,6,7"}, {"GPU": 2.0}, range(4, 8)),
    ],
    ids=["plain", "NOSET", "two of a variable", "GPUs", "GPUs and a variable"],
)
def test_two_workers_see_the_cards_that_ray_gave_them(nodes, tmp_path, env, asked, may_see):
    import ray

    remote = ray.remote(**actor_options(asked), runtime_env={"env_vars": env})(Placed)
    actors = []
    for number in range(2):
        (tmp_path / f"probe{number}").touch()
        settings = {"kind": "npu", "asked": asked, "output": str(tmp_path), "probe": f"probe{number}"}
        actors.append(remote.remote(settings))
    try:
        answers = ray.get([actor.ready.remote() for actor in actors])
    finally:
        for actor in actors:
            ray.kill(actor)
    seen = [[int(card) for card in answer["seen"][ASCEND].split(",")] for answer in answers]
    assert [[int(card) for card in answer["cards"]] for answer in answers] == seen
    assert all(cards == sorted(cards) and len(cards) == sum(asked.values()) for cards in seen), seen
    assert not {*seen[0]} & {*seen[1]} and {*seen[0], *seen[1]} <= {*may_see}, seen
    assert os.listdir(tmp_path) == []


def stand_in(output: Path, settings: ClusterSettings, tell=print) -> StandInCluster:
    output.mkdir(exist_ok=True)
    return StandInCluster(settings, {**SETTINGS, "output": str(output)}, OutputFolder(output), tell)


def stand_in_jobs(prompts: list[str]) -> Iterator[Job]:
    for number, prompt in enumerate(prompts):
        row = Row(number, f"row{number}", prompt, "", (), None, False, number, 1, 64, 64, None, 1, 1.0)
        yield Job(row, f"{number:064x}", {})


def test_nothing_is_lost_when_workers_die(nodes, tmp_path, capfd):
    prompts = ["20 ms"] * 30
    prompts[3], prompts[9], prompts[14] = "kill", "bad", "break"
    told: list[str] = []
    cluster = stand_in(tmp_path / "out", ClusterSettings(2, None, "cpu", {"CPU": 1.0}), told.append)
    entries = []
    for entry in drawn(cluster, stand_in_jobs(prompts)):
        entries.append(entry)
        if len(entries) == 20:
            assert cluster.state in ("1/2", "2/2")
            os.kill(cluster.workers[-1]["pid"], signal.SIGKILL)
    bits_of(entries, tmp_path / "out")
    found = {entry.id: entry for entry in entries}
    errors = {name: (entry.error, entry.attempts) for name, entry in found.items() if entry.status == "error"}
    assert errors == {
        "row3": ("its worker died 3 times", 3),
        "row9": ("a bad row", 1),
        "row14": ("its worker failed 3 times: RuntimeError: aicore exception", 3),
    }
    assert len(found) == 30 and len(list((tmp_path / "out").rglob("*.png"))) == 27
    assert sum(sentence.startswith("A worker on") for sentence in told) >= 6
    output = capfd.readouterr()
    assert output.out == output.err == ""


def test_a_full_disk_ends_the_run(nodes, tmp_path):
    cluster = stand_in(tmp_path / "out", ClusterSettings(1, None, "cpu", {"CPU": 1.0}))
    entries = []
    with pytest.raises(UsageError, match=r"^On .*: No space left on device\.$"):
        entries.extend(drawn(cluster, stand_in_jobs(["1 ms", "full", "1 ms"])))
    bits_of(entries, tmp_path / "out")


def test_what_is_wrong_with_a_node_is_one_sentence(nodes, tmp_path):
    output, other = tmp_path / "out", tmp_path / "other"
    (tmp_path / "empty").mkdir()
    one_cpu = ClusterSettings(1, None, "cpu", {"CPU": 1.0})

    def fault(settings: ClusterSettings, **more: Any) -> str:
        cluster = Cluster(settings, {**settings_of(output), **more}, OutputFolder(output), print)
        with pytest.raises(UsageError) as found:
            list(drawn(cluster, stand_in_jobs(["x"])))
        assert "Traceback" not in str(found.value) and "ray." not in str(found.value)
        return str(found.value)

    other.mkdir()
    assert f"{other} on" in (found := fault(one_cpu, output=str(other))) and "that all nodes share." in found
    assert str(tmp_path / "empty") in fault(one_cpu, model=str(tmp_path / "empty"))
    assert "is another model than that of the command" in fault(one_cpu, facts={"model": "0" * 64})
    found = fault(ClusterSettings(9, None, "npu"))
    assert 'must have room for 9 workers of {"NPU": 1.0}, got 8 NPU. Start its nodes' in found
    assert "\n    ray start --head --disable-usage-stats --resources '{\"NPU\": 8}'" in found
    assert list(output.iterdir()) == list(other.iterdir()) == []


COMMAND = """
import sys
from deepgen_npu.tools.batch import cluster
from dev.stand_in_worker import StandInWorker
cluster.Cluster.worker_class = StandInWorker
from deepgen_npu.cli import main
sys.exit(main())
"""


def command(rows: Path, output: Path, *options: str) -> list[str]:
    common = ["--model_path", str(ROOT / "demo_checkpoint"), "--device", "cpu", "--output", str(output)]
    return [sys.executable, "-c", COMMAND, "batch", str(rows), *common, *options]


def stand_in_table(path: Path, prompts: list[str]) -> Path:
    size = {"height": 64, "width": 64}
    return write_rows(path, [{"id": f"row{index}", "prompt": prompt, **size} for index, prompt in enumerate(prompts)])


def test_the_same_command_goes_on_after_its_process_was_killed(nodes, tmp_path):
    rows, output = stand_in_table(tmp_path / "rows.jsonl", ["50 ms"] * 30), tmp_path / "out"
    line = command(rows, output, "--workers", "2", "--address", nodes.address)
    manifest = output / "manifest.jsonl"
    first = subprocess.Popen(line, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    while first.poll() is None and not (manifest.is_file() and manifest.read_bytes().count(b"\n") >= 8):
        time.sleep(0.02)
    first.kill()
    assert first.wait() == -signal.SIGKILL, first.communicate()[0]
    second = subprocess.run(line, cwd=ROOT, capture_output=True, text=True, check=False)
    assert second.returncode == 0 and "Traceback" not in second.stderr and "ray" not in second.stderr, second.stderr
    lines = [json.loads(line) for line in manifest.read_text(encoding="utf-8").splitlines()]
    assert sorted(line["id"] for line in lines) == sorted(f"row{number}" for number in range(30))
    assert len(list(output.rglob("*.png"))) == 30 and not list(output.rglob(".*"))
    assert "30 rows: 0 to make" in subprocess.run(line, cwd=ROOT, capture_output=True, text=True, check=True).stdout


def test_a_cluster_of_our_own_is_alone_and_leaves_nothing(tmp_path):
    rows, output = stand_in_table(tmp_path / "rows.jsonl", ["1 ms"] * 6), tmp_path / "out"
    home = tmp_path / "home"
    home.mkdir()
    folder = tempfile.mkdtemp(prefix="dg-", dir="/tmp")
    env = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    env |= {"HOME": str(home), "TMPDIR": folder, ASCEND: "2,5", "CUDA_VISIBLE_DEVICES": ""}
    line = command(rows, output, "--device", "npu", "--workers", "auto")
    with contextlib.ExitStack() as stack:
        stack.callback(shutil.rmtree, folder)
        pipe, heard = subprocess.PIPE, set()
        process = subprocess.Popen(line, cwd=ROOT, env=env, stdout=pipe, stderr=pipe, text=True)
        while process.poll() is None:
            heard |= listening(f"HOME={home}")
            time.sleep(0.1)
        out, err = process.communicate()
        assert process.returncode == 0, err
        assert "Traceback" not in err and "ray" not in err.lower() + out.lower()
        assert heard and heard <= LOOPBACK
        assert os.listdir(folder) == os.listdir(home) == []
    workers = json.loads((output / "run.json").read_text(encoding="utf-8"))["workers"]
    assert {*(card for worker in workers for card in worker["cards"])} <= {"2", "5"} and workers
    assert not list(output.rglob(".*"))


CONNECT = """
import os, sys
from deepgen_npu.tools.batch.connection import connected, import_ray
from deepgen_npu.tools.batch.resources import ClusterSettings
settings = ClusterSettings(1, sys.argv[1], "cpu")
ray = import_ray(settings)
if len(sys.argv) > 2:
    ray.__version__ = sys.argv[2]
with connected(ray, settings, {}):
    print(len(ray.nodes()))
"""


def connecting(*arguments: str, **env: str) -> subprocess.Popen[str]:
    line = [sys.executable, "-c", CONNECT, *arguments]
    pipe = subprocess.PIPE
    return subprocess.Popen(line, cwd=ROOT, env={**os.environ, **env}, stdout=pipe, stderr=pipe, text=True)


def last_line(process: subprocess.Popen[str]) -> str:
    return "".join(process.communicate()).strip().splitlines()[-1]


def test_a_cluster_of_others_is_joined_or_refused_in_one_sentence(nodes):
    joined, older = connecting(nodes.address), connecting(nodes.address, "1.2.3")
    assert last_line(joined) == "2"
    assert "must have the versions of this machine, Ray 1.2.3 and Python 3." in last_line(older)
    found = last_line(nodes.stranger)
    assert f"No cluster of Ray answers at {nodes.address} (" in found and "put that of its nodes into" in found


def test_a_node_that_dies_costs_nothing(nodes, tmp_path):
    told: list[str] = []
    settings = ClusterSettings(2, None, "cpu", {"place": 1.0})
    cluster = stand_in(tmp_path / "out", settings, told.append)
    entries = []
    for entry in drawn(cluster, stand_in_jobs(["100 ms"] * 40)):
        entries.append(entry)
        if cluster.state == "2/2" and nodes.second is not None:
            nodes.remove_node(nodes.second, allow_graceful=False)
            nodes.second = None
    assert nodes.second is None and len(told) == 1, told
    found = bits_of(entries, tmp_path / "out")
    assert len(found) == 40 and {status for status, _, _ in found.values()} == {"ok"}
    assert 1 <= max(entry.attempts for entry in entries) <= 2
