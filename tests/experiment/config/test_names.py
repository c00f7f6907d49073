"""Names of components: aliases from the literature, and summaries of docstrings."""

from __future__ import annotations

import re
from typing import Any

import pytest
from jsonargparse import ArgumentParser

from algorithms import DIANA, L1, NIDS, ChocoSGD, DFedAvg, DFedSAM, FedOpt, FedSpeed, Scaffold
from fedsim.compress import COMPRESSORS, QSGD
from fedsim.errors import ConfigError
from fedsim.experiment.config import from_config, override, to_config
from fedsim.experiment.config.described import catalogue, experiment_component
from fedsim.experiment.config.hints import summary
from fedsim.experiment.config.meant import KINDS, flags_of, kinds_of, places
from fedsim.experiment.config.names import ALIASES, CATALOGUES, listed
from fedsim.experiment.config.plan import plan
from fedsim.experiment.short_forms import put


@pytest.mark.parametrize(
    ("algorithm", "expected"),
    [
        ("FedAdam", FedOpt(optimizer="adam")),
        ("FedYogi", FedOpt(optimizer="yogi")),
        ("FedAdagrad", FedOpt(optimizer="adagrad", beta1=0.0)),
        ("FedDyn", FedSpeed(rho=0.0, lam=100.0)),
        ({"name": "feddyn", "lam": 10.0, "lr": 0.05}, FedSpeed(lr=0.05, rho=0.0, lam=10.0)),
        ("SCAFFOLD", Scaffold()),
        ("scaffold", Scaffold()),
        ("DFedAvgM", DFedAvg(momentum=0.9)),
        ("DFedSAM-MGS", DFedSAM(gossip_steps=4)),
        ("CHOCO-Gossip", ChocoSGD(lr=0.0)),
        ({"name": "DIANA", "compressor": "TernGrad"}, DIANA(compressor=QSGD(1, "linf"))),
        ({"name": "DIANA", "compressor": {"name": "terngrad", "s": 1}}, DIANA(compressor=QSGD(1, "linf"))),
    ],
)
def test_an_alias_is_a_component_with_settings(algorithm: Any, expected: Any) -> None:
    topology = None if getattr(expected, "server", True) else "Static"
    experiment = from_config({"algorithm": algorithm, "topology": topology})
    assert experiment.algorithm == expected
    assert to_config(experiment)["algorithm"]["name"] == type(expected).__name__, "the resolved config has no alias"


def test_every_alias_names_a_component_that_has_its_settings() -> None:
    for kind, (_, attribute, *_) in CATALOGUES.items():
        for alias in ALIASES.get(attribute, {}).values():
            named = {*alias.settings, *alias.defaults, *alias.without}
            assert named <= catalogue(kind)[alias.name].settings.keys()


@pytest.mark.parametrize(
    ("algorithm", "said"),
    [
        ({"name": "FedDyn", "alpha": 0.1}, "algorithm.alpha is 0.1, but FedDyn has no alpha; its alpha is 1 / lam"),
        ({"name": "FedAdagrad", "beta1": 0.9}, "algorithm.beta1 is 0.9, but FedAdagrad is FedOpt with beta1=0.0"),
        ({"name": "DIANA", "compressor": {"name": "TernGrad", "s": 3}}, "compressor.s is 3, but TernGrad is QSGD"),
    ],
)
def test_an_alias_refuses_settings_that_it_fixes_or_lacks(algorithm: Any, said: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(said)):
        from_config({"algorithm": algorithm})


@pytest.mark.parametrize(
    ("file", "flags", "expected"),
    [
        ({"name": "FedSpeed", "rho": 0.2, "lr": 0.05}, "FedDyn", FedSpeed(lr=0.05, rho=0.0, lam=100.0)),
        ({"name": "FedDyn", "lam": 50.0}, "FedSpeed", FedSpeed(lam=50.0)),
        ({"name": "FedDyn", "lam": 50.0}, "FedDyn", FedSpeed(rho=0.0, lam=50.0)),
        ("FedDyn", {"lr": 0.3, "lam": 10.0}, FedSpeed(lr=0.3, rho=0.0, lam=10.0)),
        ("FedAdam", "FedYogi", FedOpt(optimizer="yogi")),
    ],
)
def test_flags_override_the_file_with_aliases(file: Any, flags: Any, expected: Any) -> None:
    assert from_config(override({"algorithm": file}, {"algorithm": flags}, [])).algorithm == expected


@pytest.mark.parametrize(
    ("name", "near"),
    [("FedDin", "FedDyn"), ("fedadagard", "FedAdagrad"), ("Scafold", "Scaffold"), ("CHOCOGossip", "CHOCO-Gossip")],
)
def test_a_mistyped_name_suggests_an_alias(name: str, near: str) -> None:
    with pytest.raises(ConfigError, match=f"algorithm is '{name}'; did you mean '{near}'"):
        from_config({"algorithm": name})


