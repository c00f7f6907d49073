"""Warnings of runs that are not comparable: data, model, work, seeds, and clients that were missing."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from fedsim.experiment.identity import settings_hash
from fedsim.record.directory import open_run
from fedsim.report.comparable import doubts
from fedsim.report.compare import compare
from tests.report.test_compare import FAST, SLOW, make_run


def test_warnings_name_what_differs(tmp_path: Path) -> None:
    a = make_run(tmp_path, "a", {0: [0.1, 0.5, 0.6]})
    b = make_run(tmp_path, "b", {0: [0.1, 0.5]}, state="interrupted", data_hash="e", partition_hash={"0": "q"})
    assert compare([a, b]).warnings == (
        "b: seed 0 has status interrupted (last evaluated round: 10); its last value is not a final one",
        "different data hash: a: d; b: e",
        "different partition hash: a: p; b: q",
        "different last evaluated rounds: a: [20]; b: [10]",
    )


def test_warnings_name_clients_that_were_missing(tmp_path: Path) -> None:
    paths = [make_run(tmp_path, name, FAST) for name in ("all", "some")]
    with open_run(paths[1]).open_seed(1) as record:
        for round, node in ((2, 7), (3, 7), (3, 4)):
            record.timing.add(round, "round", "skipped", 1, node)
    assert compare(paths).warnings == ("some: seed 1 had 2 clients missing in 2 of 30 rounds: 4 (1), 7",)


def test_warnings_name_data_model_and_evaluation_that_differ(tmp_path: Path) -> None:
    one = {"skew": None, "evaluation": {"holdout": 0.0, "every": 5, "clients_every": 0}}
    two = {"skew": {"name": "NoiseSkew"}, "evaluation": {"holdout": 0.2, "every": 5, "clients_every": 2}}
    paths = [
        make_run(tmp_path, name, SLOW, config=config, parameters=parameters)
        for name, config, parameters in (("a", one, 38), ("b", two, 578))
    ]
    compared = compare(paths)
    assert compared.warnings == (
        "different evaluation.holdout: a: 0.0; b: 0.2",
        "different parameters: a: 38; b: 578",
        "different skew.name: a: None; b: NoiseSkew",
    )
    often = make_run(tmp_path, "often", {seed: [v for v in values for _ in range(2)] for seed, values in SLOW.items()})
    run = compare([often]).runs[0].run
    halved = {seed: replace(s, cost={**s.cost, "round": s.cost["round"] / 2}) for seed, s in run.seeds.items()}
    (told,) = (text for text in doubts([compared.runs[0].run, replace(run, seeds=halved)]) if "measured" in text)
    assert told.endswith("up to 30 (costs, last and best values depend on it): a: 4 times; often: 7 times")


def test_warnings_name_work_that_differs(tmp_path: Path) -> None:
    """Unless the labels say it already."""
    work = [{"batch_size": 8, "epochs": 1}, {"batch_size": 32, "epochs": 1}]
    a, b = (make_run(tmp_path, n, SLOW, config={"local": w}) for n, w in zip("ab", work, strict=True))
    assert compare([a, b]).warnings == ("different local.batch_size: a: 8; b: 32",)
    c, d = (make_run(tmp_path, n, SLOW, config={"name": None, "local": w}) for n, w in zip("cd", work, strict=True))
    assert [summary.run.label for summary in compare([c, d]).runs] == ["FedAvg, batch_size=8", "FedAvg, batch_size=32"]
    assert not compare([c, d]).warnings


def test_a_run_of_an_earlier_version_made_the_default_local_steps(tmp_path: Path) -> None:
    steps = {"weight_decay_mode": "objective", "clip_mode": "gradient"}
    local = [{}, {**steps, "optimizer": {"name": "SGD"}}, {**steps, "optimizer": {"name": "Adam", "beta1": 0.9}}]
    old, now, adam = (
        make_run(tmp_path, f"run-{k}", FAST, config={"local": {"batch_size": 8, **settings}})
        for k, settings in enumerate(local)
    )
    assert compare([old, now]).warnings == ()
    assert compare([old, adam]).warnings == (
        "different local.optimizer.beta1: run-0: None; run-2: 0.9",
        "different local.optimizer.name: run-0: SGD; run-2: Adam",
    )


def test_warnings_name_a_config_that_was_edited(tmp_path: Path) -> None:
    path = make_run(tmp_path, "a", FAST, config={"rounds": 30})
    config = open_run(path).config
    open_run(path).update_manifest(settings_hash=settings_hash(config))
    assert compare([path]).warnings == ()
    text = (path / "config.yaml").read_text()
    (path / "config.yaml").write_text(text.replace("rounds: 30", "rounds: 40"))
    (warning,) = compare([path]).warnings
    assert warning == "a: its config.yaml was edited, and says other settings than the run was made with"


def test_models_of_one_class_with_other_layers_are_told(tmp_path: Path) -> None:
    """A ``Sequential`` made in Python is no more than its name in config.yaml."""
    manifests = [{}, {"layers_hash": "1" * 64}, {"layers_hash": "2" * 64}]
    old, a, b = (
        make_run(tmp_path, name, FAST, config={"model": {"name": "Sequential"}}, **manifest)
        for name, manifest in zip(("old", "a", "b"), manifests, strict=True)
    )
    assert compare([old, a, b]).warnings == (f"models of one name with different layers: a: {'1' * 12}; b: {'2' * 12}",)
    assert not compare([old, a]).warnings
