"""Simulator of federated and decentralized learning: server-based, gossip and compressed methods.

Names are imported on first use, so that the command line responds before PyTorch is loaded; type checkers read
``__init__.pyi``.
"""

from importlib import import_module
from typing import Any

from fedsim.record.version import __version__ as __version__

_NAMES = {
    "fedsim.algorithm": ["Algorithm"],
    "fedsim.api": ["resume", "run", "trained_model"],
    "fedsim.clients": ["Clients"],
    "fedsim.clock": ["Clock", "Daily", "HalfNormal", "LogNormal", "OnOff", "TracedClock", "Uniform", "Waiting"],
    "fedsim.compress": [
        "BernoulliCompressor", "Blockwise", "Composed", "Identity", "LowPrecision", "LowRank", "Natural",
        "NaturalDithering", "PowerSGD", "QSGD", "RandK", "Scaled", "Sign", "Threshold", "TopK",
    ],
    "fedsim.controller.watching": ["RoundView"],
    "fedsim.data": ["Dataset", "Split", "dataset_by_client", "dataset_of", "save_dataset"],
    "fedsim.engine.augmentation": ["Chain", "CropAndFlip", "Cutout", "Jitter"],
    "fedsim.engine.sharing": ["Share"],
    "fedsim.engine.local_work": ["LocalWork"],
    "fedsim.engine.mixup": ["Mixup"],
    "fedsim.engine.optimizers": ["SGD", "Adagrad", "Adam", "AdamW", "HeavyBall", "Nesterov", "RMSprop"],
    "fedsim.experiment.adaptive": ["Oort", "PowerOfChoice"],
    "fedsim.engine.step_schedules": ["CosineSteps", "LinearSteps"],
    "fedsim.experiment.execution": ["Execution", "Ray"],
    "fedsim.experiment.evaluation": ["Evaluation"],
    "fedsim.experiment.experiment": ["Data", "Experiment"],
    "fedsim.experiment.sampling": ["Bernoulli", "FixedSize"],
    "fedsim.experiment.schedule": ["Constant", "Cosine", "ExponentialDecay", "Steps"],
    "fedsim.experiment.stopping": ["Stop"],
    "fedsim.feedback": ["Choco", "EControlUplink", "EF14Uplink", "EF21P", "EF21Uplink", "Plain", "WorkerMomentum"],
    "fedsim.messages.rebuilt": ["Rebuilt"],
    "fedsim.models": ["GPT", "MLP", "CharLSTM", "CifarLeNet", "LeNet5", "Logistic", "McMahanCNN", "ResNet18"],
    "fedsim.partition": [
        "ClientDirichletPartitioner", "ContinuousPartitioner", "DirichletPartitioner", "DistributionPartitioner",
        "ExponentialPartitioner", "GroupedNaturalIdPartitioner", "IdToSizeFncPartitioner", "IidPartitioner",
        "InnerDirichletPartitioner", "LinearPartitioner", "NaturalIdPartitioner", "NoiseSkew",
        "PathologicalPartitioner", "RotationSkew", "ShardPartitioner", "SizePartitioner", "SquarePartitioner",
    ],
    "fedsim.problems": ["Problem", "least_squares", "logistic_regression", "zeta_least_squares"],
    "fedsim.record.metrics": ["read_metrics"],
    "fedsim.report.compare": ["compare"],
    "fedsim.report.curves": ["curves"],
    "fedsim.report.pareto": ["pareto"],
    "fedsim.report.records": ["records"],
    "fedsim.report.ribbons": ["ribbons"],
    "fedsim.report.sweep_maps": ["heat_map"],
    "fedsim.report.tables": ["to_latex", "to_markdown"],
    "fedsim.report.terminal": ["render"],
    "fedsim.report.timeline_picture": ["timeline"],
    "fedsim.seeds": ["uniform_of"],
    "fedsim.sweeps.jobs": ["sweep"],
    "fedsim.sweeps.tuning": ["tune"],
    "fedsim.types": ["Batch", "Kept", "Local", "Rule", "Sent"],
    "fedsim.values": ["Compressor", "Packed", "Site", "Vector"],
}
_MODULE = {name: module for module, names in _NAMES.items() for name in names}

__all__ = sorted(_MODULE)


def __getattr__(name: str) -> Any:
    if name not in _MODULE:
        raise AttributeError(f"module 'fedsim' has no attribute {name!r}")
    return getattr(import_module(_MODULE[name]), name)


def __dir__() -> list[str]:
    return [*globals(), *__all__]
