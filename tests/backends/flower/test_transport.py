"""Presence and answers of nodes, call by call, on a grid whose messages are made by hand."""

from __future__ import annotations

import time
from collections.abc import Iterable
from typing import Any

import pytest
from flwr.app import Error, Message

from fedsim.backends.flower.protocol.calls import Call, from_records, to_records
from fedsim.backends.flower.protocol.policy import Policy
from fedsim.backends.flower.server.transport import Link
from fedsim.errors import ConfigError, DeployError
from tests.backends.flower.grids import FakeGrid, Node


class Echo(FakeGrid):
    """Nodes that answer a call with its own values; greeted, with their client."""

    def __init__(self, n: int) -> None:
        super().__init__({100 + i: Node({"partition-id": i}) for i in range(n)})
        self.app = self.echo  # type: ignore[assignment]

    def echo(self, message: Message, context: Any) -> Message:
        call = from_records(message.content, 100)
        who = {"client": context.node_config["partition-id"]}
        return Message(to_records(Call(call.verb, {**call.values, **who}, call.data)), reply_to=message)


@pytest.fixture
def grid() -> Echo:
    return Echo(3)


@pytest.fixture
def said() -> list[str]:
    return []


def link(grid: FakeGrid, said: list[str], **policy: Any) -> Link:
    def greet(answer: Call) -> int:
        client: int = answer.values["client"]
        if client == 13:
            raise DeployError("unlucky")
        return client

    settings = Policy(**{"timeout": 0.5, "patience": 0.5, **policy})
    return Link(grid, "{}", Call("hello"), settings, greet, said.append)


def everybody(made: Link, n: int = 3) -> bool:
    return made.gather(lambda there: len(there) == n, 0.5)


def ask(made: Link, clients: tuple[int, ...] = (0, 1, 2)) -> tuple[dict[int, Any], dict[int, str]]:
    calls = {client: Call("each", {"x": client}) for client in clients}
    got = made.exchange(calls, 4, lambda client, answer: answer.values["x"])
    assert got.wall >= got.transport > 0
    return got.answers, got.failed


def test_everybody_answers(grid: Echo, said: list[str]) -> None:
    made = link(grid, said)
    assert everybody(made) and made.nodes == {0: 100, 1: 101, 2: 102}
    assert ask(made) == ({0: 0, 1: 1, 2: 2}, {})
    assert sorted(said) == ["client 0 connected", "client 1 connected", "client 2 connected"]


def test_without_patience_those_who_are_there_take_part(grid: Echo, said: list[str]) -> None:
    made = link(grid, said)
    assert made.gather(lambda there: len(there) == 3, 0.0)
    assert not made.gather(lambda there: len(there) == 4, 0.0)


