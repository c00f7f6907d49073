"""The clock against times computed by hand."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch

from algorithms import CO2, DCO2, DPSGD, CoCoDSGD, DFedAvg, DiLoCo, FedAMD, FedAvg, OverlapSGD, StreamingDiLoCo
from fedsim.clients import cohort
from fedsim.clock.devices import Devices
from fedsim.clock.virtual import VirtualClock
from fedsim.clock.windows import Windows
from fedsim.compress import TopK
from fedsim.engine.federation import Federation, Meter
from fedsim.engine.local_work import LocalWork
from fedsim.feedback import Choco, EF14Uplink
from fedsim.feedback.compressed import Compressed
from fedsim.messages.trace import Computed
from tests.algorithms.gossip_federations import gossiping
from tests.algorithms.quadratics import X0, F, everybody, federation, some
from topologies import Complete, OnePeerExponential, Ring, Static

VECTOR = 6 + 8 * F.d + 1
"""Bytes of one message of a vector of float64."""
STEPS = 6
WORK = LocalWork(batch_size=0, steps=STEPS)
M = np.array([len(b) for b in F.b])


def devices(seconds: Any = 0.0, down: Any = np.inf, up: Any = np.inf, latency: Any = 0.0, **more: Any) -> Devices:
    """Devices of the clients of F; a number holds for all."""
    each = (np.broadcast_to(np.asarray(v, np.float64), F.n).copy() for v in (seconds, down, up, latency))
    return Devices(*each, **more)


def times(algorithm: Any, on: Devices, cohorts: Sequence[Sequence[int]], fed: Federation | None = None) -> list[float]:
    """The clock's ``now`` after initialisation and after every round."""
    fed = fed or federation(F, WORK)
    meter, clock, out = Meter(fed), VirtualClock(on), []
    meter.trace = []
    state = algorithm.init(torch.from_numpy(X0), cohort(fed, 0, meter=meter))
    for t, S in enumerate([[], *cohorts]):
        state = algorithm.round(state, cohort(fed, t, np.array(S), meter)) if t else state
        clock.advance(meter.trace, t)
        meter.trace.clear()
        out.append(clock.now)
    return out


RNG = np.random.default_rng(0)
SPREAD = devices(RNG.uniform(0.1, 1, F.n), RNG.uniform(50, 500, F.n), RNG.uniform(20, 200, F.n), RNG.uniform(0, 1, F.n))


def test_fedavg_is_a_sum_of_maxima() -> None:
    expected = [0.0]
    for S in some(F.n, 4, 5):
        own = 2 * SPREAD.latency + VECTOR / SPREAD.down + STEPS * M * SPREAD.seconds + VECTOR / SPREAD.up
        expected.append(expected[-1] + own[S].max())
    np.testing.assert_allclose(times(FedAvg(), SPREAD, some(F.n, 4, 5)), expected, rtol=1e-14)


def test_communication_is_halved_by_twice_the_bandwidth_and_infinite_speed_takes_no_time() -> None:
    slow, fast = (devices(down=100.0 * k, up=30.0 * k) for k in (1, 2))
    np.testing.assert_array_equal(
        2 * np.array(times(FedAvg(), fast, everybody(F.n, 3))), times(FedAvg(), slow, everybody(F.n, 3))
    )
    assert times(FedAvg(), devices(), everybody(F.n, 3)) == [0.0] * 4


def test_the_server_shares_its_line() -> None:
    """Ten messages over a line of 10 bytes a second, up and down."""
    line = devices(server_down=10.0, server_up=20.0)
    each = 10 * VECTOR / 10 + 10 * VECTOR / 20
    np.testing.assert_allclose(times(FedAvg(), line, everybody(F.n, 2)), [0, each, 2 * each])


def test_roles_of_a_round_work_side_by_side_and_initialisation_takes_time() -> None:
    """Anchors compute one large gradient, miners 2 K - 2; the slower role decides."""
    fed = federation(F, WORK)
    anchors, miners = (half.ids for half in cohort(fed, 1).split(0.5))
    begun, ended = times(FedAMD(p=0.5), devices(seconds=1.0), everybody(F.n, 1), fed)
    assert begun == M.max() and len(anchors) and len(miners)
    assert ended - begun == max(M[anchors].max(), (2 * STEPS - 2) * M[miners].max())


