"""What a sampling node reports while it runs, and how fast it ends."""

from __future__ import annotations

from dev.comfyui.client import Client
from dev.comfyui.graphs import Graph
from dev.comfyui.result import RunResult


def steps_of(result: RunResult, node: str, count: int) -> list[float]:
    """The steps that a node has reported, of so many; a bar of another length is about something else."""
    return [one.value for one in result.progress if one.node == node and one.max == count]


def assert_cancelled_within_a_step(client: Client, graph: Graph, node: str) -> None:
    """Run a graph and cancel it in the third step of a node, whose inputs have ``steps``.

    At a size at which a step takes far longer than a request to the server.
    """
    count = graph[node]["inputs"]["steps"]
    job = client.start(graph)
    seen: list[float] = []

    def reached(result: RunResult) -> bool:
        seen[:] = steps_of(result, node, count)
        return len(seen) >= 3

    job.wait_until(reached)
    at_cancel = seen[-1]
    job.interrupt()
    result = job.wait()
    assert result.interrupted and not result.ok
    last = max(steps_of(result, node, count))
    # The step during which the server got the request, and one that the client had not yet heard of.
    assert last - at_cancel <= 2, (at_cancel, last)
