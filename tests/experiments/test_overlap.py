"""``experiments/overlap.py``: its methods, and the table that needs no training."""

from __future__ import annotations

from experiments.overlap import BASE, COLORS, METHODS, WORKERS, of, scaling
from fedsim.algorithm import has_server
from topologies import RandomMatching


def test_workers_without_a_server_pair_up() -> None:
    assert len(COLORS) == len(METHODS)
    for method, algorithm in METHODS.items():
        expected = None if has_server(algorithm) else RandomMatching()
        assert of(BASE, method).topology == expected
    assert [name for name in METHODS if of(BASE, name).topology] == ["NoLoCo"]


def test_co2_scales_where_its_messages_fit_behind_the_local_steps() -> None:
    header, *rows = scaling(100_000)
    shares = {(method, line): [float(share) for share in rest] for method, line, *rest in rows}
    assert len(header) == 2 + len(WORKERS) and len(shares) == 6
    assert min(shares["CO2", "1 Gbit/s"]) > 0.95 and shares["Local SGD", "1 Gbit/s"][-1] < 0.8
    for line in ("10 Mbit/s", "1 Gbit/s"):
        methods = (shares[name, line] for name in ("SGD, every step", "Local SGD", "CO2"))
        for sgd, local, co2 in zip(*methods, strict=True):
            assert sgd < local < co2
