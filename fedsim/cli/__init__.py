"""The command ``fedsim``. Results go to stdout, progress and notes to stderr.

Exit codes: 0 success; 2 invalid arguments or settings, a file, run or data set that is missing, or a place where
nothing can be written; 1 any other failure; 130 interrupted. Commands are imported on demand, so that help does not
wait for PyTorch.
"""

from __future__ import annotations

import contextlib
import signal
import sys
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path

from fedsim.cli.allow import OWN, REFUSAL, taken, typed
from fedsim.cli.streams import OutputError, streams
from fedsim.controller.interrupt import ENDING, catch
from fedsim.controller.notes import telling_once
from fedsim.errors import ConfigError, FedsimError, suggest
from fedsim.record.version import __version__

COMMANDS = {
    "run": ("fedsim.cli.run", "run", "run an experiment"),
    "resume": ("fedsim.cli.run", "resume", "continue an interrupted run or sweep"),
    "sweep": ("fedsim.cli.sweep", "sweep", "run a grid of experiments, as in --algorithm.lr 0.03,0.1"),
    "tune": ("fedsim.cli.tune", "tune", "compare methods at their best: choose the settings of each, then run them"),
    "byzantine": ("fedsim.cli.byzantine", "byzantine", "run a grid of robust rules, attacks and numbers of attackers"),
    "deploy": ("fedsim.cli.deploy", "deploy", "run an experiment in real processes, with Flower"),
    "node": ("fedsim.cli.launch", "node", "run a node of a deployment, which runs one app alone"),
    "superlink": ("fedsim.cli.launch", "superlink", "run the SuperLink of a deployment, closed to other machines"),
    "nodes": ("fedsim.cli.nodes", "nodes", "show the nodes of a deployment, also while it runs"),
    "certificates": ("fedsim.cli.deploy", "certificates", "create certificates and keys for a deployment"),
    "list": ("fedsim.cli.listing", "list_names", "list algorithms, data sets, models and other components"),
    "schema": ("fedsim.cli.listing", "print_schema", "print the JSON Schema of an experiment's file, or of an output"),
    "partition": ("fedsim.cli.partition", "partition", "partition a data set among clients, and show the result"),
    "topology": ("fedsim.cli.topology", "topology", "show a network topology: its mixing rate and communication cost"),
    "timeline": ("fedsim.cli.timeline", "timeline", "draw what each client of a run with a clock does"),
    "compare": ("fedsim.cli.compare", "compare", "compare runs: final values, differences, cost of reaching a target"),
    "export": ("fedsim.cli.export", "export", "write the trained model of a run, or its metrics for another tool"),
    "verify": ("fedsim.cli.verify", "verify", "check that runs are whole and unchanged"),
    "report": ("fedsim.cli.compare", "report", "write an HTML report of runs"),
    "watch": ("fedsim.cli.compare", "watch", "show runs in a browser while they are under way"),
}
READING = ("compare", "report", "watch", "timeline")
"""Commands that import nothing that a run names, nor PyTorch."""
USAGE = "usage: fedsim COMMAND ...; fedsim COMMAND --help explains a command"


def console() -> int:
    """The command as a program: `main`, which more interruptions than one do not disturb, nor the exit after it."""
    catch(*ENDING)
    try:
        return main()
    except KeyboardInterrupt:                              # outside any command
        print("fedsim: interrupted", file=sys.stderr)
        return 130
    finally:
        for number in ENDING:
            signal.signal(number, signal.SIG_IGN)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command, and return its exit code. Unexpected exceptions propagate with their traceback."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    with contextlib.suppress(FileNotFoundError):           # a working directory that was removed
        here = str(Path.cwd())
        if here not in sys.path:
            sys.path.append(here)                          # for components named my_module.Class
    with streams():
        try:
            try:
                return _guarded(arguments)
            finally:
                sys.stdout.flush()
        except OutputError as error:
            if not isinstance(error.__cause__, BrokenPipeError):     # the reader of the pipe has exited
                print(f"fedsim: cannot write to stdout: {error.__cause__}", file=sys.stderr)
            return 1


def _guarded(arguments: list[str]) -> int:
    try:
        return _dispatch(arguments)
    except FedsimError as error:
        print(f"fedsim: {error}", file=sys.stderr)
        return error.exit_code
    except PermissionError as error:                       # whatever a command only looks for, in a closed folder
        if error.filename is None:
            raise
        print(f"fedsim: you may not open {error.filename}; choose another, or have its owner let you", file=sys.stderr)
        return 2
    except KeyboardInterrupt as interrupt:
        print(f"fedsim: interrupted{f'; {interrupt}' if interrupt.args else ''}", file=sys.stderr)
        return 130


def _dispatch(arguments: list[str]) -> int:
    if arguments[:1] in (["-h"], ["--help"]):
        commands = "\n".join(f"  {name:<13}{about}" for name, (_, _, about) in COMMANDS.items())
        print(f"{USAGE}\n\nSimulate federated learning.\n\n{commands}")
        return 0
    if arguments[:1] == ["--version"]:
        print(__version__)
        return 0
    if not arguments:
        raise ConfigError(f"no command given. {USAGE}. Commands: {', '.join(COMMANDS)}")
    name, *rest = arguments
    if name not in COMMANDS:
        raise ConfigError(f"no command {name!r}; {suggest(name, COMMANDS, see='fedsim --help')}")
    module, function, _ = COMMANDS[name]
    rest, allowed = taken(rest)
    command = getattr(import_module(module), function)
    code: int
    if name in READING:
        code = command(rest)
        return code
    from fedsim.experiment.config.names import Imports, only_from  # slow: torch, which these commands need

    with only_from(Imports([*OWN, *allowed], typed(rest), REFUSAL)), telling_once():
        code = command(rest)
    return code
