"""``fedsim deploy``: what is wrong is said before any process starts; what to type on real machines can be typed."""

from __future__ import annotations

import contextlib
import importlib.metadata
import json
import shlex
import socket
import subprocess
import tomllib
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from fedsim.backends.flower.deploy import install, local_deployment
from fedsim.backends.flower.deploy.app import DEFAULTS, app_hash, write_app
from fedsim.backends.flower.deploy.local_deployment import (
    NOTE,
    LocalDeployment,
    federation_folder,
    files_of,
    modules_of,
    node_settings,
    remember,
    write_experiment,
)
from fedsim.backends.flower.deploy.local_federation import LocalFederation
from fedsim.backends.flower.protocol.node_settings import NodeSettings
from fedsim.backends.flower.protocol.policy import Policy
from fedsim.backends.flower.server.server_app import experiment_of
from fedsim.cli import main
from fedsim.errors import DeployError
from fedsim.experiment.config import from_config
from fedsim.record.directory import RunDirectory, State, create_run, open_run

ROOT = Path(__file__).parents[4]
EXPERIMENT = ROOT / "experiments/flower/experiment.yaml"


def said(capsys: pytest.CaptureFixture[str], *words: object, code: int = 2) -> str:
    """The error of a command that fails: with wrong settings where the code is 2."""
    assert main(["deploy", *map(str, words)]) == code
    return capsys.readouterr().err


def test_nodes_with_own_data_read_what_the_experiment_names_besides(tmp_path: Path) -> None:
    """A tokenizer is the experiment's, and no node has it among its own texts."""
    texts = {"name": "huggingface", "path": "/server/texts", "tokenizer_path": "/server/tokenizer"}
    experiment = from_config({"algorithm": "FedAvg", "data": texts})
    assert files_of(experiment, LocalDeployment(3, own_data=tmp_path)) == (Path("/server/tokenizer"),)
    assert set(files_of(experiment, LocalDeployment(3))) == {Path("/server/texts"), Path("/server/tokenizer")}


