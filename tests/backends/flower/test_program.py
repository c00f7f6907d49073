"""What Flower's programs object to is one line of fedsim's, with its exit codes."""

from __future__ import annotations

import sys
from importlib import import_module
from typing import Any

import pytest

from fedsim.backends.flower.protocol.program import run
from fedsim.cli import main
from fedsim.errors import ConfigError, DeployError

pytestmark = pytest.mark.process                           # Flower asks a program what machine this is


@pytest.fixture(autouse=True)
def restored(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a command changes in its process, Flower included, and would take from the network."""
    monkeypatch.setattr(sys, "argv", ["pytest"])
    monkeypatch.setenv("FLWR_DISABLE_UPDATE_CHECK", "1")
    monkeypatch.setattr("flwr.supercore.telemetry.FLWR_TELEMETRY_ENABLED", "0")
    superlink = import_module("flwr.superlink.main")
    monkeypatch.setattr(superlink, "create_app", superlink.create_app)


@pytest.mark.parametrize(
    ("name", "options", "words"),
    [
        ("superlink", [], "Certificates are required .*; flower-superlink --help explains the options"),
        ("superlink", ["--nonsense"], "superlink: unrecognized arguments: --nonsense;"),
        ("superlink", ["--ssl-certfile", "x"], "superlink: You need to provide valid file paths to .--ssl-certfile"),
        ("superlink", ["--insecure", "--port", "nine"], "superlink: argument --port: invalid .*'nine'"),
        ("supernode", ["--nonsense"], "supernode: unrecognized arguments: --nonsense; flower-supernode --help"),
        ("supernode", ["--root-certificates", "none"], "--root-certificates. does not point to a file; flower"),
        ("supernode", ["--insecure", "--auth-supernode-private-key", "none"], "No such file or directory: 'none'"),
    ],
)
def test_wrong_options(name: str, options: list[str], words: str) -> None:
    with pytest.raises(ConfigError, match=words) as found:
        run(name, options)
    assert "\n" not in str(found.value)


def test_a_command_without_options_has_a_usage_error(capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["superlink"]) == 2
    out, err = capfd.readouterr()
    assert not out and err.startswith("fedsim: superlink: Certificates are required") and err.count("\n") == 1


@pytest.mark.parametrize(
    ("raised", "words"),
    [
        (SystemExit(3), "superlink: ended with Flower's exit code 3; the lines above say why"),
        (RuntimeError("port in use"), "superlink: port in use"),
    ],
)
def test_a_server_that_ends_with_an_error(raised: Any, words: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def end() -> None:
        raise raised

    monkeypatch.setattr(import_module("flwr.superlink.cli.flower_superlink"), "flower_superlink", end)
    with pytest.raises(DeployError, match=words):
        run("superlink", [])


def test_the_version_is_no_error(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    run("supernode", ["--version"])
    assert capsys.readouterr().out.startswith("Flower version: ")
