"""Rows of metrics by the positions of their commas: the same as by the JSON parser, or left to it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedsim.errors import RunError
from fedsim.record.metrics import RowWriter, read_metrics
from fedsim.record.rows import MetricRows, RowParser

NUMBER = st.one_of(st.floats(allow_nan=False, allow_infinity=False), st.integers(-(10**20), 10**20), st.none())
NAME = st.text(st.characters(codec="utf-8"), max_size=6) | st.sampled_from(["loss", "server/test", "a,b", 'q"', "é"])
ROW = st.tuples(st.integers(0, 10**7), NAME, st.none() | st.integers(0, 10**9), NAME, NUMBER)


def line(round: object, scope: object, node: object, metric: object, value: object) -> bytes:
    row = {"round": round, "scope": scope, "node": node, "metric": metric, "value": value}
    return json.dumps(row).encode() + b"\n"


def parsed(block: bytes, by: str) -> MetricRows | str:
    """The rows of a block by one of the two parsers, or why it has none."""
    parser = RowParser(Path("metrics.jsonl"))
    try:
        if by == "json":
            parser._blocks.append(parser._by_json(block.split(b"\n")[:-1], 0))
        else:
            parser.add(block)
    except RunError as error:
        return str(error)
    return parser.rows()


def assert_same(block: bytes) -> None:
    one, other = parsed(block, "json"), parsed(block, "positions")
    if isinstance(one, str) or isinstance(other, str):
        assert one == other
        return
    assert one.keys == other.keys
    for first, second in zip(one[:4], other[:4], strict=True):
        np.testing.assert_array_equal(first, second)


@given(st.lists(ROW, min_size=1, max_size=8))
def test_both_parsers_agree(rows: list[tuple[object, ...]]) -> None:
    assert_same(b"".join(line(*row) for row in rows))


PLAIN = b"".join(line(t, s, n, m, v) for t, s, n, m, v in (
    (0, "server/test", None, "loss", 2.25), (1, "clients/test", 12, "f1", -1e-7), (1, "total", None, "bytes", None),
))  # fmt: skip


def test_rows_of_the_usual_form_need_no_json_parser() -> None:
    assert RowParser(Path("metrics.jsonl"))._by_positions(PLAIN) is not None


@given(st.integers(0, len(PLAIN) - 2), st.sampled_from(list(b'0123456789+-.eE,"{}: \0null\r\n\xff')))
def test_damage_is_seen_by_both_parsers(place: int, byte: int) -> None:
    assert_same(PLAIN[:place] + bytes([byte]) + PLAIN[place + 1 :])


@given(st.integers(0, len(PLAIN) - 2), st.integers(0, 5))
def test_missing_bytes_are_seen_by_both_parsers(place: int, count: int) -> None:
    assert_same(PLAIN[:place] + PLAIN[min(place + count, len(PLAIN) - 1) :])


def test_blocks_of_a_file_end_anywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    writer = RowWriter(tmp_path / "metrics.jsonl")
    for round in range(50):
        writer.add(round, "server/test", "loss" if round % 3 else "a much longer name", 1 / (1 + round), round or None)
    writer.flush()
    writer.close()
    whole = read_metrics(tmp_path / "metrics.jsonl")
    monkeypatch.setattr("fedsim.record.metrics.READ_BYTES", 100)
    for one, other in zip(whole, read_metrics(tmp_path / "metrics.jsonl"), strict=True):
        np.testing.assert_array_equal(one, other)
    assert whole.round.tolist() == list(range(50)) and whole.node[:2].tolist() == [-1, 1]
    assert whole.value.tolist() == [1 / (1 + round) for round in range(50)]
