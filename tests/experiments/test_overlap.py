"""``experiments/overlap.py``: the table that needs no training."""

from __future__ import annotations

from experiments.overlap import WORKERS, scaling


def test_co2_scales_where_its_messages_fit_behind_the_local_steps() -> None:
    header, *rows = scaling(100_000)
    shares = {(method, line): [float(share) for share in rest] for method, line, *rest in rows}
    assert len(header) == 2 + len(WORKERS) and len(shares) == 6
    assert min(shares["CO2", "1 Gbit/s"]) > 0.95 and shares["Local SGD", "1 Gbit/s"][-1] < 0.8
    for line in ("10 Mbit/s", "1 Gbit/s"):
        methods = (shares[name, line] for name in ("SGD, every step", "Local SGD", "CO2"))
        for sgd, local, co2 in zip(*methods, strict=True):
            assert sgd < local < co2
