"""The backend of a run in this process, as requested, as measured, or as recorded in its manifest."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from fedsim.controller.candidates import Candidate
from fedsim.controller.choose import choose
from fedsim.engine.captured import Graphs
from fedsim.engine.fallback import BlocksOrLoop
from fedsim.engine.federation import Backend, Federation
from fedsim.engine.kernels import Kernels
from fedsim.experiment.experiment import Experiment


def requested(experiment: Experiment, fed: Federation, seed: int, say: Callable[[str], None]) -> dict[str, Any]:
    """Record of the backend that the experiment requests, or that a trial finds fastest."""
    execution = experiment.execution
    kind, size = execution.backend, 0 if execution.backend == "loop" else execution.block_size
    if kind in ("loop", "graphed") or (kind == "blocks" and size):
        asked_for = Candidate(size, execution.client_threads or 0, graphs=kind == "graphed")
        return {**asked_for.recorded, "reason": "asked for"}
    ids = experiment.participation.cohort(seed, 1, fed.shards.n)
    return choose(
        fed, experiment.method, ids, rounds=experiment.rounds, blocks_only=kind == "blocks",
        threads=execution.client_threads, say=say,
    )  # fmt: skip


def backend_of(chosen: dict[str, Any], note: Callable[[str], None], *, may_fall: bool) -> Backend:
    """The recorded backend.

    Args:
        chosen: the record; steps and client functions that run otherwise are added to it.
        note: called with a message after each addition.
        may_fall: whether client functions that fail in blocks run in the loop.
    """

    def into(name: str) -> tuple[dict[str, str], Callable[[str], None]]:
        found: dict[str, str] = chosen.get(name, {})

        def add(text: str) -> None:
            chosen[name] = found
            note(text)

        return found, add

    kernels, graphs = Kernels.of(chosen.get("kernels", [])), chosen["backend"] == "graphed"
    size, threads = chosen.get("block_size", 0), chosen.get("client_threads", 0)   # 0: one client, or block, a time
    eager, say = into("eager")
    if size and may_fall:
        replayed = Graphs(eager=eager, say=say) if graphs else None
        return BlocksOrLoop(size, *into("in_loop"), threads, kernels, replayed)
    return Candidate(size, threads, kernels, graphs).backend_with(**({"eager": eager, "say": say} if graphs else {}))
