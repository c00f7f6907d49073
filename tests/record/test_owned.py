"""What clients own, as it is recorded and drawn."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from algorithms import DPSGD
from fedsim import DirichletPartitioner, Experiment, run
from fedsim.errors import RunError
from fedsim.record.owned import FILE, MOST, Owned, read_owned, write_owned
from fedsim.report.html import write_report
from topologies import Ring, Static


def test_what_was_written_is_read(tmp_path: Path) -> None:
    counts = np.array([[1, 2], [0, 0], [5, 0]])
    write_owned(tmp_path / "seed-0", Owned(counts.sum(axis=1), counts, ("a,b", "c")))
    assert (tmp_path / "seed-0" / FILE).read_text().splitlines()[:2] == ['client,samples,"a,b",c', "0,3,1,2"]
    found = read_owned(tmp_path / "seed-0")
    assert found is not None and found.sizes.tolist() == [3, 0, 5] and list(found.classes) == ["a,b", "c"]
    assert found.counts is not None and found.counts.tolist() == counts.tolist()
    write_owned(tmp_path / "seed-1", Owned(np.array([4, 5]), None, ()))
    other = read_owned(tmp_path / "seed-1")
    assert other is not None and other.counts is None and other.sizes.tolist() == [4, 5]
    write_owned(tmp_path / "seed-2", Owned(np.zeros(MOST + 1, np.int64), None, ()))
    assert read_owned(tmp_path / "seed-2") is None


@pytest.mark.parametrize(
    "text", ["", "client,samples\n", "client,samples,0\n0,1\n", "client,samples\n0,x\n", "a,b\n1,2\n"]
)
def test_a_damaged_file_is_named(tmp_path: Path, text: str) -> None:
    (tmp_path / FILE).write_text(text)
    with pytest.raises(RunError, match=r"partition\.csv cannot be read"):
        read_owned(tmp_path)


@pytest.mark.slow
def test_a_report_shows_who_owns_what_and_who_is_linked(tmp_path: Path) -> None:
    experiment = Experiment(DPSGD(), topology=Static(Ring()), partition=DirichletPartitioner(6, alpha=1.0), rounds=2)
    made = run(experiment, output=tmp_path / "run", progress=False)
    owned = read_owned(made.seed_path(0))
    assert owned is not None and owned.counts is not None and owned.counts.shape == (6, 10)
    assert owned.counts.sum(axis=1).tolist() == owned.sizes.tolist() and owned.sizes.sum() == 1438
    page = write_report([made.path], tmp_path / "report.html").read_text()
    for title in ("Partition", "Topology"):
        assert f"<figcaption>{title} of seed 0.</figcaption>" in page
    (made.seed_path(0) / FILE).write_text("no table")
    assert "partition.csv cannot be read" in write_report([made.path], tmp_path / "report.html").read_text()
