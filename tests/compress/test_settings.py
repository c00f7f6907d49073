"""Settings that cannot be, and compressors by name."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from algorithms import EF21
from fedsim.compress import (
    COMPRESSORS,
    QSGD,
    BernoulliCompressor,
    Blockwise,
    Composed,
    Identity,
    LowPrecision,
    LowRank,
    NaturalDithering,
    PowerSGD,
    RandK,
    Scaled,
    Threshold,
    TopK,
)
from fedsim.errors import ConfigError
from fedsim.feedback import EF14Uplink
from fedsim.values import Packed
from tests.compress.cases import At


class Clamps:
    """A compressor of one's own that writes into the vector that it is given."""

    def compress(self, x: torch.Tensor, at: Any) -> torch.Tensor:
        return x.clamp_(-9, 9)


class Zeroes(Identity):
    """One with a codec, of which only the values show it."""

    def compress(self, x: torch.Tensor, at: Any) -> Packed:
        x.numpy()[0] = 0.0
        return super().compress(x, at)


@pytest.mark.parametrize("by", [Clamps(), Zeroes()])
@pytest.mark.parametrize("make", [EF14Uplink, Blockwise, EF21])
def test_compressors_write_elsewhere(make: Any, by: Any) -> None:
    words = rf"\.compressor: {type(by).__name__}\.compress writes into its argument, .*: begin with x = x\.clone\(\)"
    with pytest.raises(ConfigError, match=words):
        make(compressor=by)


@pytest.mark.parametrize("cls", [TopK, RandK])
@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"k": 0}, "k is 0; expected a whole number, 1 or more"),
        ({"k": -3}, "k is -3; expected"),
        ({"k": 2.5}, r"k is 2.5; expected"),
        ({"k": True}, "k is True; expected"),
        ({"fraction": 0.0}, "fraction is 0.0; expected a number above 0"),
        ({"fraction": 1.01}, "fraction is 1.01; expected a number above 0 and at most 1"),
        ({"fraction": -0.1}, r"fraction is -0.1; expected"),
        ({"fraction": float("nan")}, "fraction is nan; expected"),
        ({"code": "huffman"}, "code is 'huffman'; expected one of 'shortest', 'packed'"),
    ],
)
def test_bad_sparse_settings(cls: Any, settings: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        cls(**settings)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: TopK(scope="tensor"), "scope is 'tensor'; expected 'global', 'layer', or a block's size"),
        (lambda: TopK(scope=0), "scope is 0; expected"),
        (lambda: QSGD(0), "QSGD.s is 0; expected a whole number from 1"),
        (lambda: QSGD(2.0), r"QSGD.s is 2.0; expected"),
        (lambda: QSGD(2**24 + 1), "QSGD.s is 16777217; expected a whole number from 1 to 16777216"),
        (lambda: QSGD(norm="l1"), "norm is 'l1'; expected one of 'l2', 'linf'"),
        (lambda: NaturalDithering(101), "s is 101; expected a whole number from 1 to 100"),
        (lambda: Blockwise(size=0), "Blockwise.size is 0; expected a whole number, 1 or more"),
        (lambda: Blockwise(LowRank()), r"Blockwise.compressor is LowRank\(rank=1\), which needs the model's layers"),
        (lambda: Blockwise(PowerSGD()), "Blockwise.compressor is PowerSGD.* gets a part of the model's vector"),
        (lambda: Blockwise(TopK(scope="layer")), "which needs the model's layers.* TopK with scope 'global'"),
        (lambda: Blockwise(Composed(TopK(scope="layer"))), "Blockwise.compressor is Composed.* the model's layers"),
        (lambda: Composed(values=LowRank()), "Composed.values is LowRank.* needs the model's layers"),
        (lambda: Blockwise(TopK), "Blockwise.compressor is <class .*TopK'>; expected an object of fedsim.compress"),
        (lambda: Blockwise("QSGD"), "Blockwise.compressor is 'QSGD'; expected an object of fedsim.compress"),
        (lambda: Scaled(QSGD), "Scaled.compressor is <class .*QSGD'>; expected an object of fedsim.compress"),
        (lambda: Scaled(None), "Scaled.compressor is None; expected an object"),
        (lambda: Composed(values=3), "Composed.values is 3; expected an object"),
        (lambda: LowPrecision("fp4"), "LowPrecision.format is 'fp4'; expected one of 'fp16', 'bf16', 'e4m3', 'e5m2'"),
        (lambda: LowRank(0), "LowRank.rank is 0; expected a whole number, 1 or more"),
        (lambda: PowerSGD(1.5), "PowerSGD.rank is 1.5; expected"),
        (lambda: Threshold(1.5), r"Threshold.tau is 1.5; expected a number in \[0, 1\]"),
        (lambda: Threshold(0.0, relative=False), "Threshold.tau is 0.0; expected a finite number above 0"),
        (lambda: BernoulliCompressor(0.0), "BernoulliCompressor.p is 0.0; expected a number above 0"),
        (lambda: BernoulliCompressor(2.0), "BernoulliCompressor.p is 2.0; expected a number above 0 and at most 1"),
        (lambda: Scaled(TopK()), r"Scaled.compressor is TopK\(.*not unbiased; expected an unbiased one such as QSGD"),
        (lambda: Scaled(RandK(k=5, scaled=False)), "not unbiased"),
        (lambda: Composed(QSGD()), r"Composed.compressor is QSGD\(.*; expected one that selects: TopK or RandK"),
        (lambda: NaturalDithering(code="short"), "code is 'short'; expected one of 'shortest', 'fixed', 'elias'"),
    ],
)
def test_bad_settings(make: Any, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        make()


@pytest.mark.parametrize("cls", [TopK, RandK])
def test_k_above_d(cls: Any) -> None:
    compressor = cls(k=11)
    uses = lambda: compressor.compress(torch.ones(10), At()), lambda: compressor.decode(bytes(99), 10, torch.float32)
    for use in uses:
        with pytest.raises(ConfigError, match="k is 11, but the vector has 10 coordinates; expected 10 at most"):
            use()


def test_layers_of_another_model() -> None:
    with pytest.raises(ConfigError, match="the vector has 10 coordinates and the model 38; use 'global'"):
        TopK(k=2, scope="layer").compress(torch.ones(10), At())
    for compressor in (LowRank(), PowerSGD()):
        with pytest.raises(ConfigError, match="their numbers do not add up to the 10 of this vector"):
            compressor.compress(torch.ones(10), At())


@pytest.mark.parametrize(
    ("fraction", "d", "k"), [(0.29, 100, 29), (0.1, 30, 3), (0.01, 50, 1), (0.5, 5, 3), (1.0, 7, 7)]
)
def test_a_fraction_is_rounded_up(fraction: float, d: int, k: int) -> None:
    assert TopK(fraction).alpha(d) == RandK(fraction, scaled=False).alpha(d) == k / d


def test_every_compressor_has_defaults_and_is_of_a_class() -> None:
    for cls in COMPRESSORS.values():
        compressor = cls()
        assert (compressor.alpha(100), compressor.omega(100)) != (None, None)
        assert hash(compressor) == hash(cls()) and compressor == cls()
