"""`load` and `available`: names, options, where files are sought, and what is said when they are missing."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits

from fedsim.data import MissingDataError, available, data_directory, load
from fedsim.data.catalogue import FORMATS, NAMED
from fedsim.data.digits import digits_of_scikit_learn
from fedsim.errors import ConfigError, DataError


def test_everything_is_described() -> None:
    described = available()
    assert set(described) == set(NAMED) | set(FORMATS)
    assert {"digits", "mnist", "cifar10", "shakespeare", "npz", "csv"} <= set(described)
    assert all(line and "\n" not in line and len(line) < 100 for line in described.values())


def test_digits() -> None:
    data = load("digits")
    assert data.input_shape == (1, 8, 8) and data.classes == 10
    assert len(data.train.y) + len(data.test.y) == 1797 and len(data.test.y) == 359
    assert data.train.x.min() == 0 and data.train.x.max() == 1
    assert data.test.y.bincount().min() >= 34
    again, other = load("digits"), load("digits", seed=1)
    assert torch.equal(data.test.x, again.test.x) and not torch.equal(data.test.x, other.test.x)


def test_unknown_names_suggest_the_nearest() -> None:
    with pytest.raises(ConfigError, match=r"no data set 'cifar-10'; did you mean 'cifar10'\?"):
        load("cifar-10")
    with pytest.raises(ConfigError, match=r"'digits' has no option 'test_fractoin'; did you mean 'test_fraction'\?"):
        load("digits", test_fractoin=0.1)
    with pytest.raises(ConfigError, match="'mnist' has no option 'seed'; known: none"):
        load("mnist", seed=1)


@pytest.mark.parametrize("name", FORMATS)
def test_formats_need_a_path_to_files(tmp_path: Path, name: str) -> None:
    with pytest.raises(ConfigError, match="needs option 'path'"):
        load(name)
    with pytest.raises(ConfigError, match="cannot be downloaded"):
        load(name, path=tmp_path, download=True)
    with pytest.raises(MissingDataError, match=f"{tmp_path}.*expected"):
        load(name, path=tmp_path / "none")


def test_data_directory(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("FEDSIM_DATA", str(tmp_path / "env"))
    assert data_directory() == tmp_path / "env"
    assert data_directory(tmp_path / "arg") == tmp_path / "arg"
    assert data_directory("~/x") == Path.home() / "x"
    monkeypatch.delenv("FEDSIM_DATA")
    assert data_directory().name == "fedsim"


@pytest.mark.parametrize("name", sorted(set(NAMED) - {"digits", "fashion_mnist"}))
def test_missing_files_are_explained(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, name: str) -> None:
    monkeypatch.setenv("FEDSIM_DATA", str(tmp_path))
    with pytest.raises(MissingDataError) as caught:
        load(name)
    said = str(caught.value)
    assert isinstance(caught.value, DataError)
    assert "FEDSIM_DATA" in said and "--data-dir" in said and "https://" in said
    assert f"sought in:  {tmp_path}" in said and f"put it in:  {tmp_path}" in said


def test_missing_files_are_named(tmp_path: Path) -> None:
    (tmp_path / "libsvm").mkdir()
    (tmp_path / "libsvm" / "a9a").write_text("1 1:1\n")
    with pytest.raises(MissingDataError, match=r"a9a is missing: a9a\.t \(plain or \.gz\) not found") as caught:
        load("a9a", tmp_path)
    assert "load with download=True" in str(caught.value)
    with pytest.raises(MissingDataError, match="not offered, since no published checksum"):
        load("uci_har", tmp_path, download=True)


def test_digits_are_those_of_scikit_learn(monkeypatch: pytest.MonkeyPatch) -> None:
    pixels, labels = load_digits(return_X_y=True)
    ours = digits_of_scikit_learn()
    assert np.array_equal(ours[0], pixels) and np.array_equal(ours[1], labels)
    monkeypatch.setattr("fedsim.data.digits.find_spec", lambda name: None)     # a version that keeps them elsewhere
    again = digits_of_scikit_learn()
    assert np.array_equal(again[0], pixels) and np.array_equal(again[1], labels)


@pytest.mark.process
def test_import_is_light() -> None:
    program = "import sys, fedsim.data; print([m for m in ('sklearn', 'pooch', 'scipy') if m in sys.modules])"
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"


@pytest.mark.process
def test_a_run_with_a_server_imports_nothing_slow(tmp_path: Path) -> None:
    program = """if True:
        import sys
        import fedsim.backends.ray.actor, fedsim.cli
        code = fedsim.cli.main(["run", "--algorithm", "FedAvg", "--rounds", "1", "--quiet", "--json"])
        print(code, [m for m in ("sklearn", "scipy.sparse", "scipy.stats", "networkx") if m in sys.modules])
    """
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=tmp_path)
    assert run.stdout.splitlines()[-1] == "0 []"
