"""What driver and workers tell each other."""

from __future__ import annotations

import traceback
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from fedsim.engine.local_work import LocalWork
from fedsim.errors import FedsimError

if TYPE_CHECKING:
    from scipy.sparse import csr_array


class WorkerSetup(NamedTuple):
    """What stays the same from round to round, besides the samples.

    Attributes:
        module, loss, penalty, dtype: of the model.
        device: "cpu" or "cuda".
        offsets: which samples belong to which client.
        work: the local work.
        seed: root of all randomness.
    """

    module: torch.nn.Module
    loss: Any
    penalty: Any
    dtype: torch.dtype
    device: str
    offsets: np.ndarray
    work: LocalWork
    seed: int


@dataclass(frozen=True)
class ClientTask:
    """A run of clients.

    Attributes:
        token: under which their messages are kept here.
        ids: the clients in the order of execution.
        round: number of the round.
        decay: the learning-rate factor.
        block_size: clients in a block; 0 for one after the other.
        fn: name under which the client function was sent.
        sends: whether it returns a message.
        down: form of what is sent to every client; None for nothing.
        mine: form of a client's memories; None where it reads none.
        known: for which of ``ids`` a memory is given; the others have the first one.
        leaves: number of tensors that the new memories of a client are expected to have.
        drop: tokens of messages that nobody needs any more.
    """

    token: int
    ids: np.ndarray
    round: int
    decay: float
    block_size: int
    fn: str
    sends: bool
    down: Any
    mine: Any
    known: np.ndarray
    leaves: int
    drop: tuple[int, ...]


@dataclass(frozen=True)
class GossipExchange:
    """One exchange of gossip, for the nodes of one run.

    Attributes:
        token: of their present messages.
        into: of what they hold afterwards.
        w: ``[b, k]`` their rows of W, over the ``k`` nodes that any of them hears.
        own: which of our own rows are among those.
        order: ``[k]`` where each of those is among our own and then the others' rows as they came.
        keep: whether the present messages may be asked for again.
        last: whether the results are client memories now.
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
        ids: clients that raise when they run alone; all of the run where none does.
        error: the exception in one line.
        traceback: of the original exception.
        full: whether the device had no memory left.
        refused: an error of our own, which has its own words.
    """

    ids: list[int]
    error: str
    traceback: str
    full: bool = False
    refused: FedsimError | None = None


class Report(NamedTuple):
    """What the driver is told of a run, in the order of execution.

    Attributes:
        sizes: bytes of each message.
        paper_bits: as papers count them.
        finite: which hold neither NaN nor infinity.
        gradients: gradient evaluations of each client.
        message: form of a message; None where none is sent.
        dense: form of what it stands for.
        memory: form of a client's new memories.
        failure: what went wrong instead.
    """

    sizes: np.ndarray
    paper_bits: np.ndarray
    finite: np.ndarray
    gradients: np.ndarray
    message: Any
    dense: Any
    memory: Any
    failure: ClientFailure | None = None


class Facts(NamedTuple):
    """A worker.

    Attributes:
        process: number of the process.
        resident: bytes of memory that it takes before it does anything.
    """

    process: int
    resident: int


def form(t: Tensor) -> Tensor:
    """Shape and type of a tensor, without values."""
    return torch.empty(t.shape, dtype=t.dtype, device="meta")


def described(error: Exception, fn: Any) -> tuple[str, str]:
    """An exception in one line, and its traceback from the client function on."""
    code = getattr(fn, "__code__", None)
    trace = error.__traceback__
    while trace is not None and trace.tb_frame.f_code is not code:
        trace = trace.tb_next
    text = "".join(traceback.format_exception(type(error), error, trace or error.__traceback__))
    return f"{type(error).__name__}: {error}", text
