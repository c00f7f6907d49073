"""What the server tells all nodes of a federation, once: the experiment, and the metadata of its data and model."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from fedsim.backends.flower.protocol.calls import RefusedError, parsed
from fedsim.data.signature import Signature
from fedsim.experiment.config import to_config
from fedsim.experiment.experiment import Experiment

NO_GRAPH = {"name": "Static", "graph": "Complete"}
"""Topology of the experiment as nodes have it: they mix by weights that the server sends, and need no graph file."""


@dataclass(frozen=True)
class Common:
    """Properties of the federation's data and model that all nodes share.

    Attributes:
        d: number of model parameters.
        n: number of clients that train.
        unseen: number of clients that do not, whose numbers follow; they evaluate models.
        partition: hash of the partition; empty if every node has its own data.
        data: signature of the server's data set.
    """

    d: int
    n: int
    unseen: int
    partition: str
    data: Signature

    @property
    def total(self) -> int:
        """Number of clients, those included that do not train."""
        return self.n + self.unseen

    @classmethod
    def of(cls, values: Any) -> Common:
        """Parse received values; raise RefusedError if they are malformed."""
        try:
            data = Signature.parsed(values["data"])
            d, n, unseen = (int(values[key]) for key in ("d", "n", "unseen"))
            return cls(d, n, unseen, str(values["partition"]), data)
        except (KeyError, TypeError, ValueError) as error:
            raise RefusedError(f"the server's description of the data is malformed: {error!r:.200}") from None


def as_text(experiment: Experiment, common: Common) -> str:
    """Serialise what nodes need of an experiment, and its metadata, as JSON; metrics are the server's."""
    config = {**to_config(experiment), "metrics": []}
    config |= {} if config["topology"] is None else {"topology": NO_GRAPH}
    return json.dumps({"experiment": config, "common": asdict(common)}, sort_keys=True)


def of_text(text: str) -> tuple[Mapping[str, Any], Common]:
    """Parse the settings of an experiment and its metadata; raise RefusedError if they are malformed."""
    values = parsed(text, "experiment")
    if not isinstance(values.get("experiment"), dict):
        raise RefusedError("the experiment is not a JSON object of settings")
    return values["experiment"], Common.of(values.get("common"))
