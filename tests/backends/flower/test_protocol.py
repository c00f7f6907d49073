"""Nothing that arrives is trusted: every malformed message is refused, by name, and nothing else happens."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord, RecordDict
from hypothesis import given
from hypothesis import strategies as st

from fedsim.backends.flower.protocol.calls import Call, Encoder, RefusedError, experiment_of, from_records, to_records
from fedsim.messages import wire

CALL = Call("each", {"round": 3, "alive": ["1.2.0"], "memory": None}, {"down": b"abc", "shared-0": b""})


def test_a_call_arrives_as_it_was_made() -> None:
    records = Encoder('{"a": 1}').records(CALL)
    assert from_records(records, 3) == CALL
    assert experiment_of(records) == '{"a": 1}'


def test_what_calls_share_is_one_record() -> None:
    """Flower sends a record once, however many messages hold it."""
    encoder, data = Encoder("{}"), bytes(1000)
    one, other = (encoder.records(Call("each", {"client": i}, {"down": data})) for i in range(2))
    assert one["data.down"] is other["data.down"] and one["experiment"] is other["experiment"]


def test_size_is_limited() -> None:
    with pytest.raises(RefusedError, match=r"more than 2 bytes \(3 so far\); refused as oversized"):
        from_records(to_records(CALL), 2)


def changed(**records: Any) -> RecordDict:
    made = to_records(CALL)
    for key, record in records.items():
        made[key.replace("_", ".")] = record
    return made


def text(json: str) -> ConfigRecord:
    return ConfigRecord({"json": json})


def arrays(**parts: Any) -> ArrayRecord:
    usual = {"dtype": "uint8", "shape": (1,), "stype": "fedsim.wire", "data": b"a"}
    return ArrayRecord({"bytes": Array(**{**usual, **parts})})


@pytest.mark.parametrize(
    ("records", "why"),
    [
        (RecordDict(), "needs a record 'call'"),
        (changed(call=MetricRecord({"a": 1})), "needs a record 'call'"),
        (changed(call=ConfigRecord({"json": 3})), "needs a record 'call'"),
        (changed(call=text("{")), "the call is not JSON"),
        (changed(call=text("[1]")), "the call is a list; expected a JSON object"),
        (changed(call=text('{"a": NaN}')), "the call is not JSON"),
        (changed(call=text("[" * 10**5)), "the call is not JSON"),
        (changed(call=text('{"protocol": 1, "verb": "each"}')), "protocol version is not 2"),
        (changed(call=text('{"protocol": 2, "verb": "eval"}')), "the verb is 'eval'"),
        (changed(call=text('{"protocol": 2, "verb": "' + "a" * 2**20 + '"}')), "1,048,576 bytes at most"),
        (changed(more=text("{}")), "holds a record 'more'"),
        (changed(data_UP=arrays()), "holds a record 'data.UP'"),
        (changed(data_x=text("{}")), "not a record of one array"),
        (changed(data_x=ArrayRecord()), "not a record of one array"),
        (changed(data_x=arrays(stype="numpy.ndarray")), "of kind 'numpy.ndarray'"),
        (changed(data_x=arrays(dtype="float32")), r"float32\[1\]"),
        (changed(data_x=arrays(shape=(2,))), r"uint8\[2\] .* in 1 bytes"),
    ],
    ids=range(17),
)  # fmt: skip
def test_malformed_messages_are_refused(records: RecordDict, why: str) -> None:
    with pytest.raises(RefusedError, match=why):
        from_records(records, 100)


@given(st.dictionaries(st.sampled_from(["call", "experiment", "data.down", "data.a b", "x"]), st.text(max_size=40)))
def test_any_text_is_refused(texts: dict[str, str]) -> None:
    records = RecordDict({key: ConfigRecord({"json": value}) for key, value in texts.items()})
    with pytest.raises(RefusedError):
        from_records(records, 100)


@given(st.binary(max_size=60))
def test_any_bytes_are_carried_and_their_meaning_is_checked_later(data: bytes) -> None:
    (found,) = from_records(to_records(Call("each", {}, {"down": data})), 60).data.values()
    assert found == data
    try:
        tree = wire.decode(data)
    except ValueError:
        return
    assert isinstance(tree, torch.Tensor | tuple)
