"""The byte format of messages: decode of encode, exact sizes, and no trust in what arrives."""

from __future__ import annotations

import struct
import tracemalloc
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from fedsim.messages.ledger import Ledger
from fedsim.messages.wire import decode, encode, nbytes
from fedsim.tree import tree_map

DTYPES = [
    torch.float32, torch.float64, torch.float16, torch.bfloat16,
    torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool,
]  # fmt: skip
shapes = st.lists(st.integers(0, 4), max_size=4).map(tuple)


class Pair(NamedTuple):
    """A message of two parts."""

    first: Any
    second: Any


@st.composite
def tensors(draw: st.DrawFn) -> Tensor:
    """A tensor of any known type and small shape, 0-dim and empty ones among them, now and then not contiguous."""
    dtype, shape = draw(st.sampled_from(DTYPES)), draw(shapes)
    count = int(np.prod(shape)) * torch.empty(0, dtype=dtype).element_size()
    raw = draw(st.binary(min_size=count, max_size=count))
    if dtype == torch.bool:
        raw = bytes(byte & 1 for byte in raw)
    data = torch.tensor(list(raw), dtype=torch.uint8).view(dtype).reshape(shape)
    return data.mT if data.dim() >= 2 and draw(st.booleans()) else data


trees = st.recursive(
    tensors(), lambda t: st.lists(t, max_size=3).map(tuple) | st.tuples(t, t).map(lambda p: Pair(*p)), max_leaves=6
)


def flat(tree: Any) -> list[Tensor]:
    return [tree] if isinstance(tree, Tensor) else [leaf for branch in tree for leaf in flat(branch)]


def bits(t: Tensor) -> bytes:
    """Its bytes: NaN equals itself, and 0.0 is not -0.0."""
    return t.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


@given(trees)
def test_decode_gives_what_was_encoded(tree: Any) -> None:
    sent, received = flat(tree), flat(decode(encode(tree)))
    assert len(sent) == len(received)
    for a, b in zip(sent, received, strict=True):
        assert (a.dtype, a.shape, bits(a)) == (b.dtype, b.shape, bits(b))


@given(trees)
def test_nbytes_is_the_length_of_the_encoding(tree: Any) -> None:
    assert nbytes(tree) == len(encode(tree))


@given(trees, st.integers(1, 5))
def test_nbytes_of_a_stack_is_that_of_one_row(tree: Any, c: int) -> None:
    assert nbytes(tree_map(lambda leaf: torch.stack([leaf] * c), tree), stacked=True) == nbytes(tree)


def test_the_format_is_the_documented_one() -> None:
    message = (torch.tensor([[1.0, -2.0]]), torch.tensor(7, dtype=torch.int64))
    matrix = b"\x00\x02" + struct.pack("<2I2f", 1, 2, 1.0, -2.0)
    assert encode(message) == b"\x02\xfe\x02" + matrix + b"\x04\x00" + struct.pack("<q", 7)
    assert nbytes(torch.zeros(1000)) == 1 + 2 + 4 + 4000


def test_what_was_decoded_can_be_written_to_and_is_a_copy() -> None:
    data = encode(torch.zeros(3))
    received = decode(data)
    received += 1
    assert torch.equal(decode(data), torch.zeros(3))


@given(trees, st.data())
def test_a_truncated_message_is_refused(tree: Any, data: st.DataObject) -> None:
    whole = encode(tree)
    with pytest.raises(ValueError):
        decode(whole[: data.draw(st.integers(0, len(whole) - 1))])


@given(trees, st.binary(min_size=1, max_size=20))
def test_an_over_long_message_is_refused(tree: Any, more: bytes) -> None:
    with pytest.raises(ValueError, match="over-long"):
        decode(encode(tree) + more)


def decodes_or_refuses(data: bytes) -> None:
    """A ValueError, or tensors that encode to the very same bytes."""
    try:
        received = decode(data)
    except ValueError:
        return
    assert encode(received) == data


@settings(max_examples=500)
@given(st.binary(max_size=60) | st.binary(max_size=60).map(lambda b: b"\x02" + b))
def test_arbitrary_bytes(data: bytes) -> None:
    decodes_or_refuses(data)




@settings(max_examples=300)
@given(trees, st.data())
def test_flipped_bytes(tree: Any, data: st.DataObject) -> None:
    message = bytearray(encode(tree))
    for at in data.draw(st.lists(st.integers(0, len(message) - 1), min_size=1, max_size=4)):
        message[at] = data.draw(st.integers(0, 255))
    decodes_or_refuses(bytes(message))


HEADERS = st.lists(st.sampled_from([0, 1, 2, 255, 2**16, 2**31, 2**32 - 1]), max_size=8)


