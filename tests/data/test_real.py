"""The real files: known counts, ranges and balance. Each test skips, by name, where FEDSIM_DATA has no such set."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fedsim.data import Dataset, data_directory, load
from tests.data.files import idx_bytes

pytestmark = pytest.mark.slow


def check_images(
    data: Dataset, train: int, test: int, shape: tuple[int, ...], low: list[float], high: list[float]
) -> None:
    """Counts, shape, the exact range of normalised pixels per channel, and mean 0 and deviation 1 by the constants."""
    assert data.train.x.shape == (train, *shape) and data.test.x.shape == (test, *shape)
    assert data.train.x.dtype == torch.float32 and data.train.y.dtype == torch.int64 and data.classes == 10
    assert data.label_names is None or len(data.label_names) == 10
    torch.testing.assert_close(data.train.x.amin((0, 2, 3)), torch.tensor(low), atol=1e-4, rtol=0)
    torch.testing.assert_close(data.train.x.amax((0, 2, 3)), torch.tensor(high), atol=1e-4, rtol=0)
    assert data.train.x.mean().abs() < 0.01 and (data.train.x.std() - 1).abs() < 0.01


def test_mnist(real_data: Any) -> None:
    data = real_data("mnist")
    check_images(data, 60_000, 10_000, (1, 28, 28), [-0.1307 / 0.3081], [(1 - 0.1307) / 0.3081])
    assert data.train.y.bincount().tolist() == [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949]
    assert data.test.y.bincount().tolist() == [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]
    assert data.train.y[:5].tolist() == [5, 0, 4, 1, 9]


def test_mnist_writers(real_data: Any) -> None:
    data = real_data("mnist")
    if data.client_names is None:
        pytest.skip("data set mnist has no writers' files in FEDSIM_DATA")
    assert np.array_equal(np.unique(data.train.client), np.arange(539))
    assert np.array_equal(np.unique(data.test.client), np.arange(539, 539 + 297))
    assert len(data.client_names) == len(set(data.client_names)) == 836


def test_mnist_writers_from_qmnist_labels(real_data: Any, tmp_path: Path) -> None:
    data, raw = real_data("mnist"), data_directory() / "MNIST" / "raw"
    if data.client_names is None:
        pytest.skip("data set mnist has no writers' files in FEDSIM_DATA")
    folder = tmp_path / "MNIST" / "raw"
    folder.mkdir(parents=True)
    for file in [*raw.glob("*ubyte"), *raw.glob("*ubyte.gz")]:
        (folder / file.name).symlink_to(file)
    assert load("mnist", tmp_path).client_names is None
    for part, split, extra in (("train", data.train, 0), ("test", data.test, 500)):
        rows = np.zeros((len(split.y) + extra, 8), np.int32)
        rows[: len(split.y), 0] = split.y
        rows[: len(split.y), 2] = split.client
        (folder / f"qmnist-{part}-labels-idx2-int").write_bytes(idx_bytes(rows))
    again = load("mnist", tmp_path)
    assert np.array_equal(again.train.client, data.train.client) and np.array_equal(again.test.client, data.test.client)


def test_fashion_mnist(real_data: Any) -> None:
    data = real_data("fashion_mnist")
    check_images(data, 60_000, 10_000, (1, 28, 28), [-0.2860 / 0.3530], [(1 - 0.2860) / 0.3530])
    assert data.train.y.bincount().tolist() == [6000] * 10 and data.test.y.bincount().tolist() == [1000] * 10
    assert data.label_names[int(data.train.y[0])] == "Ankle boot"


def test_cifar10(real_data: Any) -> None:
    data = real_data("cifar10")
    mean, std = (0.491, 0.482, 0.447), (0.247, 0.243, 0.262)
    low, high = ([(end - m) / s for m, s in zip(mean, std, strict=True)] for end in (0, 1))
    check_images(data, 50_000, 10_000, (3, 32, 32), low, high)
    assert data.train.y.bincount().tolist() == [5000] * 10 and data.test.y.bincount().tolist() == [1000] * 10
    assert [data.label_names[k] for k in data.test.y[:4]] == ["cat", "ship", "ship", "airplane"]


def test_uci_har(real_data: Any) -> None:
    data = real_data("uci_har")
    assert data.train.x.shape == (7352, 9, 128) and data.test.x.shape == (2947, 9, 128) and data.classes == 6
    assert np.array_equal(np.unique(data.train.client), np.arange(21))
    assert np.array_equal(np.unique(data.test.client), np.arange(21, 30))
    assert data.client_names[21:] == ("2", "4", "9", "10", "12", "13", "18", "20", "24")
    # Total acceleration along x is near 1 g for a phone worn upright.
    assert 0.7 < data.train.x[:, 6].mean() < 0.9
    within = real_data("uci_har", test_fraction=0.3)
    assert len(np.unique(within.train.client)) == len(np.unique(within.test.client)) == 30
    assert len(within.test.y) == round(0.3 * 10_299)


def test_shakespeare(real_data: Any) -> None:
    data = real_data("shakespeare")
    assert data.notes.startswith("634 of 1332 clients") and len(data.client_names) == 634
    assert data.train.x.shape[1:] == data.train.y.shape[1:] == (80,)
    assert data.classes == 77 and data.label_names == tuple(sorted(data.label_names))
    assert torch.equal(data.train.x[:, 1:], data.train.y[:, :-1])
    # The last 20 % of each role's windows, rounded down.
    train, test = (np.bincount(split.client, minlength=634) for split in (data.train, data.test))
    assert np.array_equal(test, (train + test) // 5)
    assert data.client_names[0] == "1kinghenryiv/KING HENRY IV"
    assert "".join(data.label_names[k] for k in data.train.x[0]).startswith("So shaken as we are, so wan with care,\n")
    short = real_data("shakespeare", sequence_length=20, min_chars=2000)
    assert len(short.client_names) == 444 and short.input_shape == (20,) and short.classes == 77


def test_tiny_shakespeare(real_data: Any) -> None:
    data = real_data("tiny_shakespeare")
    windows = (1_115_394 - 1) // 80
    assert len(data.test.x) == windows // 10 and len(data.train.x) == windows - windows // 10
    assert data.classes == 65 and data.client_names is None and data.train.client is None
    assert "".join(data.label_names[k] for k in data.train.x[0]).startswith("First Citizen:\nBefore we proceed")
    assert data.train.y[0, -1] == data.train.x[1, 0]


def test_heart_disease(real_data: Any) -> None:
    data = real_data("heart_disease")
    assert data.client_names == ("cleveland", "hungarian", "switzerland", "va_long_beach")
    sizes = np.bincount(data.train.client) + np.bincount(data.test.client)
    assert sizes.tolist() == [303, 294, 123, 200]
    ill = [int(sum(s.y[torch.from_numpy(s.client == k)].sum() for s in (data.train, data.test))) for k in range(4)]
    assert ill == [139, 106, 115, 149] and data.classes == 2
    assert data.train.x.shape == (736, 13) and torch.isfinite(data.train.x).all() and torch.isfinite(data.test.x).all()
    torch.testing.assert_close(data.train.x.mean(0), torch.zeros(13), atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("name", "train", "test", "features", "ones"),
    [
        ("a9a", 32_561, 16_281, 123, 7841 + 3846),
        ("mushrooms", 6499, 1625, 112, 4208),
        ("w8a", 39_799, 9950, 300, 1479),
        ("phishing", 8844, 2211, 68, 6157),
        ("german_scale", 800, 200, 24, 300),
        ("australian", 552, 138, 14, 307),
    ],
)
def test_libsvm(real_data: Any, name: str, train: int, test: int, features: int, ones: int) -> None:
    data = real_data(name)
    assert data.train.x.shape == (train, features) and data.test.x.shape == (test, features)
    assert data.train.x.dtype == torch.float32 and data.train.y.dtype == torch.int64 and data.classes == 2
    assert int(data.train.y.sum() + data.test.y.sum()) == ones
    if name != "a9a":
        share = data.train.y.float().mean(), data.test.y.float().mean()
        torch.testing.assert_close(*share, atol=2 / test, rtol=0)
    again = real_data(name)
    assert torch.equal(data.train.x, again.train.x) and torch.equal(data.test.y, again.test.y)
