"""The ledger goes back to an earlier moment, and sums, without a pass over all nodes: as one that copies everything."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from fedsim.messages.ledger import NAMES, SPARSE, Ledger, table_of
from fedsim.types import Kept
from fedsim.values import Versions

N = 6
CHARGES = st.lists(st.tuples(st.sampled_from(NAMES), st.lists(st.integers(0, N - 1), min_size=1), st.integers(0, 9)))
STEPS = st.lists(st.one_of(st.sampled_from(["settle", "undo", "mark"]), CHARGES, st.just("edges")), max_size=12)


@given(STEPS)
def test_undo_and_totals_are_those_of_copies(steps: list[Any]) -> None:
    ledger, saved, mark, at_mark = Ledger(N), None, 0, None
    saved = at_mark = ledger.snapshot()
    for step in steps:
        if step == "settle":
            ledger.settle()
            saved = at_mark = ledger.snapshot()
            mark = 0
        elif step == "mark":
            mark, at_mark = ledger.mark(), ledger.snapshot()
        elif step == "undo":
            ledger.undo(mark)
            assert all(torch.equal(at_mark[name], found) for name, found in ledger.state().items())
            ledger.undo()
            assert all(torch.equal(saved[name], found) for name, found in ledger.state().items())
            mark, at_mark = 0, saved
        elif step == "edges":
            ledger.charge_edges(np.array([0, 2, 2]), np.array([1, 1, 5]), 7)
        else:
            for name, ids, size in step:
                ledger.touch(np.array(ids))
                np.add.at(getattr(ledger, name), np.array(ids), size)
        assert list(ledger.totals().values()) == [int(each.sum()) for each in ledger.by_node().values()]


def test_a_state_of_many_nodes_holds_those_with_costs_alone() -> None:
    ledger, copy = Ledger(SPARSE + 1), Ledger(SPARSE + 1)
    ledger.touch(ids := np.array([3, SPARSE]))
    ledger.up[ids] += [5, 6]
    copy.down += 9                                         # gone when another state is restored
    copy.restore(state := ledger.snapshot())
    assert state["nodes"].tolist() == [3, SPARSE] and state["up"].tolist() == [5, 6]
    assert all(np.array_equal(a, b) for a, b in zip(ledger.by_node().values(), copy.by_node().values(), strict=True))
    assert copy.totals() == ledger.totals() and copy.totals()["bytes_up"] == 11
    assert Ledger(SPARSE).state()["up"].shape == (SPARSE,)


WRITES = st.lists(st.dictionaries(st.integers(0, 5), st.integers(), max_size=4), min_size=1, max_size=6)


@given(WRITES, st.data())
def test_memories_are_those_of_copied_dictionaries(writes: list[dict[int, int]], data: st.DataObject) -> None:
    """Every version, in whatever order they are made from each other, holds what a dictionary of its own would."""
    versions, copies = [Versions[int]({})], [dict[int, int]()]
    for new in writes:
        at = data.draw(st.integers(0, len(versions) - 1))
        versions.append(versions[at].replaced(new))
        copies.append({**copies[at], **new})
        for version, copy in zip(versions, copies, strict=True):
            assert dict(version) == copy and len(version) == len(copy)
            assert [version.get(node) for node in range(6)] == [copy.get(node) for node in range(6)]
            assert [node in version for node in range(6)] == [node in copy for node in range(6)]
    for a, of_a in zip(versions, copies, strict=True):
        for b, of_b in zip(versions, copies, strict=True):
            assert a.lacks(b) == of_b.keys() - of_a.keys()


def test_an_operand_of_kept_does_not_change() -> None:
    old = Kept(4, torch.zeros(1), {1: torch.ones(1)})
    new = old | Kept(4, torch.zeros(1), {1: torch.tensor([2.0]), 3: torch.tensor([3.0])})
    newer = new | Kept(4, torch.zeros(1), {0: torch.tensor([4.0])})
    other = new | Kept(4, torch.zeros(1), {0: torch.tensor([5.0])})
    assert [[float(kept[i]) for i in range(4)] for kept in (old, new, newer, other)] == [
        [0, 1, 0, 0], [0, 2, 0, 3], [4, 2, 0, 3], [5, 2, 0, 3],
    ]  # fmt: skip


def test_the_table_of_links_has_a_line_for_each() -> None:
    edges = np.array([[0, 99_999, 0], [0, 100_000, 2**62], [7, 3, 10]])
    assert table_of(edges) == f"from,to,bytes\n0,99999,0\n0,100000,{2**62}\n7,3,10\n"
    assert table_of(edges[:0]) == ""
