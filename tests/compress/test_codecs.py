"""Bytes: golden messages, lengths of codewords, sizes known beforehand, and messages that nobody sent."""

from __future__ import annotations

import contextlib
import math
import time
import tracemalloc
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fedsim.compress import QSGD, Blockwise, RandK, Sign, TopK, bits, elias, indices, levels
from fedsim.compress.reader import Reader, varint, varint_size
from tests.compress.cases import COMPRESSORS, SHAPES, At, D, vector

GOLDEN = {  # x[1] = 1.5, x[4] = -2, x[9] = 0.25 of d = 10; bits and bytes without the header
    "packed": (108, "1493fc00000c00000003e8000000"),
    "bitmap": (106, "484ff00000300000000fa0000000"),
    "gamma": (107, "4ca7f800001800000007d0000000"),
    "delta": (109, "4569fe00000600000001f4000000"),
    "omega": (108, "9aa3fc00000c00000003e8000000"),
}  # fmt: skip
LENGTHS = {
    "gamma": (1, 3, 3, 5, 5, 7, 7, 9, 9, 11, 13, 19, 39),
    "delta": (1, 4, 4, 5, 5, 8, 8, 9, 9, 10, 11, 16, 28),
    "omega": (1, 3, 3, 6, 6, 7, 7, 11, 11, 12, 13, 17, 31),
}
NUMBERS = (1, 2, 3, 4, 7, 8, 15, 16, 31, 32, 100, 1000, 10**6)
DTYPES = [torch.float32, torch.float64]


@pytest.mark.parametrize("code", indices.CODES)
def test_golden_sparse_message(code: Any) -> None:
    compressor = TopK(k=3, code=code)
    parts = torch.tensor([1, 4, 9]), torch.tensor([1.5, -2.0, 0.25])
    data = compressor.encode(parts, 10)
    size, message = GOLDEN[code]
    assert data[0] == indices.CODES.index(code) and data[1] == 3
    assert data[2:].hex() == message and len(message) // 2 == math.ceil(size / 8)
    index, values = compressor.decode(data, 10, torch.float32)
    assert index.tolist() == [1, 4, 9] and values.tolist() == [1.5, -2.0, 0.25]
    sizes = indices.sizes(parts[0], 10)
    assert int(sizes[indices.CODES.index(code)]) + 3 * 32 == size


def test_golden_levels() -> None:
    parts = torch.tensor(2.0), torch.tensor([0, 1, -2, 0, 3], dtype=torch.int8)
    fixed, elias_coded = (QSGD(4, code=code).encode(parts, 5) for code in levels.CODES)
    assert fixed.hex() == "00" + "4000000001a030"
    assert elias_coded.hex() == "01" + "03" + "40000000832300"
    for code, data in zip(levels.CODES, (fixed, elias_coded), strict=True):
        norm, level = QSGD(4, code=code).decode(data, 5, torch.float32)
        assert float(norm) == 2 and level.tolist() == [0, 1, -2, 0, 3] and level.dtype == torch.int8


@pytest.mark.parametrize("code", LENGTHS)
def test_lengths_of_codewords(code: Any) -> None:
    n = np.array(NUMBERS)
    assert tuple(elias.code_lengths(torch.from_numpy(n))[code].tolist()) == LENGTHS[code]
    assert tuple(elias.codewords(n, code)[1].tolist()) == LENGTHS[code]


@pytest.mark.parametrize("code", LENGTHS)
@given(st.lists(st.integers(1, 2**32 - 1) | st.integers(1, 40), max_size=60))
@settings(max_examples=60)
def test_codewords_are_read_back(code: Any, numbers: list[int]) -> None:
    n = np.array(numbers, np.int64)
    packed = bits.pack(*elias.codewords(n, code))
    assert packed.size == int(elias.code_lengths(torch.from_numpy(n))[code].sum())
    values, end = elias.read(bits.padded(packed.data.tobytes()), 0, packed.size, len(n), code)
    assert values.tolist() == numbers and end == packed.size


