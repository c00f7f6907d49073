"""Answers that are not what they should be are refused, and the federation goes on without that client."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from flwr.app import Message

from fedsim.backends.flower.protocol.calls import array, from_records, to_records
from fedsim.errors import DeployError
from fedsim.messages import wire
from tests.backends.flower.grids import federation
from tests.backends.flower.test_failures import CONFIG, in_round, simulated
from tests.backends.flower.test_parity import agree, deploy, metrics


def _poison(answer: Message) -> Message:
    call = from_records(answer.content, 2**20)
    data = bytearray(call.data["message"])
    data[-4:] = np.array([np.nan], "<f4").tobytes()
    answer.content["data.message"] = array(bytes(data))
    return answer


def _cut(answer: Message) -> Message:
    answer.content["data.message"] = array(from_records(answer.content, 2**20).data["message"][:-1])
    return answer


def _fatten(answer: Message) -> Message:
    answer.content["data.message"] = array(bytes(10**7))
    return answer


def _reshape(answer: Message) -> Message:
    answer.content["data.message"] = array(wire.encode(torch.zeros(7)))
    return answer


def _impersonate(answer: Message) -> Message:
    call = from_records(answer.content, 2**20)
    records = to_records(call.__class__(call.verb, {**call.values, "client": 0}, call.data))
    for key in list(records):
        answer.content[key] = records[key]
    return answer


def _babble(answer: Message) -> Message:
    values = json.loads(str(answer.content["call"]["json"]))
    kept = {key: values[key] for key in ("protocol", "verb", "client", "id")}
    answer.content["call"]["json"] = json.dumps(kept)
    del answer.content["data.message"]
    return answer


def _boast(answer: Message) -> Message:
    """An integer that no float can hold."""
    record = answer.content["call"]
    record["json"] = str(record["json"]).replace('"seconds": {', f'"seconds": {{"x": {10**400}, ')
    return answer


@pytest.mark.parametrize(
    ("tamper", "why"),
    [
        (_poison, "its message holds NaN or infinity"),
        (_cut, "truncated message"),
        (_fatten, "refused as oversized"),
        (_reshape, r"malformed: the form \['float32', \[7\]\] at byte 1; expected \['tuple', \['float32', \[610\]\]"),
        (_impersonate, "answered as client 0"),
        (_babble, "sent an invalid response: KeyError"),
        (_boast, "the call is not JSON: a whole number of 401 digits"),
    ],
    ids=["NaN", "truncated", "oversized", "another shape", "another's name", "nonsense", "a huge number"],
)
@pytest.mark.slow
def test_a_bad_answer_is_refused_and_the_federation_goes_on(
    tamper: Callable[[Message], Message], why: str, tmp_path: Path
) -> None:
    grid, said = federation(tmp_path / "nodes", 3), list[str]()
    grid.nodes[101].after = in_round(2, tamper)
    config = {**CONFIG, "algorithm": "Scaffold", "rounds": 3}
    deploy(tmp_path, config, grid, say=said.append)
    agree(metrics(tmp_path / "deployed"), simulated(tmp_path, config, r2=(0, 2)))
    assert [line for line in said if re.search(f"round 2: client 1 .*{why}", line)], said


def test_a_client_that_diverges_refuses_to_send_it(tmp_path: Path) -> None:
    config = {**CONFIG, "algorithm": {"name": "FedAvg", "lr": 1e30}}
    with pytest.raises(DeployError, match=r"round 1: client 0 .*holds NaN or infinity; lower the learning rate"):
        deploy(tmp_path, config)
