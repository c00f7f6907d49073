"""GPT against PyTorch's encoder layers with the same weights, on both backends, and on text by client."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from algorithms import FedAvg
from fedsim import GPT, Data, Evaluation, Execution, Experiment, FixedSize, LocalWork, NaturalIdPartitioner, run
from fedsim.clients import cohort
from fedsim.data import Split
from fedsim.engine.blocks import Blocks
from fedsim.engine.examine import examine
from fedsim.engine.federation import Backend, Federation
from fedsim.engine.local_work import Shards
from fedsim.engine.loop import Loop
from fedsim.engine.model import Model
from fedsim.models.losses import cross_entropy
from fedsim.models.transformer import LanguageModel
from fedsim.record.metrics import read_metrics

LENGTH, WORDS = 5, 9


def network(settings: GPT) -> LanguageModel:
    torch.manual_seed(0)
    return settings.build((LENGTH,), WORDS).double()


def by_pytorch(mine: LanguageModel, tokens: Tensor, heads: int) -> Tensor:
    """Logits by ``nn.TransformerEncoderLayer`` with normalisation first and a causal mask."""
    h = mine.tokens(tokens) + mine.positions.weight[: tokens.shape[1]]
    width = h.shape[-1]
    for block in mine.blocks:
        layer = nn.TransformerEncoderLayer(
            width, heads, 4 * width, 0.0, lambda x: F.gelu(x, approximate="tanh"), batch_first=True, norm_first=True
        ).double()  # fmt: skip
        theirs: Any = layer.self_attn
        pairs = [
            (theirs.out_proj, block.attention.project), (layer.linear1, block.up), (layer.linear2, block.down),
            (layer.norm1, block.norm1), (layer.norm2, block.norm2),
        ]  # fmt: skip
        for to, source in pairs:
            to.load_state_dict(source.state_dict())
        theirs.in_proj_weight.data, theirs.in_proj_bias.data = block.attention.qkv.weight, block.attention.qkv.bias
        h = layer(h, nn.Transformer.generate_square_subsequent_mask(tokens.shape[1], dtype=h.dtype), is_causal=True)
    return F.linear(mine.norm(h), mine.tokens.weight)


def test_outputs_are_those_of_pytorch_s_layers() -> None:
    mine = network(GPT(width=8, layers=2, heads=2))
    with torch.no_grad():
        for p in mine.parameters():
            p.add_(torch.randn_like(p), alpha=0.3)         # initial values are too small to tell
    for length in (LENGTH, 3):
        tokens = torch.randint(0, WORDS, (4, length))
        torch.testing.assert_close(mine(tokens), by_pytorch(mine, tokens, heads=2), rtol=0, atol=1e-12)


def test_initial_values_are_the_paper_s() -> None:
    mine = network(GPT(width=64, layers=8))
    assert float(mine.blocks[0].up.weight.detach().std()) == pytest.approx(0.02, rel=0.03)
    assert float(mine.blocks[0].down.weight.detach().std()) == pytest.approx(0.005, rel=0.03)
    assert float(mine.blocks[7].attention.project.weight.detach().std()) == pytest.approx(0.005, rel=0.05)
    assert not mine.blocks[0].up.bias.any() and bool((mine.norm.weight == 1).all())


def after_rounds(backend: Backend, settings: GPT) -> Tensor:
    sizes = np.array([3, 7, 5])
    model = Model(network(settings), cross_entropy, dtype=torch.float64)
    tokens = torch.randint(0, WORDS, (int(sizes.sum()), LENGTH + 1))
    x, y = tokens[:, :-1], tokens[:, 1:]
    examine(model, Split(x, y))
    fed = Federation(model, Shards(x, y, np.r_[0, np.cumsum(sizes)]), LocalWork(4, epochs=2), 3, backend)
    method = FedAvg()
    state = method.init(model.vector(), cohort(fed, 0))
    for k in (1, 2):
        state = method.round(state, cohort(fed, k))
    return state.x


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("settings", [GPT(8, 2, 2, 0.2), GPT(8, 1, 2, 0.0, tied=False)], ids=["dropout", "untied"])
def test_blocks_agree_with_the_loop(settings: GPT) -> None:
    x = after_rounds(Loop(), settings)
    torch.testing.assert_close(after_rounds(Blocks(2), settings), x, rtol=0, atol=1e-12)
    if settings.dropout:
        assert not torch.allclose(x, after_rounds(Loop(), replace(settings, dropout=0.0)), atol=1e-6)


def test_it_learns_text_by_client_and_reports_each_client_s_perplexity(tmp_path: Path) -> None:
    """Each client repeats a word of its own, which a model with one head and one block can know from the letters."""
    words = {"anna": "lorem ", "ben": "ipsum ", "cleo": "dolor "}
    lines = [json.dumps({"client": name, "text": 80 * word}) for name, word in words.items()]
    (tmp_path / "words.jsonl").write_text("\n".join(lines))
    made = run(
        Experiment(
            FedAvg(lr=0.5),
            data=Data("jsonl", options={"path": str(tmp_path / "words.jsonl"), "sequence_length": 12}),
            partition=NaturalIdPartitioner(),
            model=GPT(width=16, layers=1, heads=2),
            local=LocalWork(batch_size=8, epochs=2, clip_norm=1.0),
            sampling=FixedSize(1.0),
            metrics="perplexity",
            evaluation=Evaluation(every=30, clients_every=30),
            rounds=30,
            execution=Execution(backend="loop"),
        ),
        root=tmp_path,
    )
    rows = read_metrics(made.seed_path(0) / "metrics.jsonl")
    at_start, trained = (rows.series("clients/train", "perplexity_mean")[k] for k in (0, 30))
    assert at_start > 10 and trained < 1.6                 # of 12 letters
    assert all(rows.series("clients/train", "perplexity", node)[30] < 2 for node in range(3))
