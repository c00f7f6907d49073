"""Randomness: the published vectors of Philox, uniform draws and shuffles, and streams that do not meet."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from fedsim import seeds

CONFIDENCE = 1e-6
"""Chance that a perfect generator would fail a statistical test below. The draws are fixed: pass once, pass always."""

ONES = 0xFFFFFFFF
KNOWN_ANSWERS = [                  # Random123's kat_vectors for philox4x32-10: counter, key, output
    ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    ((ONES, ONES, ONES, ONES), (ONES, ONES), (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
    (
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        (0xA4093822, 0x299F31D0),
        (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
    ),
]  # fmt: skip


@pytest.mark.parametrize(("counter", "key", "output"), KNOWN_ANSWERS)
def test_known_answers(counter: tuple[int, ...], key: tuple[int, int], output: tuple[int, ...]) -> None:
    words = [np.array([word], np.uint64) for word in counter]
    assert tuple(int(word[0]) for word in seeds.philox(key, *words)) == output


def test_known_answers_all_at_once() -> None:
    """Vectorised over counters, each stays its own."""
    key = KNOWN_ANSWERS[0][1]
    words = [np.array([0, 5, 0], np.uint64) for _ in range(4)]
    got = np.array(seeds.philox(key, *words))
    assert tuple(got[:, 0]) == tuple(got[:, 2]) == KNOWN_ANSWERS[0][2]
    assert tuple(got[:, 1]) != tuple(got[:, 0])


def test_every_coordinate_of_a_draw_matters() -> None:
    """Neither seed, purpose, round, node, index nor epoch may be dropped, nor two of them be exchangeable."""
    base: dict[str, Any] = {"seed": 1, "purpose": "a", "round": 2, "node": 3, "index": 4, "epoch": 5}
    draws = {int(seeds.bits(**base))}
    for name, value in (("seed", 9), ("purpose", "b"), ("round", 9), ("node", 9), ("index", 9), ("epoch", 9)):
        draws.add(int(seeds.bits(**{**base, name: value})))
    numbers = ("round", "node", "index", "epoch")
    for i, one in enumerate(numbers):
        for other in numbers[:i]:
            draws.add(int(seeds.bits(**{**base, one: base[other], other: base[one]})))
    assert len(draws) == 1 + 6 + 6


def test_draws_do_not_depend_on_their_company() -> None:
    nodes, index = np.arange(50), np.arange(20)
    table = seeds.bits(3, "x", 4, nodes[:, None], index[None])
    assert table.shape == (50, 20) and table.dtype == np.uint64
    assert table[17, 11] == seeds.bits(3, "x", 4, 17, 11) == seeds.bits(3, "x", 4, np.array([2, 17]), 11)[1]


def test_draws_are_what_they_were() -> None:
    """Golden: runs that were recorded can be repeated with later versions."""
    assert int(seeds.bits(7, "minibatch", 1, 2, 3, 4)) == 0xBA28762E6EE9BA1A
    (order,) = seeds.shuffles(7, "minibatch", 1, np.array([2]), np.array([6]), np.array([1]))
    assert order.tolist() == [[4, 3, 1, 2, 0, 5]]


def test_uniform_is_uniform_and_below_one() -> None:
    draws = seeds.uniform(0, "u", 1, np.arange(300)[:, None], np.arange(200)[None]).ravel()
    assert draws.dtype == np.float64 and draws.min() >= 0 and draws.max() < 1
    assert stats.kstest(draws, "uniform").pvalue > CONFIDENCE
    low_bits = (draws * 2.0**53).astype(np.uint64) & np.uint64(0xFF)
    assert stats.chisquare(np.bincount(low_bits.astype(int), minlength=256)).pvalue > CONFIDENCE


def test_neighbouring_streams_are_not_correlated() -> None:
    numbers = np.arange(4000)
    series = [seeds.uniform(0, "u", 1, numbers), seeds.uniform(0, "u", 1, 0, numbers)]
    series += [seeds.uniform(0, "u", 2, numbers), seeds.uniform(1, "u", 1, numbers)]
    series += [np.array([float(seeds.uniform(0, "u", t, 0)) for t in range(4000)])]
    for i, a in enumerate(series):
        assert stats.pearsonr(a[1:], a[:-1]).pvalue > CONFIDENCE
        for b in series[:i]:
            assert stats.pearsonr(a, b).pvalue > CONFIDENCE


CLIENT = st.tuples(st.integers(0, 10**6), st.integers(1, 40), st.integers(0, 4))     # node, size, epochs


@settings(max_examples=50)
@given(st.lists(CLIENT, max_size=8, unique_by=lambda c: c[0]), st.integers(0, 2**64), st.integers(0, 10**6))
def test_shuffles_are_permutations(clients: list[tuple[int, int, int]], seed: int, round: int) -> None:
    nodes, sizes, epochs = np.array(clients, np.int64).reshape(-1, 3).T
    orders = seeds.shuffles(seed, "s", round, nodes, sizes, epochs)
    assert len(orders) == len(clients)
    for (node, size, repeats), order in zip(clients, orders, strict=True):
        assert order.shape == (repeats, size)
        assert (np.sort(order, 1) == np.arange(size)).all()
        (alone,) = seeds.shuffles(seed, "s", round, np.array([node]), np.array([size]), np.array([repeats]))
        np.testing.assert_array_equal(order, alone)


def test_a_longer_run_of_epochs_begins_like_a_shorter_one() -> None:
    long, short = (seeds.shuffles(1, "s", 2, np.array([3]), np.array([30]), np.array([e]))[0] for e in (5, 2))
    np.testing.assert_array_equal(long[:2], short)
    assert len({tuple(order) for order in long}) == 5


def test_every_order_is_as_likely() -> None:
    """All 24 orders of four samples, over nodes and over epochs."""
    over_epochs = seeds.shuffles(0, "s", 1, np.array([0]), np.array([4]), np.array([12_000]))[0]
    over_nodes = seeds.shuffles(0, "s", 1, np.arange(12_000), np.full(12_000, 4), np.ones(12_000, np.int64))
    for orders in (over_epochs, np.concatenate(over_nodes)):
        counts = np.unique(orders @ [64, 16, 4, 1], return_counts=True)[1]
        assert len(counts) == 24
        assert stats.chisquare(counts).pvalue > CONFIDENCE


def test_every_sample_is_as_likely_at_every_place() -> None:
    orders = seeds.shuffles(0, "s", 2, np.array([5]), np.array([50]), np.array([2000]))[0]
    for place in (0, 1, 25, 49):
        assert stats.chisquare(np.bincount(orders[:, place], minlength=50)).pvalue > CONFIDENCE


def test_draws_of_a_key_do_not_depend_on_how_many_are_made_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    keys = torch.tensor([1, -2])
    whole = seeds.uniform_of(keys, 1001)
    monkeypatch.setattr(seeds, "_BLOCK", 64)
    assert torch.equal(seeds.uniform_of(keys, 1001), whole)
    assert torch.equal(torch.vmap(lambda key: seeds.uniform_of(key, 1001))(keys), whole)
    assert torch.equal(seeds.uniform_of(keys[0], 7), whole[0, :7]) and seeds.uniform_of(keys, 0).shape == (2, 0)


@pytest.mark.process
def test_the_kernel_of_gpus_draws_the_same_numbers() -> None:
    """By Triton's interpreter, which needs no GPU."""
    pytest.importorskip("triton", reason="Triton comes with PyTorch's builds for CUDA")
    script = """
import torch
from fedsim.seeds import philox_kernel, uniform_of
key = torch.randint(-2**63, 2**63 - 1, (3, 2), generator=torch.Generator().manual_seed(0))
for n in (1, 2, 7, 1023, 1024, 1025, 3000):
    assert torch.equal(philox_kernel.uniform_of(key, n), uniform_of(key, n)), n
rows = torch.vmap(lambda k: philox_kernel.uniform_of(k, 9), in_dims=1)(key)
assert torch.equal(rows, uniform_of(key.T, 9))
"""
    subprocess.run([sys.executable, "-c", script], check=True, env={**os.environ, "TRITON_INTERPRET": "1"})
