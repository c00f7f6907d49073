"""Wire format of calls and responses in Flower's records, and their validation on arrival.

A call is a verb, plain values as JSON, and messages as bytes (``fedsim.messages.wire``). In Flower's terms:

    records["experiment"]     ConfigRecord {"json": the experiment}                          same for all: sent once
    records["call"]           ConfigRecord {"json": {"protocol": 1, "verb": "each", ...}}
    records["data.NAME"]      ArrayRecord {"bytes": Array of the message NAME}               same bytes: sent once

Nothing received is executed or unpickled: verbs and client functions are names that the receiver looks up.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, TypeGuard

from fedsim.errors import DeployError, how_to_install

try:
    from flwr.app import Array, ArrayRecord, ConfigRecord, RecordDict
except ImportError as error:
    raise DeployError(f"deployment needs Flower ({error}); {how_to_install('flower')}") from error

PROTOCOL = 2
STYPE = "fedsim.wire"
VERBS = {"hello": "query", "value": "query", "forget": "query", "each": "train", "mix": "train", "score": "evaluate"}
"""Verbs of calls to a node, and their type of Flower message."""
LARGEST_CONFIG = 2**20
"""Largest plain values of a call, in bytes."""
LARGEST_RESPONSE = 2**16
"""Largest plain values of a response, in bytes."""
MOST_COUNTED = 2**40
"""Largest number of samples or gradients that a node may report."""
LARGEST_EXPERIMENT = 2**24
"""Largest experiment, with the names and units of the features of its data, in bytes."""
DIGITS = 20
"""Largest number of digits in an integer, as in 2**64."""
DATA_NAME = re.compile(r"[a-z0-9_-]{1,80}")


@dataclass(frozen=True)
class Call:
    """A call to a node, or its response.

    Attributes:
        verb: of the call; a response has the same, or "refused".
        values: plain values.
        data: messages as bytes, by name.
    """

    verb: str
    values: Mapping[str, Any] = field(default_factory=dict)
    data: Mapping[str, bytes] = field(default_factory=dict)

    def nbytes(self) -> int:
        """Total size of its messages in bytes."""
        return sum(map(len, self.data.values()))


class RefusedError(DeployError):
    """A received call or response is refused. The text goes back to its sender, and has nothing of the refuser's data.

    Attributes:
        detail: more for the log of this side alone.
    """

    def __init__(self, text: str, detail: object = "") -> None:
        super().__init__(text)
        self.detail = str(detail)


class Encoder:
    """Encoder of calls as Flower records; equal bytes in several calls share one record, which Flower sends once."""

    def __init__(self, experiment: str) -> None:
        self._experiment = ConfigRecord({"json": experiment})
        self._arrays: dict[bytes, ArrayRecord] = {}

    def records(self, call: Call) -> RecordDict:
        """Encode a call, experiment included."""
        return to_records(call, self._array, self._experiment)

    def _array(self, data: bytes) -> ArrayRecord:
        if data not in self._arrays:
            self._arrays[data] = array(data)
        return self._arrays[data]

    def forget(self) -> None:
        """Release the shared records of the last exchange."""
        self._arrays.clear()


def array(data: bytes) -> ArrayRecord:
    """Wrap bytes in a record, without a header or a second encoding."""
    return ArrayRecord({"bytes": Array("uint8", (len(data),), STYPE, data)})


def to_records(call: Call, make: Any = array, experiment: ConfigRecord | None = None) -> RecordDict:
    """Encode a call or a response as records."""
    text = json.dumps({**call.values, "protocol": PROTOCOL, "verb": call.verb}, allow_nan=False)
    records = RecordDict({"call": ConfigRecord({"json": text})})
    if experiment is not None:
        records["experiment"] = experiment
    for name, data in call.data.items():
        records[f"data.{name}"] = make(data)
    return records


def from_records(records: RecordDict, largest: int, longest: int = LARGEST_CONFIG) -> Call:
    """Decode and validate a call or a response with at most ``largest`` bytes of messages and ``longest`` of values.

    Raises:
        RefusedError: it is malformed, of another protocol version, or too large.
    """
    values = parsed(_text(records, "call", longest), "call")
    if values.pop("protocol", None) != PROTOCOL:
        raise RefusedError(f"a message whose protocol version is not {PROTOCOL}; install the same fedsim on both ends")
    verb = values.pop("verb", None)
    if not isinstance(verb, str) or verb not in {*VERBS, "refused"}:
        raise RefusedError(f"the verb is {verb!r:.80}; expected one of {', '.join(VERBS)}")
    data, total = {}, 0
    for key in records:
        kind, _, name = key.partition(".")
        if key in ("call", "experiment"):
            continue
        if kind != "data" or not DATA_NAME.fullmatch(name):
            raise RefusedError(f"a message holds a record {key!r:.80}; expected call, experiment and data.NAME")
        data[name] = _bytes(records[key], name)
        total += len(data[name])
        if total > largest:
            raise RefusedError(f"a message of more than {largest:,} bytes ({total:,} so far); refused as oversized")
    return Call(verb, values, data)


def experiment_of(records: RecordDict) -> str:
    """Extract the experiment of a call, as JSON."""
    return _text(records, "experiment", LARGEST_EXPERIMENT)


def _text(records: RecordDict, record: str, largest: int) -> str:
    found = records.get(record)
    text = found.get("json") if isinstance(found, ConfigRecord) else None
    if not isinstance(text, str) or len(text) > largest:
        raise RefusedError(f"a message needs a record {record!r} that holds text of {largest:,} bytes at most")
    return text


def parsed(text: str, what: str) -> dict[str, Any]:
    """Parse a received JSON object; raise RefusedError for anything else."""
    try:
        values = json.loads(text, parse_constant=_no_constant, parse_int=_whole)
    except (ValueError, RecursionError) as error:
        raise RefusedError(f"the {what} is not JSON: {error}") from None
    if not isinstance(values, dict):
        raise RefusedError(f"the {what} is a {type(values).__name__}; expected a JSON object")
    return values


def _whole(text: str) -> int:
    if len(text) > DIGITS:
        raise ValueError(f"a whole number of {len(text)} digits")
    return int(text)


def is_count(value: object) -> TypeGuard[int]:
    """Check for a valid number of samples: an integer, 1 or more, that sums without overflow."""
    return isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= MOST_COUNTED


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


def _bytes(record: object, name: str) -> bytes:
    if not isinstance(record, ArrayRecord) or list(record) != ["bytes"]:
        raise RefusedError(f"data {name!r} is not a record of one array")
    found = record["bytes"]
    if found.stype != STYPE or found.dtype != "uint8" or tuple(found.shape) != (len(found.data),):
        raise RefusedError(
            f"data {name!r} is {found.dtype}{list(found.shape)} of kind {found.stype!r:.40} in {len(found.data)} bytes;"
            f" expected uint8 of kind {STYPE!r}"
        )
    return found.data
