"""The ClientApp: one client of the federation, with its own data, as ``--node-config`` says."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from flwr.app import Context, Message
from flwr.clientapp import ClientApp

from fedsim.backends.flower.node import worker
from fedsim.backends.flower.protocol.calls import VERBS, Call, RefusedError, experiment_of, from_records, to_records
from fedsim.backends.flower.protocol.node_settings import NodeSettings
from fedsim.errors import FedsimError

LARGEST = 2**31 - 1
"""Bytes; Flower carries no larger message. What a call may hold is checked once the size of the model is known."""


def client_app() -> ClientApp:
    """A ClientApp that answers every kind of call."""
    app = ClientApp()
    for register in (app.train(), app.evaluate(), app.query()):
        register(reply)
    return app


def reply(message: Message, context: Context) -> Message:
    """The answer to a message; what is refused is answered too, with the reason: the node stays in the federation."""
    try:
        call = from_records(message.content, LARGEST)
        kind = message.metadata.message_type.partition(".")[0]
        if VERBS.get(call.verb) != kind:
            raise RefusedError(f"a message of type {kind!r} that asks {call.verb!r:.40}")
        experiment, settings = experiment_of(message.content), NodeSettings.of(context.node_config, default_store())
        if answers_once():
            made = worker.ask(call, experiment, settings, message.metadata.run_id)
        else:
            from fedsim.backends.flower.node.answer import answer  # imports PyTorch

            made = answer(call, experiment, settings)
    except FedsimError as refused:
        made = Call("refused", {"error": str(refused)})
    return Message(to_records(made), reply_to=message)


def answers_once() -> bool:
    """Whether this process ends after one message: a SuperNode's do, those of Flower's simulation stay."""
    return Path(sys.argv[0]).name == "flwr-clientapp"


def default_store() -> Path:
    """Where memories are kept unless ``store`` says otherwise: below Flower's home."""
    return Path(os.environ.get("FLWR_HOME", "~/.flwr")).expanduser() / "fedsim-memory"


app = client_app()