def test_an_answer_is_looked_for_even_if_the_push_took_longer_than_the_timeout(
    grid: Echo, said: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    push = grid.push_messages

    def slow(messages: Iterable[Message]) -> list[str]:
        time.sleep(0.01)
        return push(messages)

    monkeypatch.setattr(grid, "push_messages", slow)
    made = link(grid, said, timeout=0.005)
    assert made.gather(lambda there: len(there) == 3, 0.005)
    assert ask(made) == ({0: 0, 1: 1, 2: 2}, {})


def test_clients_are_known_by_what_they_say_not_by_their_node(grid: Echo, said: list[str]) -> None:
    made = link(grid, said)
    assert everybody(made)
    grid.nodes = {900: grid.nodes[102], 901: grid.nodes[100], 101: grid.nodes[101]}
    made.look()
    assert everybody(made) and made.nodes == {2: 900, 0: 901, 1: 101}
    assert ask(made) == ({0: 0, 1: 1, 2: 2}, {})
    assert "client 0 disconnected" in said


def test_an_answer_to_an_earlier_call_is_none_to_this_one(grid: Echo, said: list[str]) -> None:
    """Though Flower delivers it as the answer: what was recorded in round 3 is no answer in round 4."""
    made, kept = link(grid, said), list[Any]()
    assert everybody(made)
    grid.nodes[101].after = lambda answer: (kept.append(answer.content), answer)[1]
    assert ask(made)[1] == {}
    grid.nodes[101].after = lambda answer: Message(kept[0], reply_to=grid.waiting[answer.metadata.reply_to_message_id])
    refused = {0: 0, 2: 2}, {1: "sent an invalid response: it answers another call, with the verb 'each'"}
    assert ask(made) == refused
    grid.nodes[100].after = lambda answer: (kept.insert(0, answer.content), answer)[1]
    assert ask(made) == ask(made) == refused, "nor is that of another client"


def test_what_a_node_says_cannot_steer_the_terminal(grid: Echo, said: list[str]) -> None:
    made = link(grid, said)
    assert everybody(made)
    grid.nodes[101].after = lambda answer: Message(
        to_records(Call("refused", {"error": "\x1b[2Jcleared\nround 5: fine"})),
        reply_to=grid.waiting[answer.metadata.reply_to_message_id],
    )
    assert ask(made)[1] == {1: "refused: ?[2Jcleared?round 5: fine"}


def test_nobody_waits_for_those_who_are_away(grid: Echo, said: list[str]) -> None:
    made = link(grid, said)
    assert everybody(made)
    grid.nodes[101].online = False
    for _ in range(3):
        assert ask(made) == ({0: 0, 2: 2}, {1: "is not connected"})
    away = "round 4: client 1 is not connected"
    assert said.count(away) == 1, "it is told once"
    grid.nodes[101].online = True
    assert everybody(made) and ask(made)[1] == {}
    grid.nodes[101].online = False
    assert ask(made)[1] == {1: "is not connected"} and said.count(away) == 2


def test_an_error_belongs_to_the_call_that_it_answers(grid: Echo, said: list[str]) -> None:
    """Flower sends it in the name of the server."""
    made = link(grid, said, retries=0)
    assert everybody(made)
    grid.nodes[102].after = lambda answer: Message(Error(5, "node gone"), metadata=answer.metadata)
    assert ask(made) == ({0: 0, 1: 1}, {2: "failed (Flower's error 5): node gone"})


@pytest.mark.parametrize(("retries", "calls"), [(0, 1), (1, 2), (3, 3)])
def test_errors_are_tried_again(grid: Echo, said: list[str], retries: int, calls: int) -> None:
    made, left = link(grid, said, retries=retries), [2]
    assert everybody(made)

    def crash(message: Message) -> None:
        if message.metadata.message_type == "train" and left[0]:
            left[0] -= 1
            raise OSError("disk")

    grid.nodes[100].before = crash
    answers, failed = ask(made)
    assert (0 in answers) == (retries >= 2) and (0 in failed) == (retries < 2)
    assert grid.nodes[100].asked.count("train") == calls and grid.nodes[101].asked.count("train") == 1


def test_refusals_are_not_tried_again(grid: Echo, said: list[str]) -> None:
    made = link(grid, said, retries=3)
    assert everybody(made)
    grid.nodes[101].after = lambda answer: refusing(answer, "not me")
    assert ask(made) == ({0: 0, 2: 2}, {1: "refused: not me"})
    assert grid.nodes[101].asked.count("train") == 1


def refusing(answer: Message, why: str) -> Message:
    for key, record in to_records(Call("refused", {"error": why})).items():
        answer.content[key] = record
    return answer


def test_a_slow_node_is_known_by_its_late_answer(grid: Echo, said: list[str]) -> None:
    made = link(grid, said)
    assert everybody(made)
    grid.nodes[101].after = lambda answer: None
    assert ask(made) == ({0: 0, 2: 2}, {1: "did not answer within 0.5 s"})
    assert ask(made)[1] == {1: "is not connected"}         # at once
    grid.nodes[101].after = lambda answer: answer
    grid.lost.clear()                                      # its answer comes at last
    assert everybody(made) and ask(made) == ({0: 0, 1: 1, 2: 2}, {})


def test_who_is_refused_is_asked_once_and_named(grid: Echo, said: list[str]) -> None:
    grid.nodes[300] = Node({"partition-id": 13})
    grid.nodes[301] = Node({"partition-id": 2})
    made = link(grid, said)
    assert everybody(made)
    for _ in range(3):
        made.look()
    assert grid.nodes[300].asked == ["query"] and made.nodes.keys() == {0, 1, 2}
    assert "unlucky" in made.refusals
    assert any("claims to be client 2, as another node does" in why for why in made.refusals)
    grid.nodes[300].online = False
    made.look()
    assert "unlucky" not in made.refusals


def test_too_large_an_answer(grid: Echo, said: list[str]) -> None:
    made = link(grid, said)
    assert everybody(made)
    grid.nodes[100].after = lambda answer: answer if answer.metadata.message_type == "query" else fat(answer)
    assert "refused as oversized" in ask(made)[1][0]


def fat(answer: Message) -> Message:
    for key, record in to_records(Call("each", {}, {"message": bytes(101)})).items():
        answer.content[key] = record
    return answer


@pytest.mark.parametrize(
    ("policy", "why"),
    [
        ({"timeout": 0.0}, "timeout is 0.0; expected a finite number of seconds, 0.001 or more"),
        ({"timeout": float("nan")}, "timeout is nan"),
        ({"patience": -1.0}, "patience is -1.0"),
        ({"timeout": "3"}, "timeout is '3'"),
        ({"retries": -1}, "retries is -1"),
        ({"retries": 1.5}, "retries is 1.5; expected a whole number, 0 or more"),
        ({"missing": "wait"}, "missing is 'wait'; expected one of skip, stop"),
        ({"minimum": 0.0}, "minimum is 0.0; expected a share"),
        ({"minimum": 1.5}, "minimum is 1.5"),
    ],
)
def test_policies_that_cannot_be(policy: dict[str, Any], why: str) -> None:
    with pytest.raises(ConfigError, match=why):
        Policy(**policy)


def test_how_many_are_enough() -> None:
    assert [Policy(minimum=0.5).enough(c) for c in (1, 2, 3, 10)] == [1, 1, 2, 5]
    assert Policy(minimum=0.3).enough(10) == 3 and Policy(minimum=1e-9).enough(5) == 1
    assert Policy(missing="stop", minimum=0.1).enough(10) == 10
