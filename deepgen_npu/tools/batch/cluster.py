"""Rows drawn by workers of Ray, one device each, on this machine or on a cluster."""

from __future__ import annotations

import contextlib
import errno
import itertools
import os
import secrets
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from .cards import CPU, RESOURCE
from .connection import connected, import_ray
from .folder import OutputFolder
from .manifest import Entry
from .pool import Pool
from .resources import AUTO, ClusterSettings, actor_options, address_of, first_kind, workers_of
from .survey import Job
from .worker import Worker, not_shared


__all__ = ["Cluster", "ClusterSettings"]

DECIDING = ("deepgen_npu", "torch", "torch_npu", "diffusers", "transformers")
"""Packages of which workers need the same versions, for the same images."""

KILLED_AFTER = 0.5
"""Seconds in which workers on other nodes are gone: nobody tells when."""

_WITHOUT_EFFECT = ("Python", "requests", "huggingface_hub", "modelscope", "scikit-image")
"""Of `doctor.versions`, what changes no image."""


class Cluster:
    """Workers of Ray, which are started for the first row.

    Args:
        settings: Of the cluster.
        worker: Settings of each worker, for `loading.load_painter`.
        folder: Where images go.
        tell: Called with a sentence when something happens that an operator wants to know.

    Attributes:
        workers: All that came up, for ``run.json``: ``node``, ``device`` (its name), ``cards`` (their ids on the
            node), ``pid``, ``versions`` and so on.
        worker_class: What runs on the nodes.
    """

    worker_class: type[Worker] = Worker

    def __init__(
        self,
        settings: ClusterSettings,
        worker: Mapping[str, Any],
        folder: OutputFolder,
        tell: Callable[[str], None],
    ):
        self._settings, self._folder, self._tell = settings, folder, tell
        paths = {name: os.path.abspath(worker[name]) for name in ("model", "output")}
        self._worker = {**worker, **paths, "threads": os.environ.get("OMP_NUM_THREADS")}
        self.workers: list[Mapping[str, Any]] = []
        self._pool: Pool | None = None
        self._count = settings.workers or 0
        self._probes: list[str] = []
        self._whole = False

    @property
    def state(self) -> str:
        """Workers that can draw, of those that there should be: ``3/4``."""
        return f"{self._pool.up if self._pool else 0}/{self._count or '?'}"

    def draw(self, jobs: Iterator[Job]) -> Iterator[Entry]:
        """Draw jobs, in the order in which they get finished. Afterwards, nothing of workers or cluster is left.

        Raises:
            UsageError: When there are no workers, one cannot start, or an image cannot be written.
        """
        first = next(jobs, None)
        if first is None:
            return
        ray = import_ray(self._settings)
        with contextlib.ExitStack() as stack:
            stack.callback(self._clean)
            if not ray.is_initialized():
                stack.enter_context(connected(ray, self._settings, self._worker))
            kind = self._settings.kind if self._settings.kind != AUTO else first_kind(ray.nodes())
            asked, self._count = workers_of(ray.nodes(), self._settings, kind, self._worker)
            # More workers than rows would load a model for nothing.
            ahead = [first, *itertools.islice(jobs, self._count - 1)]
            self._count = len(ahead)
            self._hint(kind, asked)
            own = {**self._worker, "device": kind, "kind": kind, "asked": dict(asked)}
            remote = ray.remote(**self.options(asked))(self.worker_class)

            def make() -> Any:
                return remote.remote({**own, "probe": self._new_probe()})

            stack.callback(self._remove_probes)
            self._pool = Pool(ray, make, self._count, self._settings.attempts, self._check, self._tell)
            stack.callback(self._pool.close)
            yield from self._pool.draw(itertools.chain(ahead, jobs))
            self._whole = not self._pool.deaths

    def _hint(self, kind: str, asked: Mapping[str, float]) -> None:
        """Processors that are shared are slow: threads of one worker wait for those of another."""
        cores = os.cpu_count() or 1
        if kind == CPU and address_of(self._settings) is None and self._count * asked.get(RESOURCE[CPU], 0) > cores:
            threads = max(1, cores // self._count)
            self._tell(f"{self._count} workers share {cores} cores: OMP_NUM_THREADS={threads} gives each its own.")

    def options(self, asked: Mapping[str, float]) -> dict[str, Any]:
        """Of ``ray.remote``, for a worker.

        Args:
            asked: Its resources.
        """
        return actor_options(asked)

    def _new_probe(self) -> str:
        """A file that the next worker has to remove; its name."""
        # As of an unfinished file: should this process be killed, the next batch removes it with those.
        name = f".{secrets.token_hex(4)}.json"
        self._probes.append(name)
        (self._folder.path / name).touch()
        return name

    def _has_probe(self, name: str) -> bool:
        """Whether a file is still there; opened, since network file systems look again only then."""
        try:
            (self._folder.path / name).open("rb").close()
        except FileNotFoundError:
            return False
        except OSError as error:  # a stale handle of a network file system: it was removed
            return error.errno != errno.ESTALE
        return True

    def _clean(self) -> None:
        """Remove what workers left unfinished that died or were ended."""
        if not self._whole:
            time.sleep(KILLED_AFTER)
            self._folder.clean()

    def _remove_probes(self) -> None:
        for name in self._probes:
            (self._folder.path / name).unlink(missing_ok=True)

    def _check(self, facts: Mapping[str, Any]) -> str:
        """Whether a worker that is up fits the others; why not, or nothing."""
        if self._has_probe(facts["probe"]):
            return not_shared(self._worker["output"], facts["node"])
        if self.workers:
            found = differing(self.workers[0], facts)
            deciding = [text for name, text in found.items() if name in DECIDING]
            if deciding:
                return f"Workers must have the same versions, but differ in {', '.join(deciding)}. Install the same."
            if found and not any(differing(self.workers[0], one) for one in self.workers):
                names = ", ".join(found.values())
                self._tell(f"Workers differ in {names}: their images may differ by a little.")
        self.workers.append({name: value for name, value in facts.items() if name != "probe"})
        return ""


def differing(one: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, str]:
    """In what two workers differ, by name, that may change images."""
    have = [{"device": facts["device"], **facts["versions"]} for facts in (one, other)]
    nodes = [facts["node"] for facts in (one, other)]
    found = {}
    for name in dict.fromkeys([*have[0], *have[1]]):
        values = [facts.get(name, "none") for facts in have]
        if values[0] != values[1] and name not in _WITHOUT_EFFECT:
            found[name] = f"{name} ({values[0]} on {nodes[0]}, {values[1]} on {nodes[1]})"
    return found
