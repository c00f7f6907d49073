"""Streams of the pretended GPU race where those of a GPU would, and clients at the same time do not."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from fedsim.engine.branches import branches_of, in_branches
from tests.contract.cases import federation


@pytest.fixture(autouse=True)
def after() -> Iterator[None]:
    """Nothing is under way when the next test begins."""
    yield
    torch.cuda.synchronize()


@pytest.fixture
def here() -> Any:
    """The default stream."""
    return torch.cuda.current_stream()


@pytest.fixture
def aside(here: Any) -> Any:
    """Another stream, which has waited for what came before."""
    stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    stream.wait_stream(here)
    return stream


def of(stream: Any, make: Callable[[], Tensor]) -> Tensor:
    with torch.cuda.stream(stream):
        return make()


def numbers() -> Tensor:
    return torch.arange(64.0, device="cuda")


@pytest.mark.parametrize("way", ["stream", "event", "host", "device", "none"])
def test_a_result_is_read_when_its_stream_was_waited_for(way: str, here: Any, aside: Any) -> None:
    x = of(aside, numbers)
    ways: dict[str, Callable[[], Any]] = {
        "stream": lambda: here.wait_stream(aside), "event": lambda: here.wait_event(aside.record_event()),
        "host": aside.synchronize, "device": torch.cuda.synchronize, "none": lambda: None,
    }  # fmt: skip
    ways[way]()
    if way != "none":
        assert float(x.sum()) == 2016
        return
    with pytest.raises(RuntimeError, match=r"race: aten::sum on stream 0 uses memory that .* writes on stream"):
        x.sum()


def test_an_event_is_the_moment_when_it_was_recorded(here: Any, aside: Any) -> None:
    event = aside.record_event()
    x = of(aside, numbers)
    here.wait_event(event)
    with pytest.raises(RuntimeError, match="race"):
        x.sum()


def test_what_is_read_elsewhere_is_not_written_into(here: Any, aside: Any) -> None:
    x = numbers()
    aside.wait_stream(here)
    of(aside, x.sum)
    with pytest.raises(RuntimeError, match=r"race: aten::add on stream 0 writes memory that is read on stream"):
        torch.add(x, 1, out=x)


@pytest.mark.parametrize("recorded", [False, True])
def test_freed_memory_is_allocated_again_when_it_is_not_used_elsewhere(recorded: bool, here: Any, aside: Any) -> None:
    x = numbers()
    aside.wait_stream(here)
    of(aside, x.sum)
    if recorded:
        x.record_stream(aside)
    del x
    if recorded:
        numbers()
        return
    with pytest.raises(RuntimeError, match="may get memory that was freed while it is used on stream"):
        numbers()
    here.wait_stream(aside)
    numbers()


def test_gradients_are_of_the_stream_of_their_forward_pass(here: Any, aside: Any) -> None:
    x = numbers().requires_grad_()
    aside.wait_stream(here)
    with torch.cuda.stream(aside):
        (g,) = torch.autograd.grad((x * x).sum(), x)
    with pytest.raises(RuntimeError, match="race"):
        g.sum()
    here.wait_stream(aside)
    assert float(g.sum()) == 2 * 2016


@pytest.mark.parametrize("apart", ["all", "pool", "stream"])
def test_graphs_at_the_same_time_share_nothing(apart: str, here: Any) -> None:
    x, graphs = torch.zeros(2, 8, device="cuda"), []
    streams = [torch.cuda.Stream() for _ in x]  # type: ignore[no-untyped-call]
    pool = torch.cuda.graph_pool_handle()
    for row, stream in zip(x.clone().unbind(), streams, strict=True):
        graphs.append(torch.cuda.CUDAGraph())
        given = pool if apart == "pool" else None, None if apart == "stream" else stream
        own = row.clone()
        with torch.cuda.graph(graphs[-1], *given):
            own.add_(1)
    here.synchronize()

    def replay() -> None:
        for graph, stream in zip(graphs, streams, strict=True):
            with torch.cuda.stream(stream):
                graph.replay()

    if apart == "all":
        replay()
        return
    shared = {"pool": "the pool of graphs", "stream": "the workspace of cuBLAS"}[apart]
    with pytest.raises(RuntimeError, match=f"race: graph replay on stream .* {shared}"):
        replay()


def test_clients_have_ended_when_one_raises() -> None:
    """What the others read may be freed then, and allocated again."""
    fed: Any = federation(device="cuda")
    given, branches = [numbers()], branches_of(fed.model, 2)

    def run(own: Any, i: int) -> Tensor:
        if i == 2:
            raise ValueError("client 2")
        return given[0].sum()

    with pytest.raises(ValueError, match="client 2"):
        list(in_branches(fed, branches, np.ones(4), run))
    given.clear()
    numbers()


def test_the_longest_clients_go_first_to_who_has_least_to_do() -> None:
    fed: Any = federation(device="cuda")
    branches, ran = branches_of(fed.model, 2), list[tuple[int, int]]()

    def run(own: Any, i: int) -> int:
        ran.append((i, [branch.model for branch in branches].index(own.model)))
        return i

    assert list(in_branches(fed, branches, np.array([1.0, 5.0, 3.0, 1.0, 2.0]), run)) == [0, 1, 2, 3, 4]
    assert ran == [(1, 0), (2, 1), (4, 1), (0, 0), (3, 1)]
