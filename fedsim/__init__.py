"""fedsim: simulate federations - central, gossip and compressed methods under one problem statement.

Names are imported when they are first used, so that the command line answers before PyTorch is loaded.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from fedsim.record.version import __version__ as __version__

if TYPE_CHECKING:
    from fedsim.algorithm import Algorithm as Algorithm
    from fedsim.api import resume as resume
    from fedsim.api import run as run
    from fedsim.clients import Clients as Clients
    from fedsim.engine.local_work import LocalWork as LocalWork
    from fedsim.experiment.execution import Execution as Execution
    from fedsim.experiment.execution import Ray as Ray
    from fedsim.experiment.experiment import Data as Data
    from fedsim.experiment.experiment import Evaluation as Evaluation
    from fedsim.experiment.experiment import Experiment as Experiment
    from fedsim.experiment.sampling import Bernoulli as Bernoulli
    from fedsim.experiment.sampling import FixedSize as FixedSize
    from fedsim.record.metrics import read_metrics as read_metrics
    from fedsim.report.compare import compare as compare
    from fedsim.report.curves import curves as curves
    from fedsim.types import Batch as Batch
    from fedsim.types import Kept as Kept
    from fedsim.types import Local as Local
    from fedsim.types import Rule as Rule
    from fedsim.types import Sent as Sent
    from fedsim.values import Compressor as Compressor
    from fedsim.values import Packed as Packed
    from fedsim.values import Site as Site
    from fedsim.values import Vector as Vector

_HOME = {
    "fedsim.algorithm": ["Algorithm"],
    "fedsim.api": ["resume", "run"],
    "fedsim.clients": ["Clients"],
    "fedsim.engine.local_work": ["LocalWork"],
    "fedsim.experiment.execution": ["Execution", "Ray"],
    "fedsim.experiment.experiment": ["Data", "Evaluation", "Experiment"],
    "fedsim.experiment.sampling": ["Bernoulli", "FixedSize"],
    "fedsim.record.metrics": ["read_metrics"],
    "fedsim.report.compare": ["compare"],
    "fedsim.report.curves": ["curves"],
    "fedsim.types": ["Batch", "Kept", "Local", "Rule", "Sent"],
    "fedsim.values": ["Compressor", "Packed", "Site", "Vector"],
}
_MODULE = {name: module for module, names in _HOME.items() for name in names}

__all__ = sorted(_MODULE)


def __getattr__(name: str) -> Any:
    if name not in _MODULE:
        raise AttributeError(f"module 'fedsim' has no attribute {name!r}")
    return getattr(import_module(_MODULE[name]), name)
