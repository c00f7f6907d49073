"""Conversion of experiments to and from plain YAML.

A component (algorithm, data, partition, skew, model, sampling, schedule, and components of these) is a name, or a
mapping of its ``name`` and its fields; omitted fields keep their defaults::

    algorithm: {name: FedSpeed, lr: 0.05}
    data: {name: shakespeare, sequence_length: 80}
    schedule: Exponential
    local: {batch_size: 10}
    rounds: 20
    model: my.module.Net
    execution: {backend: loop}      # or, in short, backend: loop
"""

from fedsim.experiment.config.plan import override
from fedsim.experiment.config.read import build, from_config, load_config
from fedsim.experiment.config.write import to_config

__all__ = ["build", "from_config", "load_config", "override", "to_config"]
