"""What the experiment on Byzantine clients says of its own settings."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from experiments import byzantine
from fedsim.robust import FlagAggregator
from topologies import Ring, Static, Torus


@pytest.mark.parametrize("graph", [Ring(), Torus()])
def test_the_attackers_in_gossip_have_no_common_neighbour(graph: Any) -> None:
    w = Static(graph).matrix(1, 0, 16).toarray() > 0
    np.fill_diagonal(w, True)
    assert not (w[0] & w[6]).any()


def test_the_rule_that_notes_a_cosine_changes_nothing() -> None:
    rows = torch.randn(15, 50, generator=torch.Generator().manual_seed(0))
    byzantine.COSINES.clear()
    assert torch.equal(byzantine.Beside()(rows, torch.full((15,), 1 / 15)), FlagAggregator()(rows))
    (cosine,) = byzantine.COSINES
    assert 0.5 < cosine < 1


def test_the_quick_version_is_the_same_experiment_and_shorter() -> None:
    assert byzantine.quick(byzantine.BASE).rounds < byzantine.BASE.rounds