@settings(max_examples=300)
@given(HEADERS, st.integers(0, 9), st.binary(max_size=16))
def test_headers_that_claim_anything(shape: list[int], code: int, payload: bytes) -> None:
    decodes_or_refuses(struct.pack(f"<3B{len(shape)}I", 2, code, len(shape), *shape) + payload)


@pytest.mark.parametrize(
    "header",
    [
        struct.pack("<3B2I", 2, 0, 2, 2**32 - 1, 2**32 - 1),
        struct.pack("<5BI", 2, 254, 255, 1, 1, 2**32 - 1),
        struct.pack("<3B255I", 2, 1, 255, *[2**32 - 1] * 255),
    ],
)
def test_a_huge_claim_costs_no_memory(header: bytes) -> None:
    tracemalloc.start()
    with pytest.raises(ValueError, match="truncated"):
        decode(header + b"\0" * 100)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 100_000


def test_an_empty_tensor_with_impossible_axes_is_refused() -> None:
    with pytest.raises(ValueError):
        decode(struct.pack("<3B3I", 2, 0, 3, 0, 2**32 - 1, 2**32 - 1))


def test_a_byte_that_is_no_truth_value_is_refused() -> None:
    with pytest.raises(ValueError):
        decode(b"\x02\x09\x00\x02")


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "version"),
        (b"\x01\x00", "version"),
        (b"\x02", "header"),
        (b"\x02\x0a\x00", "unknown dtype code 10"),
        (b"\x02\x00", "header"),
        (b"\x02\x00\x01\x00\x00", "header"),
        (b"\x02\xfe", "without its length"),
        (b"\x02" + b"\xfe\x01" * 17 + b"\x00\x00", "more than 16 within each other"),
        (b"\x02\xff\x00", "truncated"),
        (b"\x02\xff" + bytes(10), "of 0 compressors"),
    ],
)
def test_errors_say_what_is_wrong(data: bytes, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        decode(data)


def test_ledger_adds_up_and_comes_back() -> None:
    ledger = Ledger(3)
    ledger.touch(np.arange(3))
    ledger.down += [1, 2, 3]
    ledger.up += [10, 0, 0]
    ledger.gradient_evaluations += [0, 100, 100]
    assert ledger.totals() == {"bytes_down": 6, "bytes_up": 10, "paper_bits": 0, "gradient_evaluations": 200}
    saved, copy = {name: t.clone() for name, t in ledger.state().items()}, Ledger(3)
    copy.restore(saved)
    copy.touch(np.arange(3))
    copy.up += 1
    assert ledger.totals()["bytes_up"] == 10 and copy.totals()["bytes_up"] == 13
    assert all(t.dtype == torch.int64 for t in saved.values())
    assert torch.equal(saved["up"], torch.tensor([10, 0, 0]))


def test_ledger_keeps_what_travelled_over_every_link() -> None:
    ledger = Ledger(4)
    assert ledger.edges().shape == (0, 3)
    ledger.charge_edges(to=np.array([1, 0, 3]), by=np.array([0, 1, 0]), size=10)
    ledger.charge_edges(to=np.array([2, 1, 1]), by=np.array([3, 0, 2]), size=np.array([5, 6, 7]))
    expected = [[0, 1, 16], [0, 3, 10], [1, 0, 10], [2, 1, 7], [3, 2, 5]]
    assert ledger.edges().tolist() == expected
    assert ledger.up.tolist() == [26, 10, 7, 5] and ledger.down.tolist() == [10, 23, 5, 10]
    copy = Ledger(4)
    copy.restore({name: t.clone() for name, t in ledger.state().items()})
    copy.charge_edges(to=np.array([0, 0]), by=np.array([1, 1]), size=1)       # twice the same link
    assert copy.edges().tolist() == [*expected[:2], [1, 0, 12], *expected[3:]] and ledger.edges().tolist() == expected


@settings(max_examples=50)
@given(st.lists(st.lists(st.tuples(st.integers(0, 6), st.integers(0, 6), st.integers(1, 99)), max_size=12), max_size=6))
def test_links_add_up_to_nodes(calls: list[list[tuple[int, int, int]]]) -> None:
    ledger, seen = Ledger(7), dict[tuple[int, int], int]()
    for call in calls:
        by, to, size = np.array(call, np.int64).reshape(-1, 3).T
        ledger.charge_edges(to, by, size)
        for b, t, s in call:
            seen[b, t] = seen.get((b, t), 0) + s
    edges = ledger.edges()
    assert {(b, t): s for b, t, s in edges.tolist()} == seen and len(edges) == len(seen)
    assert np.bincount(edges[:, 0], edges[:, 2], 7).tolist() == ledger.up.tolist()
    assert np.bincount(edges[:, 1], edges[:, 2], 7).tolist() == ledger.down.tolist()
