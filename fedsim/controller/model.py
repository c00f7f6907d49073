"""Build the model of an experiment."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from fedsim import seeds
from fedsim.controller.batch_norm import check_statistics
from fedsim.controller.initial import start_from
from fedsim.data import Dataset
from fedsim.data.catalogue import options_of
from fedsim.engine import nondeterministic
from fedsim.engine.augmentation import try_augmentation
from fedsim.engine.examine import examine, give_shapes
from fedsim.engine.model import Model
from fedsim.engine.numerics import Numerics
from fedsim.engine.sharing import Sharing
from fedsim.engine.trainable import check_trainable
from fedsim.engine.unpicklable import refused
from fedsim.errors import ConfigError, DataError, explained
from fedsim.experiment.experiment import Data, Experiment
from fedsim.models import losses
from fedsim.problems import Problem


def build_model(
    experiment: Experiment,
    dataset: Dataset,
    problem: Problem | None,
    seed: int,
    device: torch.device,
    dtype: torch.dtype,
) -> Model:
    """Build the model of an experiment and try it on training samples. Its initial values come from the file ``init``,
    or follow from the seed.

    Raises:
        ConfigError: the file holds another model, the augmentation does not fit the samples, or gradients of parts of a
            minibatch do not sum to its gradient.
        CodeError: a user's augmentation raised.
        ModelError: see ``fedsim.engine.examine.examine``; or the method does not average the model's running
            statistics; or an operation has no deterministic kernel, and ``deterministic`` is "strict".
    """
    if experiment.local.augment is not None:
        try_augmentation(experiment.local.augment, dataset.train.first(6).to(device, dtype).x)
    model = _built(experiment, dataset, problem, seed, device, dtype)
    if experiment.init is not None:
        start_from(model.module, experiment.init)
    with nondeterministic.tolerated(device):
        examine(model, dataset.train)
    if model.numerics.strict:
        nondeterministic.refuse(model.nondeterministic)
    if experiment.share.layers != "all":
        shared = experiment.share.mask(model.module, model.names)
        if not all(shared):
            model.sharing = Sharing(shared, model.sizes, model.vector(), experiment.share)
    if experiment.local.micro_batch is not None and (model.mixes or model.statistics):
        what = "has BatchNorm in training mode" if model.statistics else "mixes the samples of a minibatch in training"
        raise ConfigError(
            f"local.micro_batch is {experiment.local.micro_batch}, and the model or its loss {what}: gradients of parts"
            " of a minibatch do not sum to its gradient. Leave it out, or use fedsim.models.group_norm(model)"
        )
    if model.statistics:
        check_statistics(experiment)
    return model


def _built(
    experiment: Experiment,
    dataset: Dataset,
    problem: Problem | None,
    seed: int,
    device: torch.device,
    dtype: torch.dtype,
) -> Model:
    numerics = Numerics(experiment.precision, experiment.execution.deterministic == "strict")
    made: dict[str, Any] = {"device": device, "dtype": dtype, "numerics": numerics}
    if problem is not None:
        return Model(copy.deepcopy(problem.module), problem.loss, problem.penalty, **made)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(int(seeds.bits(seed, "model", 0, 0)) >> 1)
        if isinstance(experiment.model, nn.Module):
            module = _copied(experiment.model, "model")    # a copy: the user's initial values stay unchanged
        else:
            module = experiment.model.build(dataset.input_shape, dataset.classes)
        give_shapes(module, dataset.train.first(1).to(torch.device("cpu"), torch.get_default_dtype()).x)   # by the seed
        loss = loss_of(experiment, dataset)
    return Model(module, loss, **made)


def _copied(module: nn.Module, what: str) -> nn.Module:
    check_trainable(module)                                # before a copy has lost it
    try:
        return copy.deepcopy(module)
    except Exception as error:
        raise refused(error, "be copied", {what: module}, copy.deepcopy) from error


def loss_of(experiment: Experiment, dataset: Dataset) -> Callable[[Tensor, Tensor], Tensor]:
    """The per-sample loss of an experiment."""
    if isinstance(experiment.loss, nn.Module):
        return _copied(experiment.loss, "loss")
    if isinstance(experiment.loss, type):
        with explained(f"the loss {experiment.loss.__qualname__}"):
            return experiment.loss()  # type: ignore[no-any-return]
    if callable(experiment.loss):
        return experiment.loss
    name = experiment.loss
    if name == "auto":
        name = "cross_entropy" if dataset.classes else "squared"
    if name == "cross_entropy" and dataset.classes == 1:
        (label,) = dataset.label_names or ("the same",)
        raise DataError(
            f"all labels are {label}: there is nothing to learn; expected two classes or more"
            + _other_targets(experiment)
        )
    if isinstance(dataset.train.y, Tensor):
        _check_targets(name, dataset.train.y)
    return getattr(losses, name)  # type: ignore[no-any-return]


def _check_targets(loss: str, y: Tensor) -> None:
    """Refuse real numbers as targets of a loss of classes, and one-hot rows for a loss of one number.

    Raises:
        ConfigError: says how to have labels.
    """
    one_hot = y.dim() == 2 and y.shape[1] > 1 and bool(((y == 0) | (y == 1)).all() and (y.sum(1) == 1).all())
    if y.is_floating_point() and (loss == "cross_entropy" or (loss == "squared" and one_hot)):
        given = f"{'one-hot rows' if one_hot else 'real numbers'}, {y.dtype} of shape {list(y.shape)}"
        labels = "y.argmax(1)" if y.dim() == 2 else "y.long(), or as whole numbers in a file"
        raise ConfigError(
            f"loss is {loss}, and targets are {given}; expected labels, one int64 for each sample: {labels}. To train"
            " on targets as they are, give a loss of your own, a function of (outputs, targets) with a value [B]"
        )


def _other_targets(experiment: Experiment) -> str:
    """How to have other targets than labels that are all the same, by an option that the data set has."""
    name = experiment.data.name if isinstance(experiment.data, Data) else ""
    known, fixes = options_of(name) if name else [], []
    if "target" in known:
        fixes.append("if another column holds the labels, name it with --data.target")
    if "regression" in known:
        fixes.append("for regression set --data.regression true")
    if name == "npz":
        fixes.append("to predict numbers, save y as real numbers: y.astype(float)")
    return "".join(f"; {fix}" for fix in fixes)
