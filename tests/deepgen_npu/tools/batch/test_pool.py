"""Who draws which row, and what happens when workers die: the loop, with workers in this process in place of Ray's."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from deepgen_npu.errors import UsageError
from deepgen_npu.tools.batch.pool import Pool
from deepgen_npu.tools.batch.rows import Row
from deepgen_npu.tools.batch.survey import Job


class RayError(Exception):
    pass


class Actor:
    """Answers in the order of the calls. A prompt says what happens: ``kill``, ``break``, or else it is drawn."""

    def __init__(self, ray: Ray, starts: str):
        self.ray, self.starts = ray, starts
        self.calls: list[tuple[str, Any]] = []
        self.dead = False
        self.ready = SimpleNamespace(remote=lambda: self._call(None))
        self.draw = SimpleNamespace(remote=self._call)

    def _call(self, job: Any) -> str:
        ref = f"{len(self.ray.log)}"
        self.ray.log.append((self, job and job["row"]["id"], len(self.calls)))
        self.calls.append((ref, job))
        return ref

    def work(self) -> None:
        """Answer the oldest call."""
        ref, job = self.calls.pop(0)
        what = job["row"]["prompt"] if job else self.starts
        if what == "kill":
            self.dead = True
            self.ray.answers |= dict.fromkeys([ref, *(one for one, _ in self.calls)], RayError("gone"))
            self.calls.clear()
        elif job is None:
            fault = {} if what == "well" else {"fatal": what}
            self.ray.answers[ref] = {"node": "n", **fault}
        else:
            broken = {"broken": "RuntimeError: card", "node": "n"}
            self.ray.answers[ref] = broken if what == "break" else {"status": "ok", "seconds": 1.0}


class Ray:
    """As much of Ray as the loop needs.

    Attributes:
        starts: What becomes of actors, in the order in which they are made: ``well``, ``kill``, ``never`` or a fault.
        log: Calls in their order: actor, id of the row and calls that it had before.
    """

    exceptions = SimpleNamespace(RayError=RayError, RuntimeEnvSetupError=KeyError)

    def __init__(self, *starts: str):
        self.starts = list(starts)
        self.actors: list[Actor] = []
        self.answers: dict[str, Any] = {}
        self.log: list[tuple[Actor, str | None, int]] = []
        self.waits = 0

    def make(self) -> Actor:
        self.actors.append(Actor(self, self.starts.pop(0) if self.starts else "well"))
        return self.actors[-1]

    def wait(self, refs: list[str], num_returns: int, timeout: float) -> tuple[list[str], list[str]]:
        self.waits += 1
        if num_returns == 1 and not any(ref in self.answers for ref in refs):
            busy = [one for one in self.actors if one.calls and one.starts != "never"]
            if busy:
                min(busy, key=lambda one: len(one.calls)).work()
        return [ref for ref in refs if ref in self.answers][:num_returns], []

    def get(self, ref: str) -> Any:
        answer = self.answers.pop(ref)
        if isinstance(answer, Exception):
            raise answer
        return answer

    def kill(self, actor: Actor) -> None:
        actor.dead = True
        actor.calls.clear()


def jobs(*prompts: str, pulled: list[int] | None = None):
    for number, prompt in enumerate(prompts):
        if pulled is not None:
            pulled.append(number)
        row = Row(
            number,
            f"r{number}",
            prompt,
            "",
            (),
            None,
            False,
            number,
            1,
            None,
            None,
            None,
            1,
            1.0,
            extra={"more": number},
        )
        yield Job(row, "f", {})


def pool_of(ray: Ray, count: int, attempts: int = 3, check=lambda facts: "", tell=lambda sentence: None) -> Pool:
    return Pool(ray, ray.make, count, attempts, check, tell)


def drawn(ray: Ray, count: int, *prompts: str, **options):
    return {entry.id: entry for entry in pool_of(ray, count, **options).draw(jobs(*prompts))}


@pytest.mark.parametrize("count", [1, 2, 3])
def test_each_row_is_drawn_once(count):
    ray = Ray()
    found = drawn(ray, count, *["x"] * 20)
    assert sorted(entry.row for entry in found.values()) == list(range(20))
    assert all(
        (entry.status, entry.attempts, entry.extra) == ("ok", 1, {"more": entry.row}) for entry in found.values()
    )
    assert len(ray.actors) == count and len(ray.log) == count + 20
    assert max(before for _, _, before in ray.log) == 1  # two rows in flight


@pytest.mark.parametrize("place", range(6))
@pytest.mark.parametrize("count", [1, 2])
def test_a_row_that_kills_its_worker_ends_as_an_error_and_costs_its_neighbours_nothing(count, place):
    prompts = ["x"] * 6
    prompts[place] = "kill"
    ray = Ray()
    found = drawn(ray, count, *prompts)
    killer = found.pop(f"r{place}")
    assert (killer.status, killer.error, killer.attempts) == ("error", "its worker died 3 times", 3)
    assert killer.extra == {"more": place}
    assert [entry.status for entry in found.values()] == ["ok"] * 5
    assert sum(entry.attempts for entry in found.values()) <= 6  # the one that was beside it came twice
    assert len(ray.actors) == count + 3
    sent = [(actor, before) for actor, name, before in ray.log if name == f"r{place}"]
    assert [before for _, before in sent[1:]] == [0, 0]
    for actor, _ in sent[1:]:
        assert [name for one, name, _ in ray.log if one is actor][-1] == f"r{place}"


def test_with_one_attempt_the_neighbour_of_a_killer_is_drawn():
    found = drawn(Ray(), 1, "kill", "x", "x", attempts=1)
    assert [found[name].error for name in ("r0", "r1", "r2")] == ["its worker died 2 times", "", ""]
    found = drawn(Ray(), 1, "x", "kill", "kill", "x", attempts=1)
    assert {name for name, entry in found.items() if entry.error} == {"r1", "r2"}


def test_a_worker_out_of_order_is_replaced_and_its_row_is_tried_again():
    told: list[str] = []
    ray = Ray()
    found = drawn(ray, 1, "x", "break", "x", "x", tell=told.append)
    assert found["r1"].error == "its worker failed 3 times: RuntimeError: card"
    assert [found[name].status for name in ("r0", "r2", "r3")] == ["ok"] * 3
    assert told == ["A worker on n failed (RuntimeError: card); another takes its place."] * 3
    assert [actor.dead for actor in ray.actors] == [True, True, True, False]


def test_rows_are_pulled_only_as_workers_get_free():
    pulled: list[int] = []
    ray = Ray()
    pool = pool_of(ray, 2)
    work = pool.draw(jobs(*["x"] * 50, pulled=pulled))
    for number in range(1, 40):
        next(work)
        assert len(pulled) <= number + 4
    pool.close()
    assert all(actor.dead for actor in ray.actors)


def test_nothing_is_pulled_while_no_worker_is_up():
    pulled: list[int] = []
    told: list[str] = []

    def tell(sentence: str) -> None:
        told.append(sentence)
        if len(told) == 3:
            raise KeyboardInterrupt

    ray = Ray("never", "never")
    with pytest.raises(KeyboardInterrupt):
        list(pool_of(ray, 2, tell=tell).draw(jobs("x", "x", pulled=pulled)))
    assert told == ["Waiting for workers: 0 of 2."] * 3 and pulled == []


def test_one_worker_goes_on_while_the_other_waits_for_a_node():
    found = drawn(Ray("never", "well"), 2, *["x"] * 5)
    assert len(found) == 5


def test_an_error_of_the_table_ends_the_run():
    def broken():
        yield from jobs("x", "x")
        raise FileNotFoundError("the table")

    with pytest.raises(FileNotFoundError):
        list(pool_of(Ray(), 1).draw(broken()))


@pytest.mark.parametrize("starts", [["no model here", "well"], ["no model here"] * 2])
def test_a_worker_that_cannot_start_ends_the_run_with_one_sentence(starts):
    with pytest.raises(UsageError, match=r"^On n: no model here$"):
        drawn(Ray(*starts), 2, *["x"] * 9)
    with pytest.raises(UsageError, match=r"^other versions$"):
        drawn(Ray(), 2, *["x"] * 9, check=lambda facts: "other versions")


def test_a_worker_that_dies_while_it_loads_is_started_three_times():
    found = drawn(Ray("kill", "kill", "well"), 1, "x")
    assert found["r0"].attempts == 1
    with pytest.raises(UsageError, match=r"^A worker died while it loaded the model \(gone\)\.$"):
        drawn(Ray("kill", "kill", "kill"), 1, "x")


def test_where_a_worker_cannot_start_again_the_others_go_on():
    told: list[str] = []
    faults = ["well", "well", *["no model here"] * 3]
    found = drawn(Ray(*faults), 2, "kill", *["x"] * 5, attempts=1, tell=told.append)
    assert sum(entry.status == "ok" for entry in found.values()) == 5
    assert told.count("1 of 2 workers go on. On n: no model here") == 1
    with pytest.raises(UsageError, match=r"^On n: no model here$"):
        drawn(Ray("well", *["no model here"] * 3), 1, "kill", "x")


def test_what_is_wrong_with_the_run_ends_it():
    ray = Ray()
    pool = pool_of(ray, 1)
    work = pool.draw(jobs("x", "x"))
    next(work)
    ray.answers[next(ref for ref, _ in ray.actors[0].calls)] = {"fatal": "out: No space left on device.", "node": "n"}
    with pytest.raises(UsageError, match=r"^On n: out: No space left on device\.$"):
        list(work)
