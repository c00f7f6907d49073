"""Errors a user can act on: each message states the given value, the expected ones, and the fix."""

from __future__ import annotations

import contextlib
import difflib
import sysconfig
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any


class FedsimError(Exception):
    """Base class of fedsim's errors; the command line prints them without a traceback.

    Attributes:
        exit_code: of a command that raises it: 2 if it cannot do what was asked as it was asked, else 1.
    """

    exit_code = 1


class ConfigError(FedsimError, ValueError):
    """A setting is unknown, of the wrong type, or outside its range."""

    exit_code = 2


class MissingError(FedsimError):
    """A file, run or data set that was named is not there."""

    exit_code = 2


class DataError(FedsimError):
    """A data set is missing, or one of its files is corrupt."""


class PartitionError(FedsimError, ValueError):
    """The requested partition is not possible for this data set."""

    exit_code = 2


class ModelError(FedsimError, ValueError):
    """The model or loss cannot be trained by this engine."""

    exit_code = 2


class DivergenceError(FedsimError):
    """A client produced NaN or infinity."""


class CheckpointError(FedsimError):
    """A checkpoint is corrupt or belongs to another experiment."""


class RunError(FedsimError):
    """A run directory cannot be created, written or resumed."""


class PlaceError(RunError):
    """A file or folder cannot be written where the user has named it."""

    exit_code = 2


class MissingRunError(RunError, MissingError):
    """There is no run, or no sweep, where one was expected."""


class BusyError(RunError):
    """The run is in use by another process."""


class DeployError(FedsimError):
    """A federation of real processes cannot be started, or one of its nodes failed."""


class ClientsLostError(DeployError):
    """Participating clients do not respond; the round can be retried without them.

    Attributes:
        reasons: reason of the loss, by client.
        round: number of the round.
        asked: clients that were called, lost ones included.
    """

    def __init__(self, reasons: Mapping[int, str], round: int, asked: Iterable[int] = ()) -> None:
        self.reasons, self.round, self.asked = dict(reasons), round, {*reasons, *asked}
        super().__init__(f"round {round}: " + "; ".join(f"client {i} {why}" for i, why in sorted(reasons.items())))


class StateLostError(RunError):
    """Client memories were lost with the machine that held them; only a checkpoint can restore them."""


class RoundSkipped(FedsimError):
    """A round in which too few clients arrive: it changes nothing but costs and time."""


class RoundLostError(FedsimError):
    """A round failed through no fault of the clients' code; it can be retried."""


class BlocksLostError(RoundLostError):
    """A block of clients was too large for a device, or for the clients' code; the backend has made blocks smaller."""


class CodeError(FedsimError):
    """Code that a user wrote raised an exception: an algorithm's method, or a model."""


class ClientError(CodeError):
    """A client function raised an exception.

    Attributes:
        ids: the client, or the clients of its block.
    """

    def __init__(self, ids: list[int], function: str, round: int, error: str, traceback: str) -> None:
        which = f"client {ids[0]}" if len(ids) == 1 else f"one of the clients {', '.join(map(str, ids[:10]))}"
        super().__init__(f"{function} in round {round}: {which} raised {error}\n{traceback.rstrip()}")
        self.ids = ids


class BlockError(CodeError, ConfigError):
    """Code that runs for one client at a time cannot run for a block of clients."""

    @property
    def reason(self) -> str:
        """One line that names the code and its error."""
        return str(self).splitlines()[0]


def many(count: int, what: str) -> str:
    """Format a count with its noun: ``1 client``, ``2 clients``, ``no clients``."""
    return f"{f'{count:,}' if count else 'no'} {what}{'' if count == 1 else 's'}"


def in_bytes(count: float) -> str:
    """Format a number of bytes: ``1,234.5 MB``, ``12.3 kB``; 1 kB is 1000 bytes."""
    return f"{count / 1e6:,.1f} MB" if count >= 99_950 else f"{count / 1e3:,.1f} kB"


def title(fn: Callable[..., Any]) -> str:
    """Name of a function in error messages."""
    return getattr(fn, "__qualname__", str(fn))


@contextlib.contextmanager
def explained(place: str) -> Iterator[None]:
    """Turn exceptions of a user's code, named by ``place``, into ``CodeError`` with the lines that raised them.

    Raises:
        CodeError: the code raised an exception that is not one of fedsim's.
    """
    try:
        yield
    except FedsimError:
        raise
    except Exception as error:
        raise CodeError(f"{place} raised {in_one_line(error)}\n{lines_of(error)}") from error


def in_one_line(error: BaseException) -> str:
    """Format an exception as one line: its type, unless it is one of fedsim's, and the first line of its message."""
    first = (str(error).strip().splitlines() or [""])[0]
    return first if isinstance(error, FedsimError) else f"{type(error).__name__}: {first}"


def lines_of(error: BaseException) -> str:
    """Format the lines of the user's code that led to an exception, one on each line of text, the innermost last.

    Frames of fedsim, of PyTorch and of the standard library are left out, unless there are no others.
    """
    frames = traceback.extract_tb(error.__traceback__)
    own = [f for f in frames if not f.filename.startswith(LIBRARIES)] or frames[-1:]
    return "\n".join(f"  {f.filename}, line {f.lineno}, in {f.name}: {f.line}" for f in own[-MOST_LINES:])


LIBRARIES = (str(Path(__file__).parent), *(sysconfig.get_path(kind) for kind in ("stdlib", "purelib", "platlib")), "<")
"""Folders of code that is not the user's."""
MOST_LINES = 4
"""Lines of code in a message."""


LEAST = 3
"""Letters of a name that is looked for within others, as cnn in McMahanCNN."""
MOST_NAMES = 12
"""Names that a message lists in full."""
SOME_NAMES = 5
"""Names of a longer list in a message."""


def suggest(name: str, known: Iterable[str], also: Iterable[str] = (), see: str = "", own: str = "") -> str:
    """Suggest the closest known name, ignoring case, and what it may mean ``also``, and list the known names.

    Of a long list it has the nearest, and ``see``, a command that shows all. ``own`` stands for the user's own names.
    """
    known = list(known)
    spelled = {each.lower(): each for each in reversed(known)}
    near = difflib.get_close_matches(name.lower(), spelled, n=1)
    within = sorted((each for each in spelled if name.lower() in each), key=len) if len(name) >= LEAST else []
    near += [] if set(near) & set(within) else within[:2]
    meant = [*(repr(spelled[each]) for each in near), *also]
    if len(known) > MOST_NAMES:                            # the rest by how alike they are
        others = difflib.get_close_matches(name.lower(), spelled.keys() - near, n=SOME_NAMES, cutoff=0.0)
        known = [spelled[each] for each in (*near, *others)] + known
    names = few(dict.fromkeys(known), see, own)
    return f"did you mean {' or '.join(meant)}? Known: {names}" if meant else f"known: {names}"


def few(names: Iterable[str], see: str = "", own: str = "") -> str:
    """Format names as a list; of many the first few, the number of others, and ``see``, a command that shows all.

    ``own`` stands for names of the user's own.
    """
    names, also = list(names), [own] if own else []
    if len(names) <= MOST_NAMES:
        return ", ".join(names + also) or "none"
    others = f"and {len(names) - SOME_NAMES:,} others{see and ': '}{see}"
    return f"{', '.join(names[:SOME_NAMES] + also)}, {others}"


def how_to_install(extra: str) -> str:
    """Command that installs an extra; fedsim is installed from a checkout, not from a package index."""
    return f"pip install '.[{extra}]' in a checkout of fedsim"