def test_wrong_settings(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert "--nodes is missing; expected the number of SuperNodes" in said(capsys, EXPERIMENT)
    assert "has 3 clients and --nodes is 4; every client is a node" in said(capsys, EXPERIMENT, "--nodes", 4)
    assert "--nodes is 'three'; expected a whole number" in said(capsys, EXPERIMENT, "--nodes", "three")
    assert "nodes is 0; expected 1 or more" in said(capsys, EXPERIMENT, "--nodes", 0)
    assert "--port is 99999; expected 1 to 65535" in said(capsys, EXPERIMENT, "--nodes", 3, "--port", 99999)
    assert "timeout is 0.0; expected" in said(capsys, EXPERIMENT, "--nodes", 3, "--timeout", 0)
    assert "'wait'; expected one of skip, stop" in said(capsys, EXPERIMENT, "--nodes", 3, "--missing", "wait")
    assert "exists; choose another --output" in said(capsys, EXPERIMENT, "--nodes", 3, "--output", tmp_path)
    assert "is not a run" in said(capsys, "--resume", tmp_path, code=2)
    assert "no option --node; did you mean" in said(capsys, EXPERIMENT, "--node", 3)
    few = said(capsys, EXPERIMENT, "--nodes", 3, "--own-data", tmp_path, "--output", tmp_path / "run")
    assert f"{tmp_path} holds 0 folders or files; expected 3" in few


def test_what_is_of_simulations_alone(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """Told at once, and not minutes later by the server."""
    words = [EXPERIMENT, "--nodes", 3, "--output", tmp_path / "run"]
    for how in ([], ["--print-commands"]):
        assert "and the experiment simulates them; leave clock out" in said(capsys, *words, *how, "--clock", "Clock")
        chosen = said(capsys, *words, *how, "--sampling", "PowerOfChoice")
        assert "sampling PowerOfChoice needs losses that real clients do not report; expected e.g. FixedSize" in chosen
        assert "attack is for simulations" in said(capsys, *words, *how, "--attack", "SignFlip", "--attack.share", 0.3)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("state", ["interrupted", "finished"])
def test_a_simulated_run_is_not_continued(capsys: pytest.CaptureFixture[str], tmp_path: Path, state: State) -> None:
    manifest = {"clients": 3, "seeds": [0], "backend": {"0": {"backend": "blocks"}}}
    run = create_run(tmp_path, "x", yaml.safe_load(EXPERIMENT.read_text()), manifest, tmp_path / "run")
    run.mark(0, state)
    before = (run.path / "manifest.json").read_text()
    error = said(capsys, "--resume", run.path, code=1)
    assert "was simulated (backend blocks)" in error and f"continue with: fedsim resume {run.path}" in error
    assert list(tmp_path.iterdir()) == [run.path] and (run.path / "manifest.json").read_text() == before


def test_a_finished_run_is_shown_without_a_federation(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fedsim.cli.deploy.print_result", lambda run, as_json: print(run.path, as_json))
    manifest = {"clients": 3, "seeds": [0], "backend": {"0": {"backend": "flower"}}}
    run = create_run(tmp_path, "x", yaml.safe_load(EXPERIMENT.read_text()), manifest, tmp_path / "run")
    run.mark(0, "finished")
    assert main(["deploy", "--resume", str(run.path), "--json"]) == 0
    assert capsys.readouterr().out == f"{run.path} True\n" and list(tmp_path.iterdir()) == [run.path]


def test_a_port_in_use(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        held.listen()
        port = held.getsockname()[1]
        error = said(capsys, EXPERIMENT, "--nodes", 3, "--port", port, "--output", tmp_path / "run", code=1)
    assert f"port {port} is in use by " in error and f"choose another with --port {port + 1}" in error
    assert not list(tmp_path.iterdir())


def test_certificates_that_lack_a_key(tmp_path: Path) -> None:
    nodes = [NodeSettings(i, tmp_path / f"{i}") for i in range(2)]
    (tmp_path / "certificates").mkdir()
    (tmp_path / "certificates/ca.crt").touch()
    with pytest.raises(DeployError, match=r"server.pem is missing; expected the certificates and keys of 2 nodes"):
        LocalFederation(tmp_path, nodes, port=0).__enter__()


def test_a_command_of_flower_that_does_not_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def run(words: list[str], **options: object) -> None:
        raise subprocess.TimeoutExpired(words, 600)

    monkeypatch.setattr("fedsim.backends.flower.deploy.local_federation.subprocess.run", run)
    with pytest.raises(DeployError, match=r"^`flwr list --run-id 1` did not end within 600 s$"):
        LocalFederation(tmp_path, [NodeSettings(0, tmp_path)], port=0).flwr("list", "--run-id", "1")


def test_without_flower(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def version(package: str) -> str:
        raise importlib.metadata.PackageNotFoundError(package)

    monkeypatch.setattr(install.importlib.metadata, "version", version)
    error = said(capsys, EXPERIMENT, "--nodes", 3, code=1)
    assert "Flower, which is not installed; pip install '.[flower]' in a checkout" in error


def test_what_to_type_on_real_machines(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    command = ["deploy", str(EXPERIMENT), "--nodes", "3", "--print-commands", "--port", "9000"]
    command += ["--host", "a.example.org", "--output", str(tmp_path / "run"), "--minimum", "0.7"]
    assert main([*command, "--rounds", "77", "--algorithm.lr", "0.55"]) == 0
    text = capsys.readouterr().out
    assert "tcp dport 9000 ip saddr { $NODES } accept\n    tcp dport 9000 drop" in text
    lines = [shlex.split(line) for line in text.splitlines() if line[:1].islower()]
    assert lines[1][:4] == ["fedsim", "certificates", "--output", "federation/certificates"]
    assert lines[1][-2:] == ["--hosts", "a.example.org"]
    (superlink,) = [line for line in lines if line[:2] == ["fedsim", "superlink"]]
    assert "--enable-supernode-auth" in superlink and "--insecure" not in superlink
    nodes = [line for line in lines if line[:2] == ["fedsim", "node"]]
    assert {line[2] for line in [superlink, *nodes]} == {"--app"}
    assert [line[line.index("--superlink") + 1] for line in nodes] == ["a.example.org:9000"] * 3
    keys = [line[line.index("--auth-supernode-private-key") + 1] for line in nodes]
    assert keys == [f"node-{i}.key" for i in range(3)]
    assert [line[-1].split()[0] for line in nodes] == [f"partition-id={i}" for i in range(3)]
    (run,) = [line for line in lines if line[:2] == ["flwr", "run"]]
    assert {line[3] for line in [superlink, *nodes]} == {app_hash(Path(run[2]))}, "which is the app that is run"
    app, config = Path(run[2]), tomllib.loads(run[run.index("-c") + 1].replace(" ", "\n"))
    assert config["minimum"] == 0.7 and set(config) <= set(DEFAULTS)
    assert tomllib.loads((app / "pyproject.toml").read_text())["tool"]["flwr"]["app"]["config"] == DEFAULTS
    resolved = experiment_of(config["experiment"])         # flags and all
    expected = from_config({**yaml.safe_load(EXPERIMENT.read_text()), "rounds": 77})
    assert resolved == replace(expected, algorithm=replace(expected.algorithm, lr=0.55))  # type: ignore[type-var]
    assert main([*command, "--insecure"]) == 0
    text = capsys.readouterr().out
    assert "WITHOUT encryption" in text and "certificates" not in text
    assert experiment_of(config["experiment"]) == resolved, "what was printed before stays what it is"
    assert [path.name for path in tmp_path.iterdir()] == ["run.federation"]


@pytest.mark.process
def test_what_to_type_on_the_server_suits_any_folder(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main(["deploy", str(EXPERIMENT), "--nodes", "3", "--print-commands", "--output", str(tmp_path / "run")]) == 0
    (line,) = (line for line in capsys.readouterr().out.splitlines() if "config.toml" in line)
    here = tmp_path / "Sü 'd, $x %s"
    here.mkdir()
    subprocess.run(["bash", "-c", f"{line} && test -d \"$FLWR_HOME\""], cwd=here, check=True)
    (known,) = tomllib.loads((here / "federation/client/config.toml").read_text())["superlink"].values()
    trusted = str(here / "federation/certificates/ca.crt")
    assert known == {"address": "127.0.0.1:8000", "root-certificates": trusted}


def test_a_path_with_a_comma_is_refused(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """A node config has a list of files."""
    words = ["--data", "npz", "--data.path", tmp_path / "a, b.npz", "--nodes", 3, "--output", tmp_path / "run"]
    assert f"the experiment reads '{tmp_path}/a, b.npz', and commas separate" in said(capsys, EXPERIMENT, *words)
    assert not list(tmp_path.iterdir())


def test_nodes_are_told_which_modules_to_allow(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """Those of the experiment's classes, not the stem of a file's name."""
    command = ["deploy", str(EXPERIMENT), "--nodes", "3", "--print-commands", "--output", str(tmp_path / "run")]
    assert main(command) == 0
    assert "allow" not in capsys.readouterr().out
    command += ["--model", "experiments.flower.own_data.hospitals.Net", "--data", "npz", "--data.path", "my.npz"]
    assert main(command) == 0
    text = capsys.readouterr().out
    nodes = [line for line in text.splitlines() if line.startswith("fedsim node ")]
    settings = [NodeSettings.of(tomllib.loads(shlex.split(line)[-1].replace(" ", "\n"))) for line in nodes]
    assert [node.allow for node in settings] == [("experiments.flower.own_data.hospitals",)] * 3
    assert "is for its operator to decide" in text


def test_the_app_of_the_repository_has_the_same_settings(tmp_path: Path) -> None:
    output = 'x\ny "z" \\ \x7f ü \U0001f642'
    generated = tomllib.loads((write_app(tmp_path, {"output": output}) / "pyproject.toml").read_text(encoding="utf-8"))
    app = generated["tool"]["flwr"]["app"]
    assert app["config"] == {**DEFAULTS, "output": output}
    own = tomllib.loads((ROOT / "experiments/flower/pyproject.toml").read_text())["tool"]["flwr"]["app"]
    assert own["config"] == DEFAULTS and own["components"] == app["components"]


def test_a_resumed_run_is_deployed_as_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Settings given with --resume take precedence."""
    made: list[LocalDeployment] = []

    def deploy(experiment: object, output: Path, local: LocalDeployment, progress: bool) -> RunDirectory:
        made.append(local)
        return open_run(output)

    monkeypatch.setattr("fedsim.backends.flower.deploy.local_deployment.deploy", deploy)
    monkeypatch.setattr("fedsim.cli.deploy.print_result", lambda *arguments: None)
    monkeypatch.chdir(tmp_path)
    config = yaml.safe_load(EXPERIMENT.read_text())
    run = create_run(tmp_path, "x", config, {"clients": 2, "seeds": [0]}, tmp_path / "run")
    before = Policy(retries=7, patience=2.0)
    run.update_manifest(deployment={"run": "0" * 32, "epoch": 1, "policy": vars(before)})
    assert main(["deploy", "--resume", "run"]) == 0
    assert made[-1] == LocalDeployment(2, policy=before), "its federation's files are gone"
    federation_folder(run.path).mkdir()
    first = LocalDeployment(2, 0, True, before, Path("own"))
    remember(run.path, first)
    assert main(["deploy", "--resume", "run"]) == 0
    assert made[-1] == replace(first, own_data=tmp_path / "own")
    assert main(["deploy", "--resume", "run", "--own-data", "new", "--port", "9000", "--patience", "3"]) == 0
    assert made[-1] == LocalDeployment(2, 9000, True, replace(before, patience=3.0), Path("new"))
    remember(run.path, LocalDeployment(2))
    assert main(["deploy", "--resume", "run", "--insecure"]) == 0
    assert made[-1] == LocalDeployment(2, insecure=True, policy=before)
    for damaged in ("{", "[]", "{}"):
        (federation_folder(run.path) / NOTE).write_text(damaged)
        assert "deployment.json is damaged" in said(capsys, "--resume", "run", code=1)


def test_what_is_told_is_the_path_that_was_given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As by ``fedsim run``; the processes of the federation get it in full."""
    place, ends = "fedsim.backends.flower.deploy.local_deployment", iter([None, KeyboardInterrupt, DeployError("lost")])

    class Federation(contextlib.nullcontext[None]):
        def __init__(self, *arguments: object) -> None:
            super().__init__(self)   # type: ignore[arg-type]

        def flwr(self, *words: str) -> dict[str, str]:
            return {"run-id": "1"}

    def watch(federation: object, run: str, experiment: object, output: Path, *rest: object) -> None:
        assert output == tmp_path / "out" / "run"
        if not output.exists():
            create_run(output.parent, "run", yaml.safe_load(EXPERIMENT.read_text()), {"seeds": [0]}, output)
        if (end := next(ends)) is not None:
            raise end

    monkeypatch.setattr(f"{place}.LocalFederation", Federation)
    monkeypatch.setattr(f"{place}.watch", watch)
    monkeypatch.chdir(tmp_path)
    experiment, local = from_config(yaml.safe_load(EXPERIMENT.read_text())), LocalDeployment(nodes=3, port=0)
    assert local_deployment.deploy(experiment, Path("out/run"), local).path == Path("out/run")
    for error in (KeyboardInterrupt, DeployError):
        with pytest.raises(error, match=r"fedsim deploy --resume out/run$"):
            local_deployment.deploy(experiment, Path("out/run"), local)


def test_paths_are_made_absolute_and_named_modules_allowed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Processes of a federation start in folders of their own."""
    monkeypatch.chdir(tmp_path)
    config = {"algorithm": "FedAvg", "data": {"name": "csv", "path": "here"}, "model": "experiments.x.Net"}
    experiment = from_config({**config, "model": "experiments.flower.own_data.hospitals.Net"})
    written = experiment_of(str(write_experiment(tmp_path / "elsewhere", experiment)))
    assert written.data.options["path"] == str(tmp_path / "here")  # type: ignore[union-attr]
    (node,) = node_settings(experiment, tmp_path / "run", LocalDeployment(1))
    assert node.allow == ("experiments.flower.own_data.hospitals",)
    assert node.store == tmp_path / "run.federation/node-0/memory"
    assert modules_of(config) == {"experiments.x"}


def test_own_folders_are_taken_in_the_order_of_their_names(tmp_path: Path) -> None:
    """Numbers in them count as numbers."""
    names = ["7", "10", "a", "b", "node-2", "node-02", "node-10"]
    for name in (*reversed(names), ".hidden"):
        (tmp_path / "own" / name).mkdir(parents=True)
    experiment = from_config(yaml.safe_load(EXPERIMENT.read_text()))
    nodes = node_settings(experiment, tmp_path / "run", LocalDeployment(len(names), own_data=tmp_path / "own"))
    expected = ["7", "10", "a", "b", "node-02", "node-2", "node-10"]
    assert [node.data for node in nodes] == [tmp_path / "own" / name for name in expected]


def test_processes_stay_offline_and_reach_this_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_PROXY", "example.org")
    monkeypatch.delenv("no_proxy", raising=False)
    found = install.environment(tmp_path)
    assert (found["NO_PROXY"], found["no_proxy"]) == (f"example.org,{install.HERE}", install.HERE)
    assert {found[name] for name in ("FLWR_TELEMETRY_ENABLED", "RAY_USAGE_STATS_ENABLED")} == {"0"}
    assert found["FLWR_DISABLE_UPDATE_CHECK"] == found["FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION"] == "1"


@pytest.mark.flower
def test_answers_of_flower_are_not_painted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Notebooks and build servers ask for colours where there is no terminal."""
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TTY_COMPATIBLE", "1")
    words = [install.command("flwr"), "ls", "nowhere", "--format", "json"]
    done = subprocess.run(words, env=install.environment(tmp_path), capture_output=True, text=True, timeout=120)
    assert json.loads(done.stdout)["success"] is False
