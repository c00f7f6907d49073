"""Message types between driver and workers."""

from __future__ import annotations

import traceback
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from fedsim.engine.local_work import LocalWork
from fedsim.engine.numerics import Numerics
from fedsim.engine.sharing import Sharing
from fedsim.errors import FedsimError
from fedsim.tree import Samples

if TYPE_CHECKING:
    from scipy.sparse import csr_array


class WorkerSetup(NamedTuple):
    """The federation, constant from round to round, without its samples.

    Attributes:
        module, loss, penalty, dtype, mixes, stacks, numerics, sharing: of the model.
        device: "cpu" or "cuda".
        offsets: ``[n + 1]`` first sample of each client.
        work: the local work.
        seed: root of all randomness.
        like: structure of the inputs and the targets of a sample.
    """

    module: torch.nn.Module
    loss: Any
    penalty: Any
    dtype: torch.dtype
    mixes: bool
    stacks: bool
    numerics: Numerics
    sharing: Sharing | None
    device: str
    offsets: np.ndarray
    work: LocalWork
    seed: int
    like: tuple[Samples, Samples]


class Usage(NamedTuple):
    """What clients have used of a process's GPU since it was last asked.

    Attributes:
        peak, total: bytes of its tensors at most, and of the GPU.
        seconds: that the clients took.
        busy: seconds of these in which the GPU computed; 0 if nobody can tell.
    """

    peak: int
    total: int
    seconds: float
    busy: float


@dataclass(frozen=True)
class ClientTask:
    """A run of clients for one worker.

    Attributes:
        token: identifies their messages at the worker.
        ids: the clients in the order of execution.
        round: number of the round.
        decay: learning-rate factor.
        block_size: clients in a block; 0 to run them one by one.
        streams: clients at the same time whose steps are CUDA graphs; 0 for no graphs.
        fn: registered name of the client function.
        sends: True if it returns a message.
        keeps: True if the last memory is the local optimiser's.
        down: form of the broadcast; None for nothing.
        mine: form of a client's memories; None if it reads none.
        known: bool mask over ``ids``: clients whose memory is passed; the others use the initial one.
        results: expected number of tensors beside the report: those of the new memories, or of the messages.
        hands: True if the messages go to the driver at once; else the worker holds them.
        drop: tokens of messages to release.
        tasks: numbers of the clients' tasks, in place of the round's.
    """

    token: int
    ids: np.ndarray
    round: int
    decay: float
    block_size: int
    streams: int
    fn: str
    sends: bool
    keeps: bool
    down: Any
    mine: Any
    known: np.ndarray
    results: int
    hands: bool
    drop: tuple[int, ...]
    tasks: np.ndarray | None = None


@dataclass(frozen=True)
class GossipExchange:
    """One gossip exchange of the nodes of one run.

    Attributes:
        token: of their current messages.
        into: token of the result.
        w: ``[b, k]`` their rows of W, restricted to the ``k`` nodes that any of them receives from.
        own: rows of this worker among the ``k``.
        order: ``[k]`` position of each of the ``k`` in the concatenation of own and received rows.
        keep: True to retain the current messages.
        last: True if the results become client memories.
    """

    token: int
    into: int
    w: csr_array
    own: np.ndarray
    order: np.ndarray
    keep: bool
    last: bool


class ClientFailure(NamedTuple):
    """A client function that raised.

    Attributes:
        ids: clients that raise when run alone; all clients of the run if none does.
        error: the exception in one line.
        traceback: of the original exception.
        full: True if the device was out of memory.
        refused: an error of fedsim's own, to raise as it is.
    """

    ids: list[int]
    error: str
    traceback: str
    full: bool = False
    refused: FedsimError | None = None


class Report(NamedTuple):
    """Result of a run, in the order of execution.

    Attributes:
        sizes: bytes of each message.
        paper_bits: bits of each message as papers count them.
        finite: bool mask of messages without NaN and infinity.
        gradients: gradient evaluations of each client.
        message: form of a message; None if none is sent.
        dense: form of the unpacked message.
        memory: form of a client's new memories.
        failure: of a client function; the other fields are empty then.
        eager: steps that are no graphs, with the reasons.
    """

    sizes: np.ndarray
    paper_bits: np.ndarray
    finite: np.ndarray
    gradients: np.ndarray
    message: Any
    dense: Any
    memory: Any
    failure: ClientFailure | None = None
    eager: tuple[tuple[str, str], ...] = ()


class Facts(NamedTuple):
    """Facts of a worker process.

    Attributes:
        process: process id.
        resident: bytes of memory in use after the start.
    """

    process: int
    resident: int


def form(t: Tensor) -> Tensor:
    """Shape and dtype of a tensor, as a tensor without values."""
    return torch.empty(t.shape, dtype=t.dtype, device="meta")


def described(error: Exception, fn: Any) -> tuple[str, str]:
    """Format an exception as one line, and its traceback from the client function on."""
    code = getattr(fn, "__code__", None)
    trace = error.__traceback__
    while trace is not None and trace.tb_frame.f_code is not code:
        trace = trace.tb_next
    text = "".join(traceback.format_exception(type(error), error, trace or error.__traceback__))
    return f"{type(error).__name__}: {error}", text
