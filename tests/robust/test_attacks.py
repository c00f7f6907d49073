"""Attacks: what they send, against values computed by hand and by brute force."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from fedsim.errors import ConfigError
from fedsim.robust import (
    ALIE,
    ATTACKS,
    IPM,
    Backdoor,
    Drop,
    GaussianNoise,
    LabelFlip,
    Mimic,
    MinMax,
    MinSum,
    NonFinite,
    OptimalALIE,
    OptimalIPM,
    SignFlip,
    TrimmedMean,
    UniformNoise,
    Zero,
)
from fedsim.robust.attack import Attack, Scene
from fedsim.robust.crafted import alie_z

HONEST = torch.tensor([(1, 2), (2, 1), (1.5, 1.5), (1, 1), (2, 2)], dtype=torch.float64)
HIGH = torch.tensor([(1, 2, 0), (2, 1, 1), (1.5, 1.5, -1), (1, 1, 0.5), (2, 2, -0.5)], dtype=torch.float64)


def scene(honest: Tensor = HONEST, b: int = 2, aggregate: Callable[[Tensor], Tensor] | None = None) -> Scene:
    own = torch.arange(1.0, b + 1, dtype=honest.dtype)[:, None] + honest[:1]
    return Scene(honest, own, torch.tensor(3), aggregate or (lambda sent: torch.cat([honest, sent]).mean(0)))


def test_attacks_from_the_honest_rows() -> None:
    s = scene()
    assert ALIE().craft(s)[0].tolist() == pytest.approx([1.5 - alie_z(7, 2) * 0.5] * 2)
    assert ALIE(among="all").craft(s)[0].tolist() == pytest.approx([1.217025589] * 2)
    assert ALIE(z=1.5, sign=1).craft(s)[1].tolist() == pytest.approx([2.25] * 2)
    assert IPM().craft(s).flatten().tolist() == pytest.approx([-0.15] * 4)
    assert Mimic().craft(s).tolist() == [[1, 2]] * 2
    assert SignFlip(scale=10).craft(s).tolist() == [[-20, -30], [-30, -40]]
    assert torch.equal(Zero().craft(s), torch.zeros(2, 2)) and NonFinite().craft(s).isnan().all()
    assert Drop().lost(s).all() and not SignFlip().lost(s).any()


@pytest.mark.parametrize(
    ("n", "f", "z"),
    [(15, 3, 0.2104), (25, 5, 0.2533), (50, 12, 0.3360), (50, 24, 1.4261), (51, 12, 0.3612), (20, 4, 0.1573),
     (10, 2, 0)],
)  # fmt: skip
def test_the_z_of_a_little_is_enough(n: int, f: int, z: float) -> None:
    assert alie_z(n, f) == pytest.approx(z, abs=5e-5)


def test_the_z_of_all_clients() -> None:
    assert alie_z(7, 2, "all") == pytest.approx(0.5659488219)


@pytest.mark.parametrize(
    ("direction", "most", "total"),
    [("unit", 1.3544460316, 1.2247448714), ("sign", 0.9577379737, 0.8660254038), ("std", 1.0750494088, 1.1547005384)],
)
def test_min_max_and_min_sum_reach_their_bounds(direction: str, most: float, total: float) -> None:
    mu = HIGH.mean(0)
    p = {"unit": -mu / mu.norm(), "sign": -mu.sign(), "std": -HIGH.std(0)}[direction]
    for attack, gamma in ((MinMax(direction=direction), most), (MinSum(direction=direction), total)):   # type: ignore[arg-type]
        sent = attack.craft(scene(HIGH))
        torch.testing.assert_close(sent, (mu + gamma * p).expand(2, -1), rtol=1e-9, atol=1e-9)
    between = torch.cdist(HIGH, HIGH).square()
    off = (mu + most * p - HIGH).square().sum(1)
    assert float(off.max()) == pytest.approx(float(between.max()))


@pytest.mark.parametrize("attack", [OptimalALIE(), OptimalIPM()])
def test_attacks_that_know_the_rule_do_more_harm(attack: Attack) -> None:
    generator = torch.Generator().manual_seed(0)
    honest = 1 + torch.randn(12, 30, generator=generator, dtype=torch.float64)
    rule = TrimmedMean(3)
    s = scene(honest, 3, lambda sent: rule(torch.cat([honest, sent])))
    mu = honest.mean(0)

    def damage(sent: Tensor) -> float:
        return float((s.aggregate(sent) - mu).norm())

    mine = damage(attack.craft(s))
    assert mine > 1.2 * max(damage(ALIE().craft(s)), damage(IPM().craft(s)))
    p = -honest.std(0) if isinstance(attack, OptimalALIE) else -mu
    best = max(damage(s.alike(mu + t * p)) for t in np.geomspace(1e-2, 1e3, 200))
    assert mine > 0.97 * best


def test_noise() -> None:
    s = scene(torch.zeros(3, 20_000), 2)
    uniform, gaussian = UniformNoise(scale=2.0).craft(s), GaussianNoise(std=3.0).craft(s)
    assert uniform.min() >= 0 and uniform.max() < 2 and float(uniform.mean()) == pytest.approx(1, abs=0.02)
    assert float(gaussian.std()) == pytest.approx(3, rel=0.02) and abs(float(gaussian.mean())) < 0.05
    assert not torch.equal(uniform[0], uniform[1])
    kept = (Zero(fraction=0.1).craft(s)[0] != 0).double().mean()
    assert float(kept) == pytest.approx(0.9, abs=0.01)


def test_poisoned_samples() -> None:
    x, y = torch.rand(40, 1, 6, 6), torch.arange(40) % 4
    same, flipped = LabelFlip().poison(x, y, 4, torch.tensor(1))
    assert same is x and torch.equal(flipped, 3 - y)
    attack = Backdoor(target=2, size=2, fraction=0.25)
    marked, labels = attack.poison(x, y, 4, torch.tensor(1))
    changed = (marked != x).flatten(1).any(1)
    assert int(changed.sum()) == 10 and (labels[changed] == 2).all() and torch.equal(labels[~changed], y[~changed])
    assert (marked[changed][..., -2:, -2:] == x.max()).all() and torch.equal(marked[..., :4, :], x[..., :4, :])
    assert (attack.mark(torch.rand(5, 8))[:, :6] < attack.mark(torch.rand(5, 8))[:, 6:].max() + 1).all()
    with pytest.raises(ConfigError, match="the inputs are tokens"):
        attack.mark(torch.zeros(3, 5, dtype=torch.int64))
    with pytest.raises(ConfigError, match=r"Backdoor\.target is 9; expected a class below 4"):
        Backdoor(target=9).poison(x, y, 4, torch.tensor(1))
    with pytest.raises(ConfigError, match=r"the number of classes that LabelFlip needs is 0"):
        LabelFlip().poison(x, y, 0, torch.tensor(1))


def test_who_is_byzantine() -> None:
    found = Attack(0.2).attackers(3, 20)
    assert len(found) == 4 and (found == Attack(0.2).attackers(3, 20)).all() and (np.diff(found) > 0).all()
    assert any((found != Attack(0.2).attackers(seed, 20)).any() for seed in range(4))
    assert set(found) <= set(Attack(0.4).attackers(3, 20))   # more attackers are the same ones and others
    assert Attack(ids=(5, 1)).attackers(0, 6).tolist() == [1, 5]
    for attack, message in (
        (Attack(0.02), r"Attack\.share is 0\.02 of 20 clients, which is 0; expected a share from 0\.05 on"),
        (Attack(0.99), "which is 20; expected"),
        (Attack(ids=(20,)), r"Attack\.ids is \(20,\) of 20 clients; expected some of 0 to 19"),
    ):
        with pytest.raises(ConfigError, match=message):
            attack.attackers(0, 20)


@pytest.mark.parametrize(
    "make",
    [
        lambda: Attack(0), lambda: Attack(ids=()), lambda: Attack(ids=(1, 1)), lambda: Attack(ids=(-1,)),
        lambda: IPM(eps=0), lambda: ALIE(sign=0), lambda: ALIE(z=math.nan), lambda: MinMax(direction="up"),  # type: ignore[arg-type]
        lambda: Zero(fraction=0), lambda: Drop(p=2), lambda: NonFinite(value="big"), lambda: Backdoor(size=0),  # type: ignore[arg-type]
        lambda: OptimalIPM(evaluations=0), lambda: UniformNoise(scale=-1),
    ],
)  # fmt: skip
def test_bad_settings_are_refused(make: Callable[[], Attack]) -> None:
    with pytest.raises(ConfigError, match="expected"):
        make()


def test_the_list_is_complete() -> None:
    def below(cls: type[Attack]) -> set[type[Attack]]:
        return {cls}.union(*(below(sub) for sub in cls.__subclasses__()))

    assert {cls for cls in below(Attack) if not cls.__name__.startswith("_") and cls is not Attack} == set(ATTACKS)
