"""Further metrics in a deployment: of the test set as in a simulation; of clients, what follows from their loss."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from torch import Tensor

import fedsim
from fedsim.experiment.config import from_config
from tests.backends.flower.test_parity import CONFIG, RING, agree, deploy, metrics

pytestmark = pytest.mark.slow


def confidence(outputs: Tensor, targets: Tensor) -> Tensor:
    """A function that no node may import."""
    return outputs.softmax(1).amax(1).mean()


NAMES = ["f1_macro", "perplexity", "update_norm", "drift", f"{__name__}.confidence"]


@pytest.mark.parametrize(
    ("settings", "names"),
    [({"algorithm": "Scaffold"}, NAMES), ({"algorithm": "DPSGD", "topology": RING}, ["f1_macro", NAMES[-1]])],
)
def test_a_deployment_measures_what_it_can(settings: dict[str, Any], names: list[str], tmp_path: Path) -> None:
    config, said = {**CONFIG, **settings, "metrics": names}, list[str]()
    deployed = metrics(deploy(tmp_path, config, say=said.append).path)
    simulated = metrics(fedsim.run(from_config(config), output=tmp_path / "simulated", progress=False).path)
    left_out = ("f1_macro", "confidence") if "topology" not in settings else ()
    kept = [r for r in simulated if not (r["scope"] == "clients/train" and r["metric"].startswith(left_out or "?"))]
    agree(deployed, kept)
    assert sum("f1_macro, confidence is of the test set alone" in text for text in said) == bool(left_out)
    assert {name.rpartition(".")[2] for name in names} <= {row["metric"] for row in deployed}
