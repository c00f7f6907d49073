"""Identities between the compressed methods: what they become without compression, and what makes two of them one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from algorithms import (
    DCGD,
    DIANA,
    EF14,
    EF21,
    EF21BC,
    EF21PAGE,
    EF21SGDM,
    EF21W,
    MARINA,
    ECIdeal,
    EControl,
    EF21Plus,
)
from fedsim.clients import cohort
from fedsim.compress import QSGD, Identity, Natural, RandK, Scaled, Sign, TopK
from fedsim.engine.blocks import Blocks
from fedsim.engine.federation import Meter
from fedsim.engine.local_work import LocalWork
from fedsim.messages.wire import encode
from fedsim.values import Packed, Site
from tests.algorithms.quadratics import X0, F, everybody, federation, iterates, some, states

LR, TOP, WHOLE = 0.3, TopK(k=4), Identity()
GRADIENTS, BATCHES = LocalWork(0, steps=1), LocalWork(8, steps=3)


def run(algorithm: Any, rounds: int, work: LocalWork = GRADIENTS, cohorts: list[list[int]] | None = None) -> np.ndarray:
    """All models ``[rounds, d]``."""
    fed = federation(F, work, Blocks(F.n))
    return np.array(iterates(algorithm, fed, X0, cohorts or everybody(F.n, rounds)))


@pytest.mark.parametrize(
    "algorithm",
    [
        DCGD(LR, WHOLE),
        EF14(LR, WHOLE),
        EF21(LR, WHOLE),
        EF21(LR, WHOLE, "compressed"),
        EF21W(LR, WHOLE, smoothness=tuple(range(1, 11))),
        EF21Plus(LR, WHOLE),
        EF21BC(LR, WHOLE, WHOLE),
        EF21PAGE(LR, WHOLE, p=0.5),
        EF21SGDM(LR, WHOLE, eta=1.0),
        EControl(LR, WHOLE),
        EControl(LR, WHOLE, eta=0.3, start="zero"),
        ECIdeal(LR, WHOLE, (1.0,) * F.d),
        DIANA(LR, WHOLE, alpha=1.0),
        MARINA(LR, WHOLE, p=0.3),
    ],
    ids=repr,
)
def test_without_compression_it_is_gradient_descent(algorithm: Any) -> None:
    x, descent = X0, []
    for _ in range(50):
        x = x - LR * sum(F.grad(i, x) for i in range(F.n)) / F.n
        descent.append(x)
    np.testing.assert_allclose(run(algorithm, 50), descent, rtol=0, atol=1e-15)


@pytest.mark.parametrize("by", [TOP, Sign(), Scaled(QSGD(s=4))], ids=["top-k", "sign", "QSGD"])
def test_weights_change_nothing_for_homogeneous_compressors(by: Any) -> None:
    weighted = run(EF21W(LR, by, smoothness=tuple(np.geomspace(1, 50, F.n))), 40)
    np.testing.assert_allclose(weighted, run(EF21(LR, by), 40), rtol=0, atol=2e-14)


def test_weights_matter_to_natural_compression() -> None:
    """C(t x) = t C(x) for powers of two only."""
    by = Scaled(Natural())
    plain = run(EF21(LR, by), 20)
    assert np.abs(run(EF21W(LR, by, smoothness=tuple(np.geomspace(1, 50, F.n))), 20) - plain).max() > 1e-4
    powers = tuple(2.0 ** np.array([0, 1, 1, 2, 3, 0, 2, 4, 1, 0]))
    scaled = tuple(L / np.mean(powers) * 2 for L in powers)
    assert np.abs(run(EF21W(LR, by, smoothness=scaled), 20) - plain).max() > 1e-6, "the mean is no power of two"


PAIRS = {
    "EControl without feedback": (EControl(LR, TOP, eta=0.0), EF21(LR, TOP), 1),
    "EControl without feedback, compressed start": (EControl(LR, TOP, 0.0, "zero"), EF21(LR, TOP, "compressed"), 0),
    "EC-Ideal around 0": (ECIdeal(LR, TOP), EF14(LR, TOP), 0),
    "PAGE with certain heads": (EF21PAGE(LR, TOP, p=1.0), EF21(LR, TOP), 0),
    "momentum that forgets": (EF21SGDM(LR, TOP, eta=1.0), EF21(LR, TOP), 0),
    "double momentum that forgets": (EF21SGDM(LR, TOP, eta=1.0, momenta=2), EF21(LR, TOP), 0),
    "dense downlink": (EF21BC(LR, TOP, WHOLE), EF21(LR, TOP), 0),
    "no server momentum": (EF21(LR, TOP, momentum=0.0), EF21(LR, TOP), 0),
    "equal weights": (EF21W(LR, TOP), EF21(LR, TOP), 0),
    "minibatches of whole shards": (EF21(LR, TOP, gradient="minibatch"), EF21(LR, TOP), 0),
    "MARINA with certain heads": (MARINA(LR, RandK(k=4), p=1.0), DCGD(LR, WHOLE), 0),
    "DIANA that never learns": (DIANA(LR, RandK(k=4), alpha=1e-15), DCGD(LR, RandK(k=4)), 0),
}


@pytest.mark.parametrize("pair", PAIRS)
@pytest.mark.slow
def test_two_names_of_one_method(pair: str) -> None:
    """EControl with a dense start has nothing new to send in round 1, so it learns each gradient a round later."""
    first, second, late = PAIRS[pair]
    ours, theirs = run(first, 30), run(second, 30)
    assert np.abs(ours[late:2] - theirs[late:2]).max() <= 1e-14
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-13)


@dataclass(frozen=True)
class Mask:
    """Keeps the first entries: deterministic, homogeneous and additive."""

    kept: int = 8

    def compress(self, x: Tensor, at: Site) -> Packed:
        return Packed(self, (x[..., : self.kept],), x.shape[-1])

    def unpack(self, parts: tuple[Tensor, ...], d: int) -> Tensor:
        return torch.cat([parts[0], parts[0].new_zeros(*parts[0].shape[:-1], d - self.kept)], -1)

    def nbytes(self, parts: tuple[Tensor, ...], d: int) -> Tensor:
        return torch.full(parts[0].shape[:-1], 8 * self.kept)

    def paper_bits(self, parts: tuple[Tensor, ...], d: int) -> Tensor:
        return torch.full(parts[0].shape[:-1], 32 * self.kept)

    def alpha(self, d: int) -> float | None:
        return None

    def omega(self, d: int) -> float | None:
        return None


def test_an_additive_compressor_makes_one_method_of_ef14_and_ef21() -> None:
    """Their first messages are the same: C(gamma grad), and C(grad) times gamma in the next step."""
    mask: Any = Mask()
    np.testing.assert_allclose(run(EF14(LR, mask), 40), run(EF21(LR, mask, "compressed"), 40), rtol=0, atol=1e-14)
    assert np.abs(run(EF14(LR, TOP), 40) - run(EF21(LR, TOP, "compressed"), 40)).max() > 1e-3, "Top-k is not additive"


@pytest.mark.parametrize("cls", [EF21, EF21SGDM, EF21PAGE, EControl])
def test_the_server_knows_the_mean_of_all_memories(cls: Any) -> None:
    """Whoever takes part: of 3 of 10 clients the changes count 1 / 10 each. The drift is rounding only."""
    *_, s = states(cls(LR, TOP), federation(F, BATCHES, Blocks(3)), X0, some(F.n, 3, 60))
    rows = [s[-1][i] for i in range(F.n)]
    memories = torch.stack([row if cls is EF21 else row[1] for row in rows])
    assert (s[1] - memories.mean(0)).abs().max() < 1e-14


def test_the_server_of_ef21_plus_holds_what_its_clients_hold() -> None:
    for s in states(EF21Plus(1.5, TopK(k=8)), federation(F, BATCHES, Blocks(3)), X0, some(F.n, 3, 20)):
        assert torch.equal(s.copies, torch.stack([s.g_i[i] for i in range(F.n)]))
        assert (s.g - s.copies.mean(0)).abs().max() < 1e-14


def test_clients_of_ef21_bc_hold_what_the_server_holds() -> None:
    for s in states(EF21BC(LR, TOP, TopK(k=2)), federation(F, BATCHES, Blocks(3)), X0, everybody(F.n, 20)):
        for i in range(F.n):
            assert torch.equal(s.mine[i][0], s.x) and torch.equal(s.mine[i][1], s.g)


@pytest.mark.parametrize("by", [TOP, Sign(), Scaled(QSGD(s=2))], ids=["top-k", "sign", "QSGD"])
def test_the_ledger_charges_the_bytes_of_the_messages(by: Any) -> None:
    """Encoded one by one, client by client."""
    fed = federation(F, GRADIENTS, Blocks(4))
    meter = Meter(fed)
    s = EF21(LR, by).init(torch.from_numpy(X0), cohort(fed, 0, meter=meter))
    before = meter.ledger.up.copy()
    sent, _ = cohort(fed, 1, meter=meter).each(EF21(LR, by).client, s.x - LR * s.g, s.g_i)
    EF21(LR, by).round(s, cohort(fed, 1, meter=meter))
    messages = [Packed(by, tuple(part[i] for part in sent.stacked.parts), F.d) for i in range(F.n)]
    assert (meter.ledger.up - before).tolist() == [len(encode(m, [by])) for m in messages]
