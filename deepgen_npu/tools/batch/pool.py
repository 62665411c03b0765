"""Who draws which row, and what happens when a worker dies. What is needed of Ray is passed in.

`ray.util.ActorPool` does not survive a dead actor, hence a loop of our own over ``ray.wait``. Dead actors are replaced
here, not by Ray, whose restarts would hide that a worker dies each time it loads the model.
"""

from __future__ import annotations

import collections
import contextlib
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ...errors import UsageError
from .manifest import ERROR, Entry
from .rows import Row
from .survey import Job


IN_FLIGHT = 2
"""Rows that a worker has at once: the next is there when it has drawn one."""

PATIENCE = 30.0
"""Seconds without any answer after which it is told that there are no workers."""

GRACE = 5.0
"""Seconds for what a dead worker has finished to arrive."""

MOST_STARTS = 3
"""How often a worker is started whose process dies while it loads the model."""


@dataclass
class Trial:
    """A row on its way.

    Attributes:
        job: What to draw.
        sent: How often a worker got it.
        deaths: Of workers that it is to blame for.
        suspect: Another row that was in flight when a worker died; one of the two is to blame.
        why: What its last worker said of itself; empty if it just died.
    """

    job: Job
    sent: int = 0
    deaths: int = 0
    suspect: Trial | None = field(default=None, repr=False)
    why: str = ""

    @property
    def alone(self) -> bool:
        """Whether it is sent alone, so that it costs no other row an attempt."""
        return self.deaths > 0 or self.suspect is not None

    def acquit(self) -> None:
        """It was drawn: if it shared a suspicion, the other is to blame."""
        if self.suspect is not None:
            self.suspect.deaths += 1
            self.suspect.suspect = self.suspect = None

    def blame(self, why: str = "") -> None:
        """A worker died of this row; so did the one of a shared suspicion."""
        self.deaths, self.why = self.deaths + 1, why
        if self.suspect is not None:
            self.deaths += 1
            self.suspect.suspect = self.suspect = None


@dataclass
class Member:
    """A worker, as the driver sees it.

    Attributes:
        actor: Handle of Ray.
        starting: Reference of its answer that it is up; None when it has come.
        node: Where it is or was.
        flying: Rows that it has, by the references of their results, the oldest first.
        starts: How often it was started since it was up last.
        replaced: Whether one before it was up.
    """

    actor: Any
    starting: Any
    node: str = ""
    flying: dict[Any, Trial] = field(default_factory=dict)
    starts: int = 1
    replaced: bool = False


