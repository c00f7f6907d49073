"""What the commands print with --json has the schema that `fedsim schema COMMAND` prints."""

from __future__ import annotations

import contextlib
import json
import shutil
from http.server import ThreadingHTTPServer
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from fedsim.cli import COMMANDS, main
from fedsim.cli.schemas import OUTPUTS
from fedsim.record.nodes import NodeStatus, write_nodes
from tests.cli import test_commands

SERVERS = {"node", "superlink"}
"""Commands that run until they are stopped."""
TINY = ["--algorithm", "FedAvg", *test_commands.TINY]
GOSSIP = ["--topology", "Static", "--topology.graph", "Ring", "--nodes", "4"]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a run that has a clock."""
    folder = tmp_path_factory.mktemp("made")
    assert main(["run", *TINY, "--clock", "Clock", "--output", str(folder / "run")]) == 0
    write_nodes(folder / "run", [NodeStatus(0, True, 1e9, 479, 2, 0.5, 10, 20, 1, "did not answer within 60 s")])
    return folder


def printed(argv: list[str], capsys: pytest.CaptureFixture[str], code: int = 0) -> Any:
    capsys.readouterr()
    assert main(argv) == code
    return json.loads(capsys.readouterr().out)


def schema_of(command: str, capsys: pytest.CaptureFixture[str]) -> Any:
    schema = printed(["schema", command], capsys)
    jsonschema.Draft202012Validator.check_schema(schema)
    return schema


def test_every_command_has_the_switch_and_a_schema(capsys: pytest.CaptureFixture[str]) -> None:
    assert OUTPUTS.keys() == COMMANDS.keys() - SERVERS - {"schema"}
    for command in COMMANDS.keys() - SERVERS:
        with contextlib.suppress(SystemExit):              # argparse ends so
            main([command, "--help"])
        assert "--json" in capsys.readouterr().out, command
    assert printed(["schema", "--json"], capsys)["title"] == "experiment of fedsim"


@pytest.mark.parametrize(
    "argv",
    [
        ["run", *TINY, "--output", "{new}"],
        ["resume", "{run}", "--quiet"],
        ["sweep", *TINY, "--algorithm.lr", "0.1,0.2", "--jobs", "1", "--output", "{new}"],
        ["tune", "{methods}", "--jobs", "1", "--tuning_seeds", "1", "--quiet", "--output", "{new}"],
        ["byzantine", *TINY, "--rules", "Mean", "--attacks", "SignFlip", "--jobs", "1", "--sampling.fraction", "1",
         "--output", "{new}"],
        ["nodes", "{run}"],
        ["certificates", "--output", "{new}", "--nodes", "2"],
        ["list", "rules"],
        ["list"],
        ["partition"],
        ["topology", *GOSSIP],
        ["timeline", "{run}", "--output", "{new}.png"],
        ["compare", "{run}"],
        ["export", "{run}", "--output", "{new}.safetensors"],
        ["export", "{run}", "--to", "tensorboard", "{new}"],
        ["verify", "{run}"],
        ["report", "{run}", "--output", "{new}.html"],
    ],
    ids=lambda argv: " ".join(argv[:3:2]),
)  # fmt: skip
def test_outputs(argv: list[str], made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "methods.yaml"
    file.write_text("methods: {FedAvg: {algorithm.lr: [0.1, 0.2]}}\nmodel: Logistic\npartition: {num_partitions: 4}\n"
                    "rounds: 2\nexecution: {backend: loop}\n")  # fmt: skip
    if argv[:3] == ["export", "{run}", "--to"]:
        pytest.importorskip("tensorboard")
    words = [word.format(new=tmp_path / "new", run=made / "run", methods=file) for word in argv]
    value = printed([*words, "--json"], capsys)
    jsonschema.validate(value, schema_of(argv[0], capsys))
    assert value


def test_faults_are_listed_and_exit_1(made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    copy = shutil.copytree(made / "run", tmp_path / "run")
    rows = copy / "seed-0" / "metrics.jsonl"
    rows.write_text("".join(rows.read_text().splitlines(keepends=True)[1:]))
    value = printed(["verify", str(copy), "--json"], capsys, 1)
    jsonschema.validate(value, schema_of("verify", capsys))
    assert value["faults"]


def test_the_address_of_a_live_page(
    made: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def stopped(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(ThreadingHTTPServer, "serve_forever", stopped)
    value = printed(["watch", str(made / "run"), "--json"], capsys)
    jsonschema.validate(value, schema_of("watch", capsys))
    assert value["runs"] == 1 and value["address"].startswith("http://127.0.0.1:")
