"""Errors a user can act on. Each message says what was given, what was expected, and the fix."""

from __future__ import annotations

import contextlib
import difflib
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any


class FedsimError(Exception):
    """Base of every error that fedsim raises on purpose; the command line prints it without a traceback."""


class ConfigError(FedsimError, ValueError):
    """A setting is unknown, of the wrong type, or outside its range."""


class DataError(FedsimError):
    """A data set is missing, or a file of it is corrupt."""


class PartitionError(FedsimError, ValueError):
    """The requested partition cannot be made from this data set."""


class ModelError(FedsimError, ValueError):
    """The model or loss cannot be trained by this engine."""


class DivergenceError(FedsimError):
    """A client produced NaN or infinity."""


class CheckpointError(FedsimError):
    """A checkpoint is corrupt or belongs to another experiment."""


class RunError(FedsimError):
    """A run directory cannot be created, written or resumed."""


class BusyError(RunError):
    """Another process is at it."""


class DeployError(FedsimError):
    """A federation of real processes cannot be started, or a node of it failed."""


class ClientsLostError(DeployError):
    """Clients that take part in a round do not answer; without them, it can be done again.

    Attributes:
        reasons: why, by client.
        round: in which.
    """

    def __init__(self, reasons: Mapping[int, str], round: int) -> None:
        self.reasons, self.round = dict(reasons), round
        super().__init__(f"round {round}: " + "; ".join(f"client {i} {why}" for i, why in sorted(reasons.items())))


class StateLostError(RunError):
    """Memories of clients are gone with the machine that held them: only a checkpoint still has them."""


class RoundLostError(FedsimError):
    """A round was not completed through no fault of its clients' code; it can be done again."""


class DeviceFullError(RoundLostError):
    """A device had too little memory for a block of clients; the backend has halved its blocks."""


class ClientError(FedsimError):
    """A client function raised.

    Attributes:
        ids: the clients.
    """

    def __init__(self, ids: list[int], function: str, round: int, error: str, traceback: str) -> None:
        which = f"client {ids[0]}" if len(ids) == 1 else f"one of the clients {', '.join(map(str, ids[:10]))}"
        super().__init__(f"{function} in round {round}: {which} raised {error}\n{traceback.rstrip()}")
        self.ids = ids


def many(count: int, what: str) -> str:
    """A count with its noun: ``1 client``, ``2 clients``, ``no clients``."""
    return f"{count or 'no'} {what}{'' if count == 1 else 's'}"


def title(fn: Callable[..., Any]) -> str:
    """How messages name a function."""
    return getattr(fn, "__qualname__", str(fn))


@contextlib.contextmanager
def explained(function: str, round: int) -> Iterator[None]:
    """Say below the traceback of a client's code where it was raised, and what such code must not do."""
    try:
        yield
    except FedsimError:
        raise
    except Exception as error:
        error.add_note(
            f"\nfedsim: raised by {function} in round {round}. A client's code is written for one client and run for"
            " many at a time: torch.where instead of `if` on a tensor, fedsim.seeds.uniform_of(local.key(), d) instead"
            " of torch.rand, no .item(), no writing into an argument. --backend loop runs one client at a time."
        )
        raise


def suggest(name: str, known: Iterable[str]) -> str:
    """The nearest known name, whatever its capitals, and all of them."""
    known = list(known)
    spelled = {each.lower(): each for each in known}
    near = difflib.get_close_matches(name.lower(), spelled, n=1)
    names = ", ".join(known) or "none"
    return f"did you mean {spelled[near[0]]!r}? Known: {names}" if near else f"known: {names}"


def how_to_install(extra: str) -> str:
    """What to type; fedsim is installed from its checkout, not from a package index."""
    return f"pip install '.[{extra}]' in a checkout of fedsim"
