"""Settings of clocks: distributions, values written out, trace files, availability, and what they refuse."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedsim import Clock, HalfNormal, LogNormal, OnOff, TracedClock, Uniform
from fedsim.clock.devices import Devices, read_devices
from fedsim.clock.windows import Windows
from fedsim.errors import ConfigError, FedsimError, RunError

CSV = "client,ms_per_sample,down_kbps,up_kbps\nb,10,800,400\na,20,1600,80\nc,5,8000,8000\n"
DAY = "client,start_s,end_s\n0,100,200\n1,0,50\n1,60,80\n2,0,1000\n"


def same(a: Devices, b: Devices) -> bool:
    return all(np.array_equal(getattr(a, name), getattr(b, name)) for name in ("seconds", "down", "up", "latency"))


def test_the_default_has_the_quantiles_of_measured_phones() -> None:
    phones = Clock().devices(20_000, 0)
    low, middle, high = np.quantile(phones.seconds, [0.05, 0.5, 0.95])
    assert middle == pytest.approx(0.01, rel=0.03) and 10 < high / low < 18
    assert np.median(phones.down) == pytest.approx(6e6 / 8, rel=0.03)
    np.testing.assert_array_equal(phones.up, phones.down / 2)
    assert abs(np.corrcoef(np.log(phones.seconds), np.log(phones.down))[0, 1]) < 0.03


def test_devices_are_a_function_of_the_seed() -> None:
    clock = Clock(latency=Uniform(0.1, 0.2), bandwidth_up=HalfNormal(1e6, 1e6))
    assert same(clock.devices(50, 3), clock.devices(50, 3)) and not same(clock.devices(50, 3), clock.devices(50, 4))
    up = clock.devices(5000, 0).up * 8
    assert up.min() >= 1e6 and up.mean() == pytest.approx(1e6 * (1 + np.sqrt(2 / np.pi)), rel=0.05)


def test_numbers_hold_for_all_and_lists_for_each() -> None:
    some = Clock(seconds=(1.0, 2.0, 3.0), bandwidth_down=8e6, up_share=0.25, latency=0).devices(3, 0)
    assert some.seconds.tolist() == [1, 2, 3] and some.down.tolist() == [1e6] * 3 and some.up.tolist() == [2.5e5] * 3
    with pytest.raises(ConfigError, match="seconds has 3 values, and the run 4 clients; expected one for each"):
        Clock(seconds=(1.0, 2.0, 3.0)).devices(4, 0)


@pytest.mark.parametrize("kind", ["csv", "json", "json by client", "npz"])
def test_traces_in_every_format(kind: str, tmp_path: Path) -> None:
    path = tmp_path / f"phones.{kind.split()[0]}"
    rows = [dict(zip(CSV.split()[0].split(","), line.split(","), strict=True)) for line in CSV.split()[1:]]
    numbers = {r["client"]: {k: float(v) for k, v in r.items() if k != "client"} for r in rows}
    if kind == "csv":
        path.write_text(CSV)
    elif kind == "npz":
        np.savez(path, **{key: np.array([row[key] for row in rows]) for key in rows[0]})
    else:
        path.write_text(json.dumps(rows if kind == "json" else numbers))
    found = TracedClock(str(path)).devices(3, 0)
    assert sorted(found.seconds) == pytest.approx([0.015, 0.03, 0.06])   # three times inference, in seconds
    row = int(np.argmin(found.seconds))
    assert found.down[row] == found.up[row] == 1e6
    assert len({tuple(TracedClock(str(path)).devices(3, seed).seconds) for seed in range(60)}) == 6
    assert len(TracedClock(str(path), repeat=True).devices(100, 0).seconds) == 100
    with pytest.raises(ConfigError, match=r"has 3 clients, and the run has 4.*clock.repeat"):
        TracedClock(str(path)).devices(4, 0)


def test_a_trace_that_numbers_the_clients_is_taken_by_number(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text(CSV.replace("\nb", "\n2").replace("\na", "\n0").replace("\nc", "\n1"))
    (tmp_path / "day.csv").write_text(DAY)
    clock = TracedClock(str(tmp_path / "a.csv"), str(tmp_path / "day.csv"), period=1000)
    found = clock.devices(3, 5)
    assert found.seconds.tolist() == [0.06, 0.015, 0.03]
    assert found.begin(np.arange(3), np.array([0.0, 55.0, 3.0])).tolist() == [100.0, 60.0, 3.0]
    assert found.begin(np.arange(3), np.array([200.0, 80.0, 999.0])).tolist() == [1100.0, 1000.0, 999.0]


def test_names_of_fedscale_and_flhetbench_are_read(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(json.dumps({"0": {"computation": 162.0, "communication": 5648.0}}))
    trace = {"0": {"trace_start": 1000, "trace_end": 1600, "ready_time": [[1100, 1200], [1300, 1301]]}}
    (tmp_path / "b.json").write_text(json.dumps(trace))
    found = TracedClock(str(tmp_path / "a.json"), str(tmp_path / "b.json")).devices(1, 0)
    assert found.seconds[0] == pytest.approx(0.486) and found.down[0] == found.up[0] == 706_000
    starts = [found.begin(np.zeros(1, int), np.array([t]))[0] for t in (0.0, 150.0, 200.0, 300.5, 301.0)]
    assert starts == [100.0, 150.0, 300.0, 300.5, 700.0]


def test_the_share_of_time_of_a_markov_chain() -> None:
    windows = OnOff(100, 300).windows(400, 0)
    there = [(own[:, 1] - own[:, 0]).sum() for own in windows.windows]
    assert np.mean(there / windows.periods) == pytest.approx(0.25, abs=0.01)
    assert np.mean([windows.begin(i, 0.0) == 0 for i in range(400)]) == pytest.approx(0.25, abs=0.05)


def test_devices_are_read_as_they_were_written(tmp_path: Path) -> None:
    drawn = Clock(server_up=1e7, availability=OnOff(), groups=3, group_bandwidth=1e6).devices(20, 1)
    (tmp_path / "devices.npz").write_bytes(drawn.to_bytes())
    found = read_devices(tmp_path / "devices.npz")
    assert same(drawn, found) and (found.jitter, found.server_up, found.server_down) == (0.3, 1.25e6, np.inf)
    times = np.linspace(0, 1e6, 20)
    np.testing.assert_array_equal(found.begin(np.arange(20), times), drawn.begin(np.arange(20), times))
    assert found.groups is not None and sorted(np.bincount(found.groups)) == [6, 7, 7] and found.group_rate == 125e3
    np.testing.assert_array_equal(found.groups, drawn.groups)
    (tmp_path / "devices.npz").write_bytes(drawn.to_bytes()[:500])
    with pytest.raises(RunError, match="does not hold the devices"):
        read_devices(tmp_path / "devices.npz")


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Clock(bandwidth_down=0.0), "bandwidth_down is 0.0; expected a number of bit/s above 0"),
        (lambda: Clock(bandwidth_up=(1e6, -1.0)), "bandwidth_up is -1.0"),
        (lambda: Clock(seconds=-0.1), "seconds is -0.1; expected a number of seconds from 0"),
        (lambda: Clock(seconds=float("nan")), "seconds is nan"),
        (lambda: Clock(latency="fast"), "latency is 'fast'; expected a number"),  # type: ignore[arg-type]
        (lambda: Clock(server_up=0.0), "server_up is 0.0"),
        (lambda: Clock(up_share=0.0), "up_share"),
        (lambda: Clock(jitter=-1.0), "jitter"),
        (lambda: Clock(availability=3), "availability is 3"),  # type: ignore[arg-type]
        (lambda: Clock(bandwidth_down=Uniform(0.0, 0.0)).devices(3, 0), "client 0 has bandwidth down 0; expected"),
        (lambda: Clock(server_up=1e-300).devices(3, 0), "clock.server_up is 1e-300 bit/s; expected a byte"),
        (lambda: Uniform(2.0, 1.0), "expected at least low"),
        (lambda: LogNormal(0.0), "median"),
        (lambda: LogNormal(1.0, 1e3), r"sigma is 1000.0; expected a number in \[0, 10\]"),
        (lambda: Clock(seconds=1e308), r"seconds is 1e\+308; expected .* to 9e9 \(285 years\)"),
        (lambda: Clock(seconds=LogNormal(1e300)).devices(3, 0), "client 0 has seconds .*at most 9e9"),
        (lambda: Clock(bandwidth_down=1e-300).devices(3, 0), "client 0 has bandwidth down 1e-300; expected above 0"),
        (lambda: Clock(jitter=1e200), r"jitter is 1e\+200; expected a number in \[0, 100\]"),
        (lambda: OnOff(0.0), "available"),
        (lambda: Clock(groups=-1), r"Clock\.groups is -1"),
        (lambda: Clock(groups=4).devices(3, 0), r"Clock\.groups is 4, and the run has 3 clients; expected at most"),
        (lambda: Clock(group_bandwidth=1e6), "there are none; set groups"),
        (lambda: Clock(groups=2, group_bandwidth=0.0), "group_bandwidth is 0.0"),
        (lambda: Clock(groups=2, group_bandwidth=1e-300).devices(3, 0), "group_rate is .* bit/s; expected a byte"),
        (lambda: TracedClock("x.csv", period=0.0), "period is 0.0"),
        (lambda: TracedClock("nowhere.csv").devices(1, 0), "cannot read nowhere.csv"),
        (lambda: Windows([np.zeros((0, 2))], np.ones(1)), "client 0 is never available"),
        (lambda: Windows([np.array([[5.0, 5.0]])], np.ones(1)), "client 0 is never available"),
        (lambda: Windows([np.array([[5.0, 9.0]])], np.array([8.0])), "period 8 s; expected 0 <= start"),
    ],
)
def test_what_is_refused(make: Callable[[], Any], words: str) -> None:
    with pytest.raises(FedsimError, match=words):
        make()


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("a.csv", "client,ms_per_sample\n0,1\n", "no column down_kbps"),
        ("a.csv", "client,ms_per_sample,down_kbps,up_kbps\n", "no rows"),
        ("a.csv", CSV.replace("b,10", "b,ten"), "a.csv, row 1, client b: ms_per_sample is 'ten'; expected a number"),
        ("a.csv", CSV.replace("a,20,1600,80", "a,20"), "no value down_kbps in row 2, client a; expected a .csv"),
        ("a.csv", "client,ms_per_sample\n,1\n", "no value client in row 1; expected"),
        ("a.csv", CSV + "a,1,1,1\n", "client a 2 times"),
        ("a.csv", CSV.replace("1600", "-1600"), "bandwidth down"),
        ("a.json", "{", "cannot be read"),
        ("a.json", "[1]", "a.json has 1 as row 1; expected a list of rows, or a mapping"),
        ("a.json", "7", "a.json has 7 as row 1; expected a list of rows"),
        ("a.json", '{"0": {"ready_time": []}}', "cannot be read as JSON: an entry has no 'trace_start'"),
        ("a.npz", "PK", "cannot be read as an npz file of arrays of numbers and text; expected"),
    ],
)
def test_bad_traces(name: str, text: str, words: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(ConfigError, match=words):          # the command line exits with 2
        TracedClock(str(tmp_path / name)).devices(1 if "ms_per_sample\n" in text else 3, 0)


def test_nothing_is_unpickled(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", client=np.array([{}], object))
    with pytest.raises(FedsimError, match="cannot be read"):
        TracedClock(str(tmp_path / "a.npz")).devices(1, 0)
