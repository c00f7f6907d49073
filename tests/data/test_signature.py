"""Signatures of samples with several tensors; those of one are in tests/backends/flower/test_node.py."""

from __future__ import annotations

from dataclasses import asdict, replace
from typing import Any

import pytest
import torch

from fedsim.data import Dataset, Split
from fedsim.data.signature import MismatchError, Signature, fitted, signature

IDS = torch.arange(24).view(6, 4)


def texts(ids: torch.Tensor = IDS, mask: Any = None, **others: torch.Tensor) -> Dataset:
    mask = torch.ones_like(ids) if mask is None else mask
    split = Split({"input_ids": ids, "attention_mask": mask, **others}, torch.arange(6) % 2)
    return Dataset("texts", split, split, classes=2)


def test_the_same_samples_have_the_same_one() -> None:
    made = signature(texts(), same=True)
    assert made.shape == () and "input_ids" in made.dtype and "int64[4]" in made.dtype
    assert Signature.parsed(asdict(made)) == made
    assert fitted(texts(), made).train.x["input_ids"] is IDS
    assert fitted(texts(IDS + 1), signature(texts())).classes == 2     # of own data, which differ


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (texts(IDS.flip(0)), "its inputs differ from the experiment's"),
        (texts(mask=torch.zeros_like(IDS)), "its inputs differ from the experiment's"),
        (texts(torch.zeros(6, 5, dtype=torch.int64)), "its inputs are not {'input_ids': 'int64.4.'"),
        (texts(IDS.float()), "its inputs are not"),
        (texts(token_type_ids=IDS), "its inputs are not"),
        (Dataset("x", Split(IDS, IDS[:, 0] % 2), Split(IDS, IDS[:, 0] % 2), classes=2), "its inputs are not"),
        (replace(texts(), train=texts().train._replace(y=torch.zeros(6, dtype=torch.int64))), "its targets differ"),
    ],
)
def test_others_do_not_fit(other: Dataset, message: str) -> None:
    with pytest.raises(MismatchError, match=message):
        fitted(other, signature(texts(), same=True))
