"""Flower's grid without its processes: nodes are called in this one, and messages go through Flower's own encoding."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from flwr.app import Context, Error, Message, RecordDict
from flwr.serverapp import Grid
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects
from flwr.supercore.inflatable.inflatable_utils import inflate_object_from_contents
from flwr.supercore.task_identity import TaskIdentity

from fedsim.backends.flower.node.client_app import app

Tamper = Callable[[Message], Message | None]


@dataclass
class Node:
    """A SuperNode: its node config, whether it is connected, and what happens to its answers."""

    config: dict[str, Any]
    online: bool = True
    before: Callable[[Message], None] = lambda message: None   # may raise, as a ClientApp that crashes
    after: Tamper = lambda message: message                    # None: the answer is lost
    asked: list[str] = field(default_factory=list)             # types of the messages that came


class FakeGrid(Grid):
    """Nodes by Flower's node id. An answer is computed when it is pulled for the first time."""

    def __init__(self, nodes: dict[int, Node]) -> None:
        self.nodes = nodes
        self.app = app
        self.waiting: dict[str, Message] = {}
        self.lost: set[str] = set()
        self.sent_bytes = 0
        TaskIdentity.run_id, TaskIdentity.node_id, TaskIdentity.task_id = 1, 1, 1

    def set_run(self, run: Any) -> None:
        """Not used."""

    @property
    def run(self) -> Any:
        """Not used."""
        raise NotImplementedError

    def create_message(self, *args: Any, **kwargs: Any) -> Message:
        """Not used: messages are made by their constructor."""
        raise NotImplementedError

    def get_nodes(self) -> Iterable[Any]:
        """Not used."""
        raise NotImplementedError

    def send_and_receive(self, *args: Any, **kwargs: Any) -> Iterable[Message]:
        """Not used."""
        raise NotImplementedError

    def get_node_ids(self) -> list[int]:
        """Those that are connected."""
        return [node for node, it in self.nodes.items() if it.online]

    def push_messages(self, messages: Iterable[Message]) -> list[str]:
        """An id for each message, "" where the node has gone."""
        ids = []
        for message in messages:
            node = self.nodes[message.metadata.dst_node_id]
            message.metadata.__dict__["_message_id"] = message.object_id
            ids.append(message.object_id if node.online else "")
            if node.online:
                self.waiting[message.object_id] = self._carried(message)
        return ids

    def pull_messages(self, message_ids: Iterable[str]) -> list[Message]:
        """The answers that are there; each is given out once."""
        answers = [self._answer(message_id) for message_id in message_ids if message_id in self.waiting]
        return [answer for answer in answers if answer is not None]

    def _answer(self, message_id: str) -> Message | None:
        if message_id in self.lost:
            return None
        message = self.waiting[message_id]
        node = self.nodes[message.metadata.dst_node_id]
        node.asked.append(message.metadata.message_type)
        try:
            node.before(message)
            context = Context(1, message.metadata.dst_node_id, node.config, RecordDict(), {}, series_id=1)
            answer = node.after(self.app(message, context))
        except Exception as error:
            answer = Message(Error(2, f"ClientApp raised {error!r}"), reply_to=message)
        if answer is None:
            self.lost.add(message_id)
            return None
        del self.waiting[message_id]
        return self._carried(answer)

    def _carried(self, message: Message) -> Message:
        """The message as Flower's encoding brings it over."""
        if message.has_error():
            return message
        metadata = message.metadata
        contents = {name: it.deflate() for name, it in get_all_nested_objects(message).items()}
        self.sent_bytes += sum(map(len, contents.values()))
        arrived = inflate_object_from_contents(message.object_id, contents)
        assert isinstance(arrived, Message)
        arrived.metadata.__dict__["_message_id"] = metadata.message_id
        return arrived


def federation(folder: Path, n: int, **config: Any) -> FakeGrid:
    """A grid of ``n`` nodes with ids 100, 101, ..., each with its own store."""
    return FakeGrid({
        100 + i: Node({"partition-id": i, "num-partitions": n, "store": str(folder / f"node-{i}"), **config})
        for i in range(n)
    })  # fmt: skip
