"""Mistakes of a user are refused before the first round, with the fix."""

from __future__ import annotations

import math
import threading
from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import Any, Literal

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from algorithms import FedAvg
from fedsim.backends.ray import session as sessions
from fedsim.backends.ray.actors import Workers
from fedsim.backends.ray.ray_backend import RayActors, split
from fedsim.backends.ray.ray_host import RayHost
from fedsim.clients import cohort
from fedsim.controller.prepare import prepare
from fedsim.engine.federation import Federation
from fedsim.engine.local_work import LocalWork, Shards
from fedsim.engine.loop import Loop
from fedsim.engine.machine import cores
from fedsim.engine.model import Model
from fedsim.errors import ConfigError
from fedsim.experiment.execution import Execution, Ray
from fedsim.experiment.experiment import Experiment
from fedsim.models.losses import cross_entropy
from tests.backends.ray.shared import STORE_BYTES, workers


class Guarded(nn.Module):
    """A layer that holds something that cannot leave its process."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 2)
        self.layer.guard = threading.Lock()  # type: ignore[assignment]

    def forward(self, x: Tensor) -> Tensor:
        """Logits."""
        out: Tensor = self.layer(x)
        return out


def federation(module: nn.Module, loss: Any = cross_entropy, samples: int = 4) -> Federation:
    x, y = torch.zeros(samples, 4), torch.zeros(samples, dtype=torch.int64)
    shards = Shards(x, y, np.array([0, samples // 2, samples]))
    return Federation(Model(module, loss), shards, LocalWork(), 0, Loop())


def first_round(fed: Federation, algorithm: Any = None) -> None:
    algorithm = algorithm or FedAvg()
    fed = replace(fed, backend=RayActors(workers(), 1))
    algorithm.round(algorithm.init(fed.model.vector(), cohort(fed, 0)), cohort(fed, 1))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"actors": 0}, "ray.actors is 0; expected a whole number, 1 or more"),
        ({"threads": -1}, "ray.threads is -1"),
        ({"actors": True}, "ray.actors is True"),
        ({"cpus": 0.0}, "ray.cpus is 0.0; expected a finite number above 0"),
        ({"cpus": math.inf}, "ray.cpus is inf"),
        ({"cpus": "2"}, "ray.cpus is '2'"),
        ({"gpus": 1.5}, "ray.gpus is 1.5; expected a share from 0 to 1, or a whole number"),
        ({"gpus": -1}, "ray.gpus is -1"),
        ({"gpus": math.inf}, "ray.gpus is inf"),
        ({"object_store_memory": 0}, "ray.object_store_memory is 0"),
        ({"address": "h:1", "object_store_memory": 10}, "a cluster has its own"),
        ({"on_error": "ignore"}, "on_error is 'ignore'; expected one of 'stop', 'skip', 'retry'"),
    ],
)
def test_settings(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as raised:
        Ray(**settings)
    assert message in str(raised.value)


def test_a_setting_of_ray_is_enough_to_use_it() -> None:
    assert Execution(ray=Ray(actors=2)).uses_ray and not Execution(device="cpu").uses_ray
    assert not Execution("blocks", ray=Ray(actors=2)).uses_ray, "what is asked for goes first"


@pytest.mark.parametrize("address", ["head", "ray://head:1", "auto"])
def test_an_address_that_is_none(address: str) -> None:
    with pytest.raises(ConfigError, match="expected host:port of a head"), sessions.session(address=address):
        pass


def test_more_gpus_than_there_are() -> None:
    there = torch.cuda.device_count()
    with pytest.raises(ConfigError, match=rf"need {there + 2} GPUs; this machine has {there}"):
        RayHost(Ray(actors=there + 2, gpus=1)).__enter__()


@pytest.mark.ray
def test_more_actors_than_fit() -> None:
    with pytest.raises(ConfigError, match=r"9 actors with 1 processors and 0 of a GPU each do not fit: Ray has 4"):
        Workers(workers().ray, Ray(actors=9))


def test_far_more_actors_than_processors() -> None:
    with pytest.raises(ConfigError, match=rf"999 actors with 1 processors each .* {cores()} processors"):
        RayHost(Ray(actors=999)).__enter__()


@pytest.mark.parametrize("version", ["2.54.0", "3.0.0", "2.55.0rc1"])
def test_a_version_that_is_not_known(version: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sessions, "import_module", lambda name: SimpleNamespace(__version__=version))
    with pytest.raises(ConfigError, match=rf"Ray {version} is installed; expected 2\.55\.1 or newer, below 3"):
        sessions.load()


def test_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> None:
        raise ModuleNotFoundError(f"No module named {name!r}", name=name)

    monkeypatch.setattr(sessions, "import_module", missing)
    with pytest.raises(ConfigError, match=r"pip install '\.\[ray\]' in a checkout"):
        sessions.load()


@pytest.mark.ray
def test_a_second_session_in_one_process() -> None:
    workers()
    with pytest.raises(ConfigError, match="connected to a Ray session already"), sessions.session():
        pass


@pytest.mark.ray
def test_an_object_store_too_small_says_how_large_it_must_be() -> None:
    samples = 2 * STORE_BYTES // 16
    with pytest.raises(ConfigError) as raised:
        first_round(federation(nn.Linear(4, 2), samples=samples))
    needed = int(str(raised.value).rsplit("--ray.object_store_memory to ", 1)[1].split()[0])
    assert needed > samples * (16 + 8) and "the object store has 200 MB; samples (600 MB)" in str(raised.value)


@pytest.mark.ray
def test_a_model_that_cannot_be_sent_names_the_attribute() -> None:
    with pytest.raises(ConfigError, match=r"model\.layer\.guard cannot be sent to another process \(TypeError: .*lock"):
        first_round(federation(Guarded()))


@pytest.mark.ray
def test_a_loss_that_cannot_be_sent_names_its_variable() -> None:
    lock = threading.Lock()

    def loss(outputs: Tensor, targets: Tensor) -> Tensor:
        with lock:
            return cross_entropy(outputs, targets)

    with pytest.raises(ConfigError, match=r"loss \(its variable lock\) cannot be sent"):
        first_round(federation(nn.Linear(4, 2), loss))


@pytest.mark.ray
def test_an_algorithm_that_cannot_be_sent_names_the_field() -> None:
    @dataclass(frozen=True)
    class Locked(FedAvg):
        guard: Any = None

    with pytest.raises(ConfigError, match=r"algorithm\.guard cannot be sent"):
        first_round(federation(nn.Linear(4, 2)), Locked(guard=threading.Lock()))


def test_an_experiment_with_such_a_model_names_it_for_every_backend() -> None:
    backends: list[Literal["blocks", "ray"]] = ["blocks", "ray"]
    for backend in backends:
        with pytest.raises(ConfigError, match=r"model\.layer\.guard cannot be copied"):
            prepare(Experiment(FedAvg(), model=Guarded(), execution=Execution(backend)), 0)


@given(
    costs=st.lists(st.integers(1, 100), min_size=1, max_size=60), size=st.integers(1, 20), count=st.integers(1, 9)
)
def test_runs_are_whole_blocks_that_cover_the_cohort_once(costs: list[int], size: int, count: int) -> None:
    runs = split(np.array(costs, float), size, count)
    assert 1 <= len(runs) <= count and [run.worker for run in runs] == list(range(len(runs)))
    assert [run.start for run in runs] == [0, *(run.stop for run in runs[:-1])] and runs[-1].stop == len(costs)
    assert all(run.start % size == 0 and run.start < run.stop for run in runs)


def test_runs_are_of_about_equal_cost() -> None:
    runs = split(np.array([8.0] * 10 + [1.0] * 80), 1, 4)
    paid = [sum(([8.0] * 10 + [1.0] * 80)[run.start : run.stop]) for run in runs]
    assert len(runs) == 4 and max(paid) - min(paid) <= 8
