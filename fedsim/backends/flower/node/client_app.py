"""Flower ClientApp: one client of the federation with its own data, configured by ``--node-config``."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from flwr.app import Context, Message
from flwr.clientapp import ClientApp

from fedsim.backends.flower.node import worker
from fedsim.backends.flower.node.discretion import log, refusal, sentence
from fedsim.backends.flower.protocol.calls import VERBS, RefusedError, experiment_of, from_records, to_records
from fedsim.backends.flower.protocol.node_settings import NodeSettings
from fedsim.errors import FedsimError

LARGEST = 2**31 - 1
"""Bytes of Flower's largest message. The tighter limit for a call is checked once the model size is known."""


app = ClientApp()


@app.train()
@app.evaluate()
@app.query()
def reply(message: Message, context: Context) -> Message:
    """Respond to a message; a refusal is a response too, with its reason, so that the node stays in the federation."""
    try:
        call = from_records(message.content, LARGEST)
        kind = message.metadata.message_type.partition(".")[0]
        if VERBS.get(call.verb) != kind:
            raise RefusedError(f"a message of type {kind!r} carries the verb {call.verb!r:.40}")
        experiment, settings = experiment_of(message.content), NodeSettings.of(context.node_config, default_store())
        if answers_once():
            made = worker.ask(call, experiment, settings, message.metadata.run_id)
        else:
            from fedsim.backends.flower.node.answer import answer  # imports PyTorch

            made = answer(call, experiment, settings)
    except FedsimError as error:
        made = refusal(error)
    except worker.WorkerError:
        raise
    except Exception as error:                             # Flower would send its text to the server
        log(error)
        raise worker.WorkerError(sentence(error)) from None
    return Message(to_records(made), reply_to=message)


def answers_once() -> bool:
    """Check if this process ends after one message: a SuperNode's do, those of Flower's simulation do not."""
    return Path(sys.argv[0]).name == "flwr-clientapp"


def default_store() -> Path:
    """Default folder of memories, below Flower's home."""
    return Path(os.environ.get("FLWR_HOME", "~/.flwr")).expanduser() / "fedsim-memory"
