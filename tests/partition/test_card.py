"""The card against numbers worked out by hand, and the pictures."""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console
from sklearn.datasets import load_digits

from fedsim.errors import ConfigError, DataError
from fedsim.partition import (
    Card,
    DirichletPartitioner,
    InnerDirichletPartitioner,
    NaturalIdPartitioner,
    Partition,
    card,
    plot,
    render,
)
from fedsim.partition.card import gini, label_counts

DIGITS = load_digits().target
LABELS = np.array([0, 0, 1, 1])
BY_HAND = Partition(np.array([0, 1, 2, 2]), np.array([0, 2, 2, 4]), {"name": "by hand", "seed": 0})


def test_numbers_by_hand() -> None:
    measured = card(BY_HAND, LABELS, 3)
    assert (measured.n, measured.total, measured.dataset, measured.used, measured.repeated) == (3, 4, 4, 3, 1)
    # sizes 2, 0, 2: the mean absolute difference 8/9 over twice the mean 4/3
    assert measured.sizes == pytest.approx({"min": 0, "mean": 4 / 3, "median": 2, "max": 2, "gini": 1 / 3})
    assert measured.classes_per_client == {"min": 1, "mean": 1, "max": 1}
    # (1, 0) against (1/2, 1/2): m = (3/4, 1/4), divergence (log2(4/3) + log2(2/3) / 2 + 1/2) / 2
    distance = np.sqrt((np.log2(4 / 3) + np.log2(2 / 3) / 2 + 1 / 2) / 2)
    assert measured.js == pytest.approx({"min": distance, "mean": distance, "max": distance})
    assert measured.js_per_client is not None
    assert measured.js_per_client[1] is None
    assert measured.js_per_client[::2] == pytest.approx((distance, distance))
    assert measured.hash == BY_HAND.hash


def test_identical_distributions_have_distance_zero() -> None:
    labels = np.tile(np.arange(7), 30)
    measured = card(Partition(np.arange(210), np.arange(0, 211, 70), {}), labels, 7)
    assert measured.js_per_client == pytest.approx((0, 0, 0), abs=1e-7)


@pytest.mark.parametrize(("sizes", "value"), [([3, 3, 3], 0), ([0, 0, 0, 8], 3 / 4), ([1, 2], 1 / 6), ([0], 0)])
def test_gini_by_hand(sizes: list[int], value: float) -> None:
    assert gini(np.array(sizes)) == pytest.approx(value)


@pytest.mark.parametrize("at_a_time", [1, 3, 100])
def test_samples_are_counted_by_class_some_clients_at_a_time(at_a_time: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.modules["fedsim.partition.card"], "CLIENTS", at_a_time)
    partition = DirichletPartitioner(7, 0.3).partition(DIGITS, None, 0)
    counts = label_counts(partition, DIGITS.astype(np.uint8), 10)
    assert counts is not None
    by_hand = [np.bincount(DIGITS[partition.shard(i)], minlength=10) for i in range(partition.n)]
    np.testing.assert_array_equal(counts, by_hand)


def test_the_card_is_json() -> None:
    measured = card(DirichletPartitioner(30, 0.1, 0).partition(DIGITS, None, 0), DIGITS, 10)
    assert json.loads(json.dumps(measured.to_dict(), allow_nan=False))["scheme"]["alpha"] == 0.1


@pytest.mark.parametrize(
    ("labels", "classes"),
    [(np.zeros((6, 4), np.int64), 10), (np.zeros(6, np.float32), 0), (np.zeros(6, np.int64), 0)],
    ids=["text", "regression", "no classes"],
)
def test_targets_without_classes_have_no_label_statistics(labels: np.ndarray, classes: int, tmp_path: Path) -> None:
    partition = NaturalIdPartitioner().partition(labels, np.array([0, 0, 1, 1, 1, 2]), 0)
    measured = card(partition, labels, classes)
    assert (measured.classes_per_client, measured.js, measured.js_per_client) == (None, None, None)
    assert measured.sizes["mean"] == 2
    assert "samples per client" in text_of(measured)
    assert "JS" not in text_of(measured)
    plot(partition, labels, classes, tmp_path / "p.png")


def test_labels_outside_the_classes_are_an_error() -> None:
    with pytest.raises(DataError, match=r"labels lie in 0..1 but should be 0..0"):
        card(BY_HAND, LABELS, 1)


def text_of(measured: Card) -> str:
    page = io.StringIO()
    Console(file=page, width=100).print(render(measured))
    return page.getvalue()


def test_the_table_shows_the_numbers() -> None:
    measured = card(DirichletPartitioner(20, 0.3).partition(DIGITS, None, 0), DIGITS, 10)
    text = text_of(measured)
    assert measured.js is not None
    for word in ("DirichletPartitioner(num_partitions=20, alpha=0.3", "samples per", "classes per client", "89.8"):
        assert word in text
    assert f"{measured.js['mean']:.3f}" in text
    assert measured.hash[:12] in text


@pytest.mark.parametrize("suffix", ["png", "svg"])
@pytest.mark.parametrize(
    "partition",
    [
        DirichletPartitioner(20, 0.3).partition(DIGITS, None, 0),
        DirichletPartitioner(300, 0.1, 0).partition(DIGITS, None, 0),
        InnerDirichletPartitioner([1000] + [2] * 150, 1.0).partition(DIGITS, None, 0),
        DirichletPartitioner(1, 0.3).partition(DIGITS, None, 0),
    ],
    ids=["few", "many", "long tail", "one"],
)
@pytest.mark.slow
def test_pictures(partition: Partition, suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"p.{suffix}"
    plot(partition, DIGITS, 10, path)
    content = path.read_bytes()
    assert content.startswith(b"\x89PNG" if suffix == "png" else b"<?xml")
    assert len(content) > 5000


def test_a_picture_has_a_known_suffix(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"\.png, \.svg or \.pdf file"):
        plot(BY_HAND, LABELS, 2, tmp_path / "p.doc")