class Pool:
    """Workers, and the rows that they have.

    Args:
        ray: The module, connected.
        make: Makes an actor with the methods of `worker.Worker`.
        count: Of workers.
        attempts: How often a row is tried whose worker died.
        check: Called with what a worker says when it is up; returns why it cannot work, or nothing.
        tell: Called with a sentence when something happens that an operator wants to know.

    Attributes:
        deaths: Workers that died or failed.
    """

    def __init__(
        self,
        ray: Any,
        make: Callable[[], Any],
        count: int,
        attempts: int,
        check: Callable[[Mapping[str, Any]], str],
        tell: Callable[[str], None],
    ):
        self._ray, self._make, self._count, self._attempts = ray, make, count, attempts
        self._check, self._tell = check, tell
        self._again: collections.deque[Trial] = collections.deque()
        self._members: list[Member] = []
        self.deaths = 0

    @property
    def up(self) -> int:
        """Number of workers that can draw."""
        return sum(member.starting is None for member in self._members)

    def draw(self, jobs: Iterator[Job]) -> Iterator[Entry]:
        """Draw jobs, in the order in which they get finished.

        Raises:
            UsageError: For the fault of the run: a worker that cannot start, an image that cannot be written.
        """
        for _ in range(self._count):
            actor = self._make()
            self._members.append(Member(actor, actor.ready.remote()))
        more = True
        while True:
            while (member := self._free_member()) is not None:
                if self._again:
                    trial = self._again.popleft()
                elif more and (job := next(jobs, None)) is not None:
                    trial = Trial(job)
                else:
                    more = False
                    break
                if trial.deaths >= self._attempts:
                    yield _lost(trial)
                else:
                    self._send(member, trial)
            flying = [ref for member in self._members for ref in member.flying]
            if not (more or flying or self._again):
                return
            starting = [member.starting for member in self._members if member.starting is not None]
            done, _ = self._ray.wait([*flying, *starting], num_returns=1, timeout=PATIENCE)
            if done:
                yield from self._arrived(done[0])
            elif not self.up:
                self._tell(f"Waiting for workers: 0 of {self._count}.")

    def close(self) -> None:
        """End the workers."""
        for member in self._members:
            self._end(member)
        self._members.clear()

    def _free_member(self) -> Member | None:
        """Who gets the next row: whoever has fewest. None if all have enough."""
        most = 1 if self._again and self._again[0].alone else IN_FLIGHT
        free = [
            one
            for one in self._members
            if one.starting is None and len(one.flying) < most and not any(row.alone for row in one.flying.values())
        ]
        return min(free, key=lambda one: len(one.flying), default=None)

    def _send(self, member: Member, trial: Trial) -> None:
        trial.sent += 1
        row = {name: getattr(trial.job.row, name) for name in Row.__dataclass_fields__ if name != "extra"}
        # Workers have another working folder.
        row["images"] = tuple(str(Path(name).absolute()) for name in row["images"])
        row["mask"] = str(Path(row["mask"]).absolute()) if row["mask"] else None
        ref = member.actor.draw.remote({"row": row, "fingerprint": trial.job.fingerprint})
        member.flying[ref] = trial

    def _arrived(self, ref: Any) -> Iterator[Entry]:
        member = next(one for one in self._members if ref == one.starting or ref in one.flying)
        if ref == member.starting:
            self._started(member)
            return
        answer, why = self._get(ref)
        if answer is None:
            yield from self._died(member, ref, why)
        elif "broken" in answer:
            # Its card may be out of order until the process ends.
            trial = member.flying.pop(ref)
            self._tell(f"A worker on {answer['node']} failed ({answer['broken']}); another takes its place.")
            trial.blame(answer["broken"])
            self._again.extend([*member.flying.values(), trial])
            self._replace(member)
        else:
            yield self._entry(member.flying.pop(ref), answer)

    def _get(self, ref: Any) -> tuple[dict[str, Any] | None, str]:
        """The answer of a worker; or None, and why there is none.

        Raises:
            UsageError: For the fault of the run.
        """
        errors = self._ray.exceptions
        try:
            answer = self._ray.get(ref)
        except errors.RuntimeEnvSetupError as error:
            raise UsageError(f"Ray cannot bring the program to a node ({short(error)}).") from None
        except errors.RayError as error:
            return None, why_dead(error)
        if "fatal" in answer and ref not in {one.starting for one in self._members}:
            raise UsageError(f"On {answer['node']}: {answer['fatal']}")
        return answer, ""

    def _entry(self, trial: Trial, answer: Mapping[str, Any]) -> Entry:
        trial.acquit()
        row = trial.job.row
        references = trial.job.references if answer["status"] != ERROR else {}
        facts = {"attempts": trial.sent, "references": references, "extra": row.extra}
        return Entry(row.number, row.id, **{**answer, **facts})

    def _died(self, member: Member, ref: Any, why: str) -> Iterator[Entry]:
        """A worker is gone. What it had finished counts; of the others, one is to blame."""
        done, _ = self._ray.wait(list(member.flying), num_returns=len(member.flying), timeout=GRACE)
        for one in done:
            answer = None if one == ref else self._get(one)[0]
            if answer is not None and "broken" not in answer:
                yield self._entry(member.flying.pop(one), answer)
        self._tell(f"A worker on {member.node} died ({why}); another takes its place.")
        lost = list(member.flying.values())
        if len(lost) == 1:
            lost[0].blame()
        else:
            # Those before them have answered, so that it was one of these two that were drawn and saved.
            first, second = lost
            first.suspect, second.suspect = second, first
        self._again.extend(lost)
        self._replace(member)

    def _started(self, member: Member) -> None:
        answer, why = self._get(member.starting)
        fault = f"A worker died while it loaded the model ({why})." if answer is None else answer.get("fatal", "")
        if answer is not None:
            member.node = answer["node"]
            fault = f"On {member.node}: {fault}" if fault else self._check(answer)
        if not fault:
            member.starting, member.starts = None, 0
        elif not member.replaced and (answer is not None or member.starts >= MOST_STARTS):
            raise UsageError(fault)
        elif member.starts < MOST_STARTS:
            self._replace(member, up=False)
        else:
            self._end(member)
            self._members.remove(member)
            self._tell(f"{len(self._members)} of {self._count} workers go on. {fault}")
            if not self._members:
                raise UsageError(fault)

    def _replace(self, member: Member, up: bool = True) -> None:
        """Start another worker in its place, on whatever node has room."""
        self._end(member)
        self.deaths += 1
        actor = self._make()
        index = self._members.index(member)
        self._members[index] = Member(
            actor, actor.ready.remote(), member.node, starts=member.starts + 1, replaced=member.replaced or up
        )

    def _end(self, member: Member) -> None:
        """Its process is no more, also if it only could not be reached; then its card is free."""
        with contextlib.suppress(Exception):
            self._ray.kill(member.actor)


def _lost(trial: Trial) -> Entry:
    row, times = trial.job.row, f"{trial.deaths} times" if trial.deaths > 1 else "once"
    error = f"its worker failed {times}: {trial.why}" if trial.why else f"its worker died {times}"
    return Entry(row.number, row.id, ERROR, error=error, attempts=trial.sent, extra=row.extra)


def short(error: BaseException, most: int = 200) -> str:
    """What Ray says, on one line: of a task's error its cause, without the traceback of another process."""
    text = " ".join(str(getattr(error, "cause", None) or error).split())
    return text if len(text) <= most else f"{text[:most]}..."


def why_dead(error: BaseException) -> str:
    """What Ray knows of the end of a worker: the first sentence of its explanation."""
    text = short(error, 10000)
    detail = text.partition("Worker exit detail: ")[2] or text.partition("The actor died because ")[2] or text
    return re.split(r"[.:] ", detail, maxsplit=1)[0][:200].rstrip(".")
