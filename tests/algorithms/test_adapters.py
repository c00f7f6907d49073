"""Places of products of low rank in a model's vector."""

from __future__ import annotations

import numpy as np
import torch

from algorithms.adapters import Adapters
from fedsim import MLP, LocalWork
from fedsim.clients import cohort
from fedsim.engine.federation import Federation
from fedsim.engine.local_work import Shards
from fedsim.engine.loop import Loop
from fedsim.engine.model import Model
from fedsim.models import LoRA
from fedsim.models.losses import cross_entropy


def test_places_are_all_of_a_vector_and_are_found_once() -> None:
    rank, k, d, classes = 2, 16, 9, 3
    settings = LoRA(MLP((d,)), rank=rank, targets="1", residual=True, trained="3")  # and a head, which trains
    model = Model(settings.build((k,), classes), cross_entropy)
    shards = Shards(torch.randn(4, k), torch.zeros(4, dtype=torch.int64), np.array([0, 4]))
    clients = cohort(Federation(model, shards, LocalWork(4), 0, Loop()), 1)
    layout, again = (Adapters.of(clients, "FLoRA", residual=True) for _ in range(2))
    x = model.vector()
    found = [layout.places(kinds, rank, x) for kinds in ("A", "B", "+")] + [layout.residuals(x)]
    assert torch.cat(found).sort().values.tolist() == [*range(model.d)]
    assert [len(places) for places in found] == [rank * k, rank * d, classes * (d + 1), d * k]
    assert torch.equal(layout.places("AB", rank, x), torch.cat(found[:2]))
    assert again.places("A", rank, x) is found[0]
    assert again.places("A", rank, x.to("meta")).device.type == "meta"
