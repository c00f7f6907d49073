"""Compressed links of an experiment: by name in files and on the command line; interrupted runs go on."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from algorithms import DFedSAM, FedAMD, FedAvg
from fedsim import Evaluation, Execution, Experiment, FixedSize, LocalWork, resume, run
from fedsim.cli import main
from fedsim.compress import RandK, TopK
from fedsim.errors import ConfigError
from fedsim.experiment.config import from_config, to_config
from fedsim.feedback import EF21P, Choco, EControlUplink, EF14Uplink, EF21Uplink, Plain
from fedsim.feedback.compressed import Compressed
from fedsim.models import MLP
from fedsim.partition import DirichletPartitioner
from fedsim.record.metrics import read_metrics
from tests.checkpoints import content
from tests.sweeps.test_grid import over
from topologies import Ring, Static

SMALL = Experiment(
    FedAMD(lr=0.1, p=0.5),
    uplink=EF21Uplink(TopK(0.05)),
    downlink=EF21P(TopK(0.1)),
    partition=DirichletPartitioner(8, alpha=0.5, min_partition_size=8),
    model=MLP(hidden=(16,)),
    local=LocalWork(batch_size=16, steps=3),
    sampling=FixedSize(0.5),
    rounds=8,
    evaluation=Evaluation(every=2),
    execution=Execution("blocks", block_size=3, checkpoint_every=3),
)
GOSSIP = replace(
    SMALL, algorithm=DFedSAM(), uplink=Choco(RandK(0.1, scaled=False), 0.3), downlink=None, sampling=FixedSize(),
    topology=Static(Ring()),
)  # fmt: skip
UP_ONLY = replace(SMALL, uplink=EControlUplink(TopK(0.05)), downlink=None)
LINKS = [
    (FedAvg(), Plain(), None), (FedAvg(), EF14Uplink(TopK(0.1)), Plain()),
    (FedAvg(), EControlUplink(TopK(k=3), 0.5), EF21P()), (FedAMD(), None, EF21P()),
    (DFedSAM(), Choco(TopK(0.2), 0.4), None),
]  # fmt: skip


@pytest.mark.parametrize("memory", ["device", "disk"])
@pytest.mark.parametrize("experiment", [SMALL, GOSSIP, UP_ONLY])
@pytest.mark.slow
def test_a_run_goes_on_from_its_checkpoint_bit_for_bit(tmp_path: Path, experiment: Experiment, memory: Any) -> None:
    """Memories whose shape was known only after the first round come back, absent clients' among them."""
    directory = run(experiment.with_execution(memory=memory), output=tmp_path / "run", progress=False)
    seed = directory.seed_path(0)
    whole, state = (seed / "metrics.jsonl").read_bytes(), content(seed / "checkpoints")
    shutil.rmtree(seed / "checkpoints/round-000008")
    directory.mark(0, "interrupted")
    resume(directory.path, progress=False)
    assert (seed / "metrics.jsonl").read_bytes() == whole and content(seed / "checkpoints") == state


def test_what_a_compressed_run_costs(tmp_path: Path) -> None:
    d = 64 * 16 + 16 + 16 * 10 + 10
    costs = {}
    for name, uplink in (("none", None), ("ef21", EF21Uplink(TopK(0.01)))):
        experiment = replace(SMALL, algorithm=FedAvg(), uplink=uplink, downlink=None)
        rows = read_metrics(run(experiment, output=tmp_path / name, progress=False).seed_path(0) / "metrics.jsonl")
        costs[name] = {metric: rows.series("total", metric)[8] for metric in ("bytes_up", "bytes_down", "paper_bits")}
    assert costs["none"]["bytes_down"] == costs["ef21"]["bytes_down"] == 8 * 4 * (7 + 4 * d)
    assert costs["none"]["bytes_up"] == 8 * 4 * (7 + 4 * d)
    kept = 13                                              # a hundredth of d, rounded up
    assert costs["ef21"]["paper_bits"] == 8 * 4 * 32 * kept
    assert 8 * 4 * (12 + 4 * kept) < costs["ef21"]["bytes_up"] < 8 * 4 * (12 + 4 * kept + 2 * kept + 4)


@pytest.mark.parametrize(("algorithm", "uplink", "downlink"), LINKS)
def test_links_survive_a_config_file(algorithm: Any, uplink: Any, downlink: Any) -> None:
    topology = Static(Ring()) if isinstance(algorithm, DFedSAM) else None
    experiment = Experiment(algorithm, uplink=uplink, downlink=downlink, topology=topology)
    again = from_config(yaml.safe_load(yaml.safe_dump(to_config(experiment))))
    assert again == experiment and again.method == Compressed(algorithm, uplink, downlink)


def test_links_from_flags(capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["--uplink", "EF21", "--uplink.compressor", "TopK", "--uplink.compressor.fraction", "0.02"]
    assert main(["run", "--algorithm", "FedAvg", *flags, "--downlink", "Plain", "--print-config"]) == 0
    config = yaml.safe_load(capsys.readouterr().out)
    assert config["uplink"]["name"] == "EF21" and config["uplink"]["compressor"]["fraction"] == 0.02
    assert from_config(config).uplink == EF21Uplink(TopK(0.02)) and from_config(config).downlink == Plain()
    assert from_config(config).title == "fedavg-ef21-plain-digits"
    assert main(["list", "uplinks"]) == 0
    listed = capsys.readouterr().out
    assert all(name in listed for name in ("Choco", "EControl", "EF14", "EF21", "Plain"))
    assert main(["list", "downlinks"]) == 0 and "EF21P" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--uplink", "EF12"], "uplink is 'EF12'"),
        (["--uplink", "EF21", "--uplink.compressor", "TopQ"], "uplink.compressor is 'TopQ'"),
        (["--uplink", "EF21", "--uplink.compresor", "TopK"], "unknown setting uplink.compresor"),
        (["--uplink", "EF21", "--uplink.compressor.fraction", "0"], "TopK.fraction is 0"),
        (["--uplink", "EF21", "--uplink.compressor", "RandK"], "Scaled(RandK"),
        (["--uplink", "Choco"], "uplink Choco is for messages among neighbours, but FedAvg"),
        (["--uplink", "EF21P"], "uplink is 'EF21P'"),
        (["--algorithm", "DFedAvg", "--topology", "Static", "--uplink", "EF21"], "neighbours: Choco or Plain"),
        (["--algorithm", "DFedAvg", "--topology", "Static", "--downlink", "EF21P"], "DFedAvg has no server"),
    ],
)
def test_links_that_are_refused_on_the_command_line(
    flags: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["run", *over(["--algorithm", "FedAvg"], *flags), "--root", str(tmp_path / "runs")]) != 0
    assert message in " ".join(capsys.readouterr().err.split())
    assert not (tmp_path / "runs").exists()


def test_absent_neighbours_are_refused_before_anything_is_written(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"4 of 8 nodes take part in round 1, but nodes remember"):
        run(replace(GOSSIP, sampling=FixedSize(0.5)), root=tmp_path / "runs", progress=False)
    assert not list((tmp_path / "runs").glob("*"))