def test_a_slow_nodes_delay_travels_one_hop_a_round() -> None:
    """The recursion over a ring, with a node's line shared by its two neighbours."""
    fed = gossiping(F, WORK, Static(Ring()))
    got = times(DFedAvg(), SPREAD, everybody(F.n, 6), fed)
    at, expected = np.zeros(F.n), [0.0]
    for _ in range(6):
        ready = at + STEPS * M * SPREAD.seconds

        def arrival(j: int, i: int, ready: np.ndarray = ready) -> float:
            line = max(2 * VECTOR / SPREAD.up[j], 2 * VECTOR / SPREAD.down[i])
            return float(ready[j] + SPREAD.latency[i] + SPREAD.latency[j] + line)

        at = np.array([max(ready[i], arrival((i - 1) % F.n, i), arrival((i + 1) % F.n, i)) for i in range(F.n)])
        expected.append(at.max())
    np.testing.assert_allclose(got, expected, rtol=1e-14)
    slow = devices(np.where(np.arange(F.n) == 0, 1.0, 0.0))
    clock = VirtualClock(slow)
    meter = Meter(fed)
    meter.trace = []
    state = DFedAvg().init(torch.from_numpy(X0), cohort(fed, 0))
    DFedAvg().round(state, cohort(fed, 1, meter=meter))
    clock.advance(meter.trace, 1)
    assert np.flatnonzero(clock.at).tolist() == [0, 1, F.n - 1]


def test_a_complete_graph_costs_more_than_one_peer() -> None:
    line = devices(down=100.0, up=100.0)
    whole, peer = (
        times(DFedAvg(), line, everybody(F.n, 1), gossiping(F, WORK, topology))[1]
        for topology in (Static(Complete()), OnePeerExponential())
    )
    assert whole == pytest.approx((F.n - 1) * peer)


@pytest.mark.parametrize(("tau", "speed_up"), [(12, 2.0), (48, 1.25), (1, 13 / 12)])
@pytest.mark.parametrize("algorithm", [CO2(), OverlapSGD(), CoCoDSGD(), Compressed(CO2(), EF14Uplink(TopK(0.999)))])
def test_overlap_takes_the_maximum_of_work_and_communication(algorithm: Any, tau: int, speed_up: float) -> None:
    """Work of tau seconds a round and an all-reduce of 12 s; blocking, their sum."""
    fed = federation(F, LocalWork(batch_size=1, steps=tau))
    line = devices(seconds=1.0, down=VECTOR / 6, up=VECTOR / 6)
    if isinstance(algorithm, Compressed):                  # messages up of another size
        line = devices(seconds=1.0, down=VECTOR / 12)
    blocking, overlapped = (times(a, line, everybody(F.n, 6), fed) for a in (DiLoCo(), algorithm))
    assert (blocking[6] - blocking[3]) / (overlapped[6] - overlapped[3]) == pytest.approx(speed_up, rel=1e-12)


@pytest.mark.parametrize("algorithm", [DCO2(), Compressed(DCO2(), Choco(TopK(0.999), gamma=0.3))])
def test_gossip_behind_local_work(algorithm: Any) -> None:
    """The outer step of DCO2, and the memories of CHOCO, take no time and wait for nothing."""
    fed = gossiping(F, LocalWork(batch_size=1, steps=12), Static(Ring()))
    free = times(algorithm, devices(seconds=1.0), everybody(F.n, 6), fed)
    assert free == [0.0, *(12.0 * np.arange(1, 7))]
    line = devices(seconds=1.0, latency=3.0)
    behind = times(algorithm, line, everybody(F.n, 6), fed)
    blocking = times(DFedAvg(), line, everybody(F.n, 6), fed)
    assert behind[6] - behind[3] == 36.0 and blocking[6] - blocking[3] == 3 * 18.0


@pytest.mark.parametrize(("overlap", "seconds"), [(0.0, 22.0), (0.25, 19.0), (0.75, 13.0), (0.9, 12.0)])
def test_a_share_of_the_work_runs_meanwhile(overlap: float, seconds: float) -> None:
    """12 s of work, 10 s of communication."""
    fed = federation(F, LocalWork(batch_size=1, steps=12))
    line = devices(seconds=1.0, latency=5.0)
    got = times(StreamingDiLoCo(fragments=1, overlap=overlap), line, everybody(F.n, 6), fed)
    assert got[6] - got[5] == pytest.approx(seconds)


