"""Feature skew: rotation against scipy, noise by its moments."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from scipy import ndimage
from sklearn.datasets import load_digits

from fedsim.errors import PartitionError
from fedsim.partition import SKEWS, NoiseSkew, RotationSkew
from fedsim.partition.skew import rotate

IMAGES = torch.from_numpy(load_digits().images[:20]).float()          # [20, 8, 8]


@pytest.mark.parametrize("skew", [RotationSkew(), RotationSkew(30, "random"), NoiseSkew(0.5)], ids=repr)
def test_deterministic_and_different_for_each_client(skew: Any) -> None:
    before = IMAGES.clone()
    seen = [skew.apply(IMAGES, client, 4, 7) for client in range(4)]
    torch.testing.assert_close(IMAGES, before, rtol=0, atol=0)
    assert torch.equal(seen[2], skew.apply(IMAGES, 2, 4, 7))
    assert all(x.shape == IMAGES.shape and x.dtype == IMAGES.dtype for x in seen)
    assert all(not torch.equal(seen[i], seen[j]) for i in range(4) for j in range(i))


@pytest.mark.parametrize("skew", [RotationSkew(30, "random"), NoiseSkew(0.5)], ids=repr)
def test_the_seed_matters_where_something_is_drawn(skew: Any) -> None:
    assert not torch.equal(skew.apply(IMAGES, 0, 3, 0), skew.apply(IMAGES, 0, 3, 1))


def test_the_table_names_every_skew() -> None:
    assert (RotationSkew, NoiseSkew) == SKEWS


@pytest.mark.parametrize("degrees", [-70.0, -10.0, 33.0, 180.0])
@pytest.mark.parametrize("shape", [(3, 2, 9, 9), (2, 1, 8, 13)])
def test_rotation_is_that_of_scipy(degrees: float, shape: tuple[int, ...]) -> None:
    x = np.random.default_rng(0).random(shape)
    low = x.min(axis=(1, 2, 3), keepdims=True)
    options: dict[str, Any] = {"axes": (-2, -1), "reshape": False, "order": 1, "mode": "grid-constant", "cval": 0.0}
    expected = ndimage.rotate(x - low, degrees, **options) + low
    np.testing.assert_allclose(rotate(torch.from_numpy(x), degrees).numpy(), expected, atol=1e-9)


def test_a_quarter_turn_is_counter_clockwise() -> None:
    torch.testing.assert_close(rotate(IMAGES[:, None], 90.0), torch.rot90(IMAGES[:, None], 1, (2, 3)))


def test_corners_are_filled_with_the_minimum_of_the_image() -> None:
    turned = rotate(IMAGES[:, None] - 3.0, 45.0)
    torch.testing.assert_close(turned[:, 0, 0, 0], torch.full((20,), -3.0))


def test_even_angles_span_the_range_and_random_ones_stay_inside() -> None:
    assert [RotationSkew(40).degrees(i, 5, 0) for i in range(5)] == [-40, -20, 0, 20, 40]
    assert RotationSkew(40).degrees(0, 1, 0) == 0
    drawn = [RotationSkew(40, "random").degrees(i, 200, 0) for i in range(200)]
    assert max(map(abs, drawn)) < 40
    assert max(drawn) > 30
    assert min(drawn) < -30


def test_no_rotation_changes_nothing() -> None:
    torch.testing.assert_close(RotationSkew(0).apply(IMAGES, 1, 3, 0), IMAGES)


@pytest.mark.parametrize("client", [0, 4, 9])
def test_noise_grows_with_the_client(client: int) -> None:
    noise = NoiseSkew(0.5).apply(torch.zeros(400, 100), client, 10, 0)
    assert noise.std().item() == pytest.approx(0.5 * (client + 1) / 10, rel=0.02)
    assert noise.mean().item() == pytest.approx(0, abs=0.01)


def test_noise_of_two_clients_is_independent() -> None:
    first, second = (NoiseSkew(1.0).apply(torch.zeros(10_000), i, 2, 0) for i in range(2))
    assert abs(np.corrcoef(first, second)[0, 1]) < 0.05


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: RotationSkew(-1), "max_degrees must be finite and 0 or more"),
        (lambda: RotationSkew(1, "odd"), "angles must be 'even' or 'random'"),  # type: ignore[arg-type]
        (lambda: NoiseSkew(float("nan")), "sigma must be finite and 0 or more"),
        (lambda: NoiseSkew().apply(torch.zeros(3, dtype=torch.int64), 0, 2, 0), "real-valued inputs, got torch.int64"),
        (lambda: RotationSkew().apply(torch.zeros(3, 64), 0, 2, 0), r"images .*, got shape \[3, 64\]"),
        (lambda: NoiseSkew().apply(IMAGES, 2, 2, 0), "no client 2: clients are 0 to 1"),
        (lambda: RotationSkew().apply(IMAGES, -1, 2, 0), "no client -1"),
        (lambda: NoiseSkew().apply(IMAGES, 0, 2, -1), "seed must be an integer of 0 or more"),
    ],
)
def test_wrong_requests_are_errors(make: Any, message: str) -> None:
    with pytest.raises(PartitionError, match=message):
        make()
