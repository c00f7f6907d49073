"""A node that tampers with everything it answers: every field of the call, every byte of a message, every record."""

from __future__ import annotations

import json
import random
import struct
from collections.abc import Callable
from typing import Any

from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord, RecordDict

from fedsim.backends.flower.protocol.calls import STYPE

VALUES: list[Any] = [
    None, True, False, 0, 1, -1, 2**53, 2**63, 10**19, 1e308, -1e-320, "", "each", "refused", "\x1b[2J", "9" * 4000,
    [], [[]], {}, {"a": {}}, [1] * 500, [[[[[]]]]],
    ["tuple"], ["float32", [-1]], ["float32", [10**19]], ["packed", 0, "float32", 3],
]  # fmt: skip
"""What a field may hold instead of what it should."""
TEXTS = [
    "", "null", "[]", "{", "NaN", '{"a": 1e999}', "[" * 20_000, '{"protocol": 2}', "9" * 5000, '"' + "a" * 70_000 + '"',
]  # fmt: skip
"""Plain values that are none."""
RECORDS: list[Callable[[bytes], Any]] = [
    lambda data: ConfigRecord({"json": "{}"}),
    lambda data: MetricRecord({"bytes": 1.0}),
    lambda data: ArrayRecord(),
    lambda data: ArrayRecord({"other": Array("uint8", (len(data),), STYPE, data)}),
    lambda data: ArrayRecord({"bytes": Array("float32", (len(data),), STYPE, data)}),
    lambda data: ArrayRecord({"bytes": Array("uint8", (2**40,), STYPE, data)}),
    lambda data: ArrayRecord({"bytes": Array("uint8", (len(data),), "numpy.ndarray", data)}),
]


class Hostile:
    """Ways to tamper with a response, drawn at random.

    Args:
        seed: of the draws.
    """

    def __init__(self, seed: int) -> None:
        self.draw = random.Random(seed)
        self.before: list[RecordDict] = []                 # honest answers, to be replayed

    def tampered(self, honest: RecordDict) -> RecordDict:
        """A response with one field, record or message changed; or an older response."""
        if self.before and self.draw.random() < 0.05:
            return self.draw.choice(self.before)
        self.before = [*self.before[-20:], honest]
        made = RecordDict(dict(honest))
        messages = [key for key in honest if key.startswith("data.")]
        way = self.draw.choice([self.field, self.text, *[self.message, self.record] * bool(messages), self.more])
        way(made, honest, messages)
        return made

    def field(self, made: RecordDict, honest: RecordDict, messages: list[str]) -> None:
        """Another value at some place of the plain values, or none."""
        values = json.loads(honest["call"]["json"])  # type: ignore[index, arg-type, call-overload]
        holder, key = self.draw.choice(list(places(values)))
        if self.draw.random() < 0.2 and isinstance(holder, dict):
            del holder[key]
        else:
            holder[key] = self.draw.choice(VALUES)
        made["call"] = ConfigRecord({"json": json.dumps(values)})

    def text(self, made: RecordDict, honest: RecordDict, messages: list[str]) -> None:
        """Plain values that are none."""
        made["call"] = ConfigRecord({"json": self.draw.choice(TEXTS)})

    def record(self, made: RecordDict, honest: RecordDict, messages: list[str]) -> None:
        """A record of another kind in a message's place."""
        name = self.draw.choice(messages)
        made[name] = self.draw.choice(RECORDS)(bytes_of(honest, name))

    def more(self, made: RecordDict, honest: RecordDict, messages: list[str]) -> None:
        """A record too many, or without a message."""
        name = self.draw.choice(["data.x", "data.UP", "data.message", "experiment", "x", "data.0"])
        made[name] = ArrayRecord({"bytes": Array("uint8", (3,), STYPE, b"abc")})
        if messages and self.draw.random() < 0.5:
            del made[self.draw.choice(messages)]

    def message(self, made: RecordDict, honest: RecordDict, messages: list[str]) -> None:
        """Bytes of a message that are changed, cut, repeated, or claim to be large."""
        name = self.draw.choice(messages)
        data = damaged(bytes_of(honest, name), self.draw)
        made[name] = ArrayRecord({"bytes": Array("uint8", (len(data),), STYPE, data)})


def damaged(data: bytes, draw: random.Random) -> bytes:
    """Bytes with a few changed, cut off, inserted, or numbers among them made large."""
    made = bytearray(data)
    for _ in range(draw.randint(1, 4)):
        at = draw.randrange(len(made) + 1)
        match draw.randrange(6):
            case 0:
                del made[at:]
            case 1:
                made[at:at] = draw.randbytes(draw.randint(1, 40))
            case 2:
                made[at : at + 4] = struct.pack("<I", draw.choice([0, 1, 2**31, 2**32 - 1, 10**7]))
            case 3:
                made[at : at + 4] = struct.pack("<f", draw.choice([float("nan"), float("inf"), 3e38, -0.0]))
            case 4:
                made[at:] = made[at:] * 2
            case _ if at < len(made):
                made[at] = draw.randrange(256)
    return bytes(made)


def places(values: Any) -> Any:
    """Yield every place in plain values: its holder, and the key there."""
    for key, value in values.items() if isinstance(values, dict) else enumerate(values):
        yield values, key
        if isinstance(value, dict | list):
            yield from places(value)


def bytes_of(records: RecordDict, name: str) -> bytes:
    """Bytes of a message."""
    return records[name]["bytes"].data  # type: ignore[index, call-overload, union-attr, return-value]