def test_dpsgd_waits_where_a_message_is_read() -> None:
    """Its gradient and its exchange belong to one round: a cycle of work and link."""
    fed = gossiping(F, LocalWork(batch_size=1, steps=1), Static(Ring()))
    got = times(DPSGD(), devices(seconds=1.0, latency=2.0), everybody(F.n, 4), fed)
    assert got == [5.0 * t for t in range(5)]


def test_a_newcomer_begins_when_the_server_calls() -> None:
    """With CO2, too, whose workers never wait for the server: a cohort of others cannot begin in the past."""
    line = devices(seconds=1.0, latency=1.0)
    fed = federation(F, LocalWork(batch_size=1, steps=3))
    a, b = [0, 1], [2, 3]
    assert times(FedAvg(), line, [a, b, a], fed) == [0.0, 5.0, 10.0, 15.0]
    # x_3, which b gets in round 3, holds what a uploaded by 5
    assert times(CO2(), line, [a, a, b, b], fed) == [0.0, 5.0, 8.0, 10.0, 13.0]


def test_clients_begin_in_their_windows() -> None:
    windows = Windows([np.array([[10.0, 20.0], [40.0, 50.0]])] * F.n, np.full(F.n, 100.0))
    day = devices(seconds=1.0, windows=windows)
    fed = federation(F, LocalWork(batch_size=1, steps=8))
    # begins at 10, 18, then 26 is too late: 40, 48, and in the next period 110
    assert times(FedAvg(), day, everybody(F.n, 5), fed)[1:] == [18.0, 26.0, 48.0, 56.0, 118.0]


def test_jitter_is_a_function_of_seed_round_and_client_with_mean_one() -> None:
    shaken = devices(seconds=1.0, jitter=0.5, seed=4)
    factors = np.stack([shaken.work(np.arange(F.n), np.ones(F.n), t) for t in range(2000)])
    assert abs(factors.mean() - 1) < 0.02 and abs(factors.std() - 0.5) < 0.03
    np.testing.assert_array_equal(shaken.work(np.array([3]), np.ones(1), 7), factors[7, 3:4])
    other = devices(seconds=1.0, jitter=0.5, seed=5).work(np.arange(F.n), np.ones(F.n), 7)
    assert (other != factors[7]).all()


GROUPS = np.arange(F.n) % 2


def test_clients_of_a_group_share_its_line() -> None:
    """Three of one group take three times as long as one of the other; the delay of the line is added twice."""
    on = devices(0.0, 1e3 * VECTOR, 1e3 * VECTOR, 0.5, groups=GROUPS, group_rate=VECTOR / 2, group_latency=0.25)
    assert times(FedAvg(), on, [[0, 2, 4, 1]])[1] == pytest.approx(2 * (0.5 + 0.25 + 3 * 2))
    assert times(FedAvg(), on, [[0, 1]])[1] == pytest.approx(2 * (0.5 + 0.25 + 2))
    ids, size = np.array([0, 2, 4, 1]), np.full(4, VECTOR)
    work = Computed(ids, size, np.zeros(4, np.int64))
    task = on.task(work, size, np.ones(4, np.int64), 0.0, 4)   # two of each group under way in the mean
    np.testing.assert_allclose(task.total, 2 * (0.5 + 0.25 + 2 * 2))


def test_only_messages_between_groups_take_their_lines() -> None:
    on = devices(0.0, VECTOR, VECTOR, 0.5, groups=GROUPS, group_rate=VECTOR / 4, group_latency=0.25)
    near = on.link(np.array([0, 2]), np.array([2, 0]), np.full(2, VECTOR))
    np.testing.assert_allclose(near, 1 + 1)
    far = on.link(np.array([0, 1, 2]), np.array([1, 0, 0]), np.full(3, VECTOR))
    np.testing.assert_allclose(far, [1 + 0.5 + 4, 1 + 0.5 + 4, 1 + 2])   # the last stays within its group
    both = on.link(np.array([1, 3]), np.array([0, 2]), np.full(2, VECTOR))
    np.testing.assert_allclose(both, 1 + 0.5 + 8)
    np.testing.assert_allclose(on.pair(np.array([0, 0]), np.array([2, 1]), VECTOR), [1 + 1, 1 + 0.5 + 4])
