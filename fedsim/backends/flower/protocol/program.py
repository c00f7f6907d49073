"""Flower's programs in this process: what they object to is an error of this one, in one line."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module
from typing import Any, NoReturn

from fedsim.errors import ConfigError, DeployError

LOGGER = "flwr"
"""Name of Flower's logger."""


def run(name: str, options: Sequence[str]) -> None:
    """Run ``flower-superlink`` or ``flower-supernode`` to its end.

    Args:
        name: superlink or supernode.
        options: of its command line.

    Raises:
        ConfigError: the options are wrong.
        DeployError: it ended with an error, such as one of the network.
    """
    program = import_module(f"flwr.{name}.cli.flower_{name}")
    read, make = f"_parse_{name}_lifespan_config", f"_parse_args_run_{name}"
    parse, parser = getattr(program, read), getattr(program, make)

    def reading() -> Any:
        with _held() as said:
            try:
                return parse()
            except SystemExit as ended:
                if ended.code in (0, None):                # such as of --version
                    raise
                refuse(ended.code if isinstance(ended.code, str) else " ".join(said) or f"exit code {ended.code}")
            except ConfigError:
                raise
            except Exception as error:                     # a file that cannot be read, a value that is none
                refuse(str(error) or repr(error))

    def refuse(why: str) -> NoReturn:
        text = " ".join(why.split()).rstrip(".")
        raise ConfigError(f"{name}: {text}; flower-{name} --help explains the options")

    def strict() -> Any:
        made = parser()
        made.error = refuse
        return made

    main: Callable[[], None] = getattr(program, f"flower_{name}")
    setattr(program, read, reading)
    setattr(program, make, strict)
    sys.argv = [f"flower-{name}", *options]
    try:
        main()
    except SystemExit as ended:
        if ended.code not in (0, None):
            raise DeployError(f"{name}: ended with Flower's exit code {ended.code}; the lines above say why") from None
    except RuntimeError as error:
        raise DeployError(f"{name}: {error}") from error
    finally:
        setattr(program, read, parse)
        setattr(program, make, parser)


@contextmanager
def _held() -> Iterator[list[str]]:
    """Keep what Flower logs as errors, instead of printing it."""
    said: list[str] = []

    def hold(record: logging.LogRecord) -> bool:
        if record.levelno >= logging.ERROR:
            said.append(record.getMessage())
        return record.levelno < logging.ERROR

    logger = logging.getLogger(LOGGER)
    logger.addFilter(hold)
    try:
        yield said
    finally:
        logger.removeFilter(hold)