@pytest.mark.parametrize("code", LENGTHS)
def test_codewords_across_the_stretches_that_are_read_at_a_time(code: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(elias, "STRIDE", 100)
    monkeypatch.setattr(bits, "BLOCK", 7)
    n = np.random.default_rng(0).geometric(1e-3, 5000)
    packed = bits.pack(*elias.codewords(n, code))
    assert (elias.read(bits.padded(packed.data.tobytes()), 0, packed.size, len(n), code)[0] == n).all()


@given(st.lists(st.tuples(st.integers(1, 64), st.integers(0, 2**64 - 1)), max_size=80), st.binary(max_size=5))
@settings(max_examples=100)
def test_packing_against_text(words: list[tuple[int, int]], tail: bytes) -> None:
    text = "".join(format(value % 2**length, f"0{length}b") for length, value in words)
    codes = np.array([value % 2**length for length, value in words], np.uint64)
    packed = bits.pack(codes, np.array([length for length, _ in words], np.int64))
    whole = text + "".join(format(byte, "08b") for byte in tail)
    whole += "0" * (-len(whole) % 8)
    assert packed.size == len(text)
    assert bits.join(packed, tail) == int(whole or "0", 2).to_bytes(len(whole) // 8, "big")
    assert bits.cut(bits.padded(bits.join(packed, tail)), packed.size, len(tail)) == tail


@pytest.mark.parametrize("width", [0, 1, 2, 3, 7, 8, 9, 16, 24, 31, 32])
@pytest.mark.parametrize("count", [0, 1, 5, 64, 1000])
def test_numbers_of_fixed_width(width: int, count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    numbers = np.random.default_rng(width).integers(0, 2**width, count)
    monkeypatch.setattr(bits, "BLOCK", 512)
    packed = bits.pack_fixed(numbers, width)
    text = "".join(format(n, f"0{width}b") for n in numbers.tolist() if width)
    assert packed.size == len(text) == width * count
    assert "".join(format(byte, "08b") for byte in packed.data.tolist())[: len(text)] == text
    assert (bits.fixed(bits.padded(packed.data.tobytes()), 0, count, width) == numbers).all()


@pytest.mark.parametrize(
    ("d", "expected"),
    [(1, 0), (2, 1), (10, 4), (68, 7), (112, 7), (123, 7), (300, 9), (1000, 10), (1025, 11), (11_173_962, 24)],
)
def test_bits_of_an_index(d: int, expected: int) -> None:
    assert indices.index_bits(d) == expected


@pytest.mark.parametrize(
    ("d", "k", "packed", "bitmap"),
    [(1000, 10, 420, 1320), (2**20, 1024, 53_248, 2**20 + 32 * 1024), (11_173_962, 111_739, 6_257_384, 14_749_610)],
)
def test_sizes_of_known_messages(d: int, k: int, packed: int, bitmap: int) -> None:
    index = torch.from_numpy(np.sort(np.random.default_rng(0).choice(d, k, replace=False)))
    sizes = indices.sizes(index, d) + 32 * k
    assert sizes[:2].tolist() == [packed, bitmap]
    assert sizes[2:].max() < packed or d == 1000, "gaps of a long vector are short"


def test_the_shortest_code_is_chosen() -> None:
    every = {c: len(TopK(k=40, code=c).encode((torch.arange(40), torch.ones(40)), 4000)) for c in indices.CODES}
    shortest = TopK(k=40).encode((torch.arange(40), torch.ones(40)), 4000)
    assert len(shortest) == min(every.values()) and shortest[0] == indices.CODES.index("gamma")
    assert TopK(k=1).encode((torch.tensor([3999]), torch.ones(1)), 4000)[0] == indices.CODES.index("packed")
    odd = torch.arange(1, 40, 2)
    assert TopK(k=20).encode((odd, torch.ones(20)), 40)[0] == indices.CODES.index("bitmap")
    assert QSGD(1).encode((torch.tensor(1.0), torch.ones(99, dtype=torch.int8)), 99)[0] == 0
    assert QSGD(1).encode((torch.tensor(1.0), torch.eye(99)[3].to(torch.int8)), 99)[0] == 1


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", COMPRESSORS)
def test_a_message_is_read_back_bit_for_bit_and_weighs_what_was_said(name: str, dtype: torch.dtype) -> None:
    compressor = COMPRESSORS[name]
    sent = [compressor.compress(vector(seed, dtype=dtype), At(seed)) for seed in range(6)]
    sent.append(compressor.compress(torch.zeros(D, dtype=dtype), At()))
    stack = tuple(torch.stack(rows) for rows in zip(*(packed.parts for packed in sent), strict=True))
    sizes, unpacked = compressor.nbytes(stack, D), compressor.unpack(stack, D)
    assert sizes.dtype == torch.int64 and sizes.shape == (7,)
    for i, packed in enumerate(sent):
        data = compressor.encode(packed.parts, D)
        assert len(data) == int(sizes[i]) == int(compressor.nbytes(packed.parts, D))
        parts = compressor.decode(data, D, dtype)
        assert [p.dtype for p in parts] == [p.dtype for p in packed.parts]
        read = compressor.unpack(parts, D)
        assert read.dtype == dtype and read.shape == (D,)
        assert read.numpy().tobytes() == packed.unpack().numpy().tobytes() == unpacked[i].numpy().tobytes()
        assert compressor.encode(parts, D) == data


@pytest.mark.parametrize("name", COMPRESSORS)
def test_vectors_of_few_numbers(name: str) -> None:
    compressor = COMPRESSORS[name]
    for d in (1, 2, 7, 8, 9, 65):
        at, x = At(shapes=(torch.Size([2, d // 2]), torch.Size([d % 2]))), vector(d, d)
        if getattr(compressor, "k", None) is not None and compressor.k > d:
            continue
        packed = compressor.compress(x, at)
        data = compressor.encode(packed.parts, d)
        assert len(data) == int(compressor.nbytes(packed.parts, d))
        read = compressor.unpack(compressor.decode(data, d, x.dtype), d)
        assert read.numpy().tobytes() == packed.unpack().numpy().tobytes()


@pytest.mark.parametrize(("s", "fixed"), [(1, 2080), (4, 4128), (16, 6176), (31, 6176)])
def test_sizes_of_qsgd(s: int, fixed: int) -> None:
    """n = 1024: bits of the fixed code, which the elias code undercuts for normal numbers."""
    x = torch.randn(1024, generator=torch.Generator().manual_seed(1))
    plain, elias_coded = (QSGD(s, code=code).compress(x, At(1)) for code in levels.CODES)
    assert 8 * (int(plain.by.nbytes(plain.parts, 1024)) - 1) == int(plain.by.paper_bits(plain.parts, 1024)) == fixed
    assert int(elias_coded.by.nbytes(elias_coded.parts, 1024)) < 0.6 * fixed / 8


@pytest.mark.parametrize("name", COMPRESSORS)
@given(st.data())
@settings(max_examples=40)
def test_bytes_that_nobody_sent(name: str, data: st.DataObject) -> None:
    """A ValueError, or a message that has exactly these bytes."""
    compressor = COMPRESSORS[name]
    true = compressor.encode(compressor.compress(vector(1), At()).parts, D)
    kind = data.draw(st.sampled_from(["random", "cut", "longer", "flipped"]))
    if kind == "random":
        bad = data.draw(st.binary(max_size=200))
    elif kind == "cut":
        bad = true[: data.draw(st.integers(0, len(true) - 1))]
    elif kind == "longer":
        bad = true + data.draw(st.binary(min_size=1, max_size=9))
    else:
        at = data.draw(st.integers(0, 8 * len(true) - 1))
        bad = bytearray(true)
        bad[at // 8] ^= 1 << at % 8
        bad = bytes(bad)
    try:
        parts = compressor.decode(bad, D, torch.float32)
    except ValueError:
        return
    assert kind in ("random", "flipped"), "a message that is cut or too long has been accepted"
    assert torch.isfinite(compressor.unpack(parts, D)).all() or not name.startswith("top")
    again = compressor.encode(parts, D)
    assert again == bad or (len(again) <= len(bad) and "shortest" in repr(compressor)), "of several codes the shortest"


@pytest.mark.parametrize(
    ("compressor", "data", "words"),
    [
        (TopK(k=3), bytes([7, 3]) + bytes(12), "selector"),
        (TopK(k=3), bytes([0]) + b"\xff\xff\xff\xff\x0f", "number of values"),
        (TopK(k=3), bytes([0, 0x83, 0]) + bytes(20), "misspelt"),
        (TopK(k=3), bytes.fromhex("0003") + bytes.fromhex("1493fc00000c00000003e8000001"), "not zero"),
        (TopK(k=3), bytes.fromhex("0003") + bytes.fromhex("1413fc00000c00000003e8000000"), "ascend"),
        (TopK(k=3), bytes.fromhex("0003") + bytes.fromhex("14a3fc00000c00000003e8000000"), "reach 10"),
        (TopK(k=3), bytes.fromhex("0003") + bytes.fromhex("1497fc00000c00000003e8000000"), "NaN or infinity"),
        (TopK(k=2), bytes.fromhex("0003") + bytes.fromhex("1493fc00000c00000003e8000000"), "sends 2 of 10"),
        (TopK(k=3), bytes.fromhex("0103") + bytes.fromhex("684ff00000300000000fa0000000"), "bitmap of 4"),
        (TopK(k=3), bytes([2, 3]) + bytes(30), "gamma codeword"),
        (RandK(k=3), bytes(19), "truncated"),
        (QSGD(4), bytes.fromhex("00c000000001a030"), "norm below 0"),
        (QSGD(2), bytes.fromhex("00400000006000"), "level above 2"),
        (QSGD(4), bytes.fromhex("004000000081a030"), "minus 0"),
    ],
)
def test_errors_say_what_is_wrong(compressor: Any, data: bytes, words: str) -> None:
    d = 5 if isinstance(compressor, QSGD) else 10
    with pytest.raises(ValueError, match=words):
        compressor.decode(data, d, torch.float32)


@pytest.mark.parametrize("name", ["top 3", "top of signs", "rand 3", "threshold", "QSGD", "natural", "SVD", "fp16"])
def test_hostile_messages_cost_little(name: str) -> None:
    """5 kB, with every selector and large counts in front: an error soon, within the memory of some vectors."""
    compressor, d = COMPRESSORS[name], 10**6
    for selector in range(5):
        for count in (b"", varint(1000), varint(10**6), varint(2**32 - 1)):
            for filling in (b"\x00", b"\xff", b"\x55"):
                tracemalloc.start()
                begin = time.process_time()
                with contextlib.suppress(ValueError):
                    compressor.decode(bytes([selector]) + count + 5000 * filling, d, torch.float32)
                assert time.process_time() - begin < 1 and tracemalloc.get_traced_memory()[1] < 20 * d
                tracemalloc.stop()


def test_what_is_not_finite_or_of_another_type_is_not_sent() -> None:
    with pytest.raises(ValueError, match="NaN or infinity"):
        TopK(k=1).encode((torch.tensor([0]), torch.tensor([math.inf])), 10)
    with pytest.raises(ValueError, match="float16"):
        COMPRESSORS["identity"].decode(bytes(20), 10, torch.float16)


@given(st.integers(0, 2**32 - 1))
def test_varint(n: int) -> None:
    data = varint(n)
    assert Reader(data).varint("n", 2**32 - 1) == n and len(data) == int(varint_size(torch.tensor(n)))


@pytest.mark.parametrize("code", ("shortest", *indices.CODES))
@given(st.sets(st.integers(0, 9999), min_size=1, max_size=50), st.integers(10_000, 100_000))
@settings(max_examples=30)
def test_size_of_a_sparse_message(code: Any, held: set[int], d: int) -> None:
    parts = torch.tensor(sorted(held)), torch.rand(len(held))
    compressor = TopK(k=len(held), code=code)
    data = compressor.encode(parts, d)
    assert len(data) == int(compressor.nbytes(parts, d))
    assert all(torch.equal(a, b) for a, b in zip(compressor.decode(data, d, torch.float32), parts, strict=True))


@pytest.mark.parametrize("code", ("shortest", *levels.CODES))
@given(st.lists(st.integers(-300, 300) | st.just(0), min_size=1, max_size=60))
@settings(max_examples=30)
def test_size_of_a_message_of_levels(code: Any, level: list[int]) -> None:
    parts = torch.tensor(1.5, dtype=torch.float64), torch.tensor(level, dtype=torch.int16)
    compressor = QSGD(300, code=code)
    data = compressor.encode(parts, len(level))
    assert len(data) == int(compressor.nbytes(parts, len(level)))
    assert compressor.decode(data, len(level), torch.float64)[1].tolist() == level


def test_papers_count_32_bits_for_a_value() -> None:
    x, at = vector(0), At()
    count = {name: int(c.paper_bits(c.compress(x, at).parts, D)) for name, c in COMPRESSORS.items()}
    assert count["identity"] == count["top all"] == 32 * D and count["top 3"] == count["rand 3"] == 96
    assert count["sign"] == 32 + D and count["natural"] == 9 * D and count["QSGD fixed"] == 32 + 2 * D
    assert count["QSGD"] == 32 + 4 * D, "5 levels from 0 to 4 need 3 bits and a sign"
    assert count["natural dithering linf"] == 32 + 3 * D
    kept = sum(math.ceil(8 * math.prod(shape) / D) for shape in SHAPES)
    assert count["top by layer"] == 32 * kept


@pytest.mark.parametrize("d", [57, 60, 5])
def test_blocks_that_are_written_at_once_are_messages_one_after_another(d: int) -> None:
    """Of 19 signs each, and a rest; lengths that differ are refused, as are messages of another length."""
    blocks, inner = Blockwise(Sign(), 19), Sign()
    x = vector(0, d)
    packed, of_each = blocks.compress(x, At()), [inner.compress(x[i : i + 19], At()) for i in range(0, d, 19)]
    messages = [inner.encode(one.parts, min(19, d - 19 * i)) for i, one in enumerate(of_each)]
    data = blocks.encode(packed.parts, d)
    assert data == b"".join(varint(len(message)) + message for message in messages)
    read = blocks.decode(data, d, torch.float32)
    assert all(torch.equal(*pair) for pair in zip(read, packed.parts, strict=True))
    start = b"".join(varint(len(message)) + message for message in messages[:-1])
    for wrong in (varint(9) + bytes(9), varint(4) + bytes(4), b"\x87\x00" + messages[-1], b""):
        with pytest.raises(ValueError):
            blocks.decode(start + wrong, d, torch.float32)
