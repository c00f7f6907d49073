"""Components as data: descriptions agree with the classes, survive a process, and follow the sources."""

from __future__ import annotations

import io
import os
import pickle
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import pytest

from algorithms import FedAvg
from fedsim.experiment.config import remembered as module
from fedsim.experiment.config.described import REQUIRED, catalogue, describe, experiment_component
from fedsim.experiment.config.hints import help_of, parameters
from fedsim.experiment.config.names import CATALOGUES, listed
from fedsim.experiment.config.plan import known_of
from fedsim.experiment.config.remembered import remembered
from fedsim.experiment.experiment import Experiment
from fedsim.experiment.sampling import FixedSize


@dataclass(frozen=True)
class Inner:
    """Settings."""

    a: int = 1


@dataclass(frozen=True)
class Outer:
    """A component. It has parts.

    Args:
        number: how many.
        inner: settings of its own.
        sampling: who takes part.
        loss: what is small.
    """

    number: int
    inner: Inner | None = None
    sampling: FixedSize | float | Literal["all"] = field(default_factory=FixedSize)
    loss: Any = 0.5


def test_a_description_has_what_a_config_needs() -> None:
    card = describe(Outer)
    assert card.about == "A component." and list(card.settings) == ["number", "inner", "sampling", "loss"]
    number, inner, sampling, loss = card.settings.values()
    assert (number.type, number.default, number.about, number.optional) == (int, REQUIRED, "how many.", False)
    assert inner.only is not None and inner.optional and inner.only.settings["a"].default == 1 and not inner.plain
    assert (sampling.number, sampling.words, sampling.only) == (True, ("all",), None)
    assert sampling.default["name"] == "FixedSize"
    assert loss.plain and loss.optional and loss.default == 0.5
    assert describe(card) is card and card(3) == Outer(3), "called, it is imported"


def test_descriptions_agree_with_all_listed_classes() -> None:
    for kind in CATALOGUES:
        known = catalogue(kind)
        for name, cls in listed(kind).items():
            settings = known[name].settings
            assert list(settings) == list(parameters(cls)), name
            assert {key: each.about for key, each in settings.items() if each.about}.items() <= help_of(cls).items()
            assert known[name].module == cls.__module__ and known[name].name == cls.__qualname__
    assert experiment_component()(FedAvg()) == Experiment(FedAvg())


def test_a_function_that_divides_is_given_labels_and_seed() -> None:
    def divide(labels: Any, seed: int, clients: int = 3) -> Any: ...

    assert list(known_of("partition", [describe(divide)])) == ["clients"]


def test_pickled_descriptions_name_no_class() -> None:
    """Else reading one would import PyTorch."""
    written = pickle.dumps([catalogue(kind) for kind in (*CATALOGUES, "data")] + [experiment_component()])
    modules = {line.split()[0] for line in pickle_globals(written)}
    assert {m for m in modules if m.split(".")[0] in ("fedsim", "algorithms", "topologies", "torch")} == {
        "fedsim.experiment.config.described"
    }


def pickle_globals(data: bytes) -> list[str]:
    """``module name`` of each class or function that reading a pickle imports."""
    found: list[str] = []

    class Reader(pickle.Unpickler):
        def find_class(self, module_name: str, global_name: str) -> Any:
            found.append(f"{module_name} {global_name}")
            return super().find_class(module_name, global_name)

    Reader(io.BytesIO(data)).load()
    return found


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(module, "folder", lambda: tmp_path / "components")
    return tmp_path / "components"


def test_a_value_is_read_once_per_state_of_the_sources(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reads = iter(range(10))
    assert [remembered("x", lambda: next(reads)) for _ in range(3)] == [0, 0, 0]
    assert remembered("y", lambda: next(reads)) == 1
    monkeypatch.setattr(module, "digest_of_sources", lambda: "edited")
    assert [remembered("x", lambda: next(reads)) for _ in range(2)] == [2, 2]
    (cache / "x.pickle").write_bytes(b"damaged")
    assert remembered("x", lambda: next(reads)) == 3
    assert {file.name for file in cache.iterdir()} == {"x.pickle", "y.pickle"}


@pytest.mark.parametrize("place", [".", "x.pickle"])
def test_what_others_can_write_is_not_opened(cache: Path, place: str) -> None:
    reads = iter(range(10))
    assert [remembered("x", lambda: next(reads)) for _ in range(2)] == [0, 0]
    (cache / place).chmod(0o722)
    assert remembered("x", lambda: next(reads)) == 1


def test_without_a_place_for_it_a_value_is_read_each_time(cache: Path) -> None:
    cache.write_text("a file where the folder would be")
    reads = iter(range(10))
    assert [remembered("x", lambda: next(reads)) for _ in range(2)] == [0, 1]


def test_the_digest_follows_an_edit_and_a_new_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "one.py").write_text("a = 1")
    monkeypatch.setattr(module, "_roots", lambda: [tmp_path])
    digest = module.digest_of_sources.__wrapped__
    first = digest()
    assert digest() == first
    os.utime(tmp_path / "one.py", ns=(1, 1))
    second = digest()
    (tmp_path / "two.py").write_text("")
    assert len({first, second, digest()}) == 3


def test_the_folder_is_one_of_this_python(monkeypatch: pytest.MonkeyPatch) -> None:
    before = module.folder()
    monkeypatch.setattr(sys, "version", "4.0")
    assert module.folder() != before and module.folder().parent == before.parent