def test_a_summary_is_the_first_sentence() -> None:
    def one() -> None:
        """Rows of a
        table, by Doe et al. Others (Proc. IEEE) omit 0.5 of them. This is the second sentence.

        This is another paragraph.
        """

    def two() -> None:
        """No full stop
        """  # fmt: skip

    assert summary(one) == "Rows of a table, by Doe et al. Others (Proc. IEEE) omit 0.5 of them."
    assert summary(two) == "No full stop" and summary(lambda: 0) == ""
    assert all(summary(cls)[-1] == "." for cls in COMPRESSORS.values())


def test_types_of_all_listed_components_are_known() -> None:
    """A type that jsonargparse cannot resolve accepts any value."""
    for cls in {cls for kind in CATALOGUES for cls in listed(kind).values()}:
        parser = ArgumentParser()
        parser.add_class_arguments(cls)
        assert "Unvalidated" not in parser.format_help(), cls


def test_a_proximal_operator_is_given_by_its_dotted_name() -> None:
    prox = {"name": "algorithms.L1", "lam": 0.01}
    experiment = from_config({"algorithm": {"name": "NIDS", "prox": prox}, "topology": "Static"})
    assert experiment.algorithm == NIDS(prox=L1(0.01))


@pytest.mark.parametrize(
    ("settings", "meant"),
    [
        ({"topology": "ring"}, "did you mean --topology Static --topology.graph Ring? Known: Static, "),
        ({"topology": {"name": "LinkFailures", "base": "Ring"}}, "--topology.base Static --topology.base.graph Ring?"),
        ({"uplink": "TopK"}, "did you mean --uplink EF14 --uplink.compressor TopK (or Choco, EControl, EF21, ...)?"),
        ({"sampling": "Ring"}, "did you mean --topology Static --topology.graph Ring?"),
        ({"partition": "RotationSkew"}, "did you mean --skew RotationSkew?"),
        ({"local": {"optimizer": "FedAdam"}}, "did you mean 'Adam' or --algorithm FedAdam?"),
        ({"sampling": "AdamW"}, "did you mean --local.optimizer AdamW?"),
        ({"model": "digits"}, "did you mean --data digits?"),
        ({"data": "MLP"}, "did you mean --model MLP?"),
        ({"data": "mine.csv"}, "--data csv --data.path mine.csv?"),
        ({"topology": {"name": "Static", "graph": "Rings"}}, "did you mean 'Ring'? Known: "),
        ({"sampling": "Qwertyuiop"}, "; known: FixedSize"),
    ],
)
def test_a_name_of_another_kind_is_told_with_its_flags(settings: dict[str, Any], meant: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(meant)):
        from_config({"algorithm": "FedAvg", **settings})


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"sampling": "0.2"}, "Choice), or a setting of FixedSize: --sampling.fraction, --sampling.size"),
        ({"sampling": 0.2}, "sampling is 0.2; expected a name (FixedSize, "),
        ({"clock": 3}, "clock is 3; expected a name (Clock, TracedClock)"),
        ({"stop": "0.9"}, "expected settings: metric, target, patience, scope, as --stop.target"),
        ({"local": {"lr": 0.1}}, "unknown setting local.lr: did you mean algorithm.lr? Known: batch_size, "),
        ({"algorithm": {"name": "FedAvg", "epochs": 2}}, "setting algorithm.epochs: did you mean local.epochs?"),
        ({"sampling": {"rounds": 2}}, "unknown setting sampling.rounds: did you mean rounds or schedule.rounds?"),
        ({"lr": 2}, "unknown setting lr: did you mean algorithm.lr?"),
        ({"uplink": {"compressor": "TopK"}}, "uplink has compressor and no name; expected --uplink NAME, such as EF14"),
        ({"algorithm": {"lr": 0.1}}, "algorithm has lr and no name; expected --algorithm NAME, such as FedAvg"),
    ],
)
def test_a_number_or_a_setting_in_a_wrong_place(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(said)):
        from_config({"algorithm": "FedAvg", **settings})


def test_flags_that_are_told_can_be_given() -> None:
    """Components of all kinds at the places of all others."""
    everywhere = places(experiment_component().settings)
    for place, kind in everywhere.items():
        for name in sorted({name for other in KINDS for name in catalogue(other)} - catalogue(kind).keys())[::6]:
            ways = flags_of(place, *kinds_of(name))
            assert ways, name
            for way in ways:
                words, above = re.sub(r" \(or [^)]*\)", "", way).split(), dict[str, Any](algorithm="FedAvg")
                for flag, value in zip(words[::2], words[1::2], strict=True):
                    above = put(above, flag.removeprefix("--"), value)
                assert plan(experiment_component(), above).parts
