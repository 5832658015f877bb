"""Classifiers of texts of transformers as densities p(label | text): the model's own tokenizer reads the text."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import torch
from jaxtyping import Float, Shaped
from torch import Tensor, nn

from loglik.adapters.classifiers import classifier
from loglik.adapters.hf_folder import labels_of, load_pretrained, load_tokenizer
from loglik.data.spec import DataSpec
from loglik.data.tokenizers import Bytes
from loglik.runs import Run

__all__ = ["load_texts"]


class WholeBytes(Bytes):
    """The bytes of texts that are not cut: their model has a tokenizer of its own."""

    elsewhere: ClassVar[bool] = True


class _TextLogits(nn.Module):
    """The logits of texts in bytes 0 ... 255, which end in padding, 256."""

    def __init__(self, model: nn.Module, tokenizer: Any) -> None:
        super().__init__()
        self.model, self.tokenizer = model, tokenizer
        limits = (tokenizer.model_max_length, getattr(model.config, "max_position_embeddings", None))
        self.longest = min(limit for limit in limits if limit is not None)

    def forward(self, x: Shaped[Tensor, "B T"]) -> Float[Tensor, "B C"]:
        texts = [bytes(row[row < 256].tolist()).decode(errors="replace") for row in x.cpu()]
        ids = [self.tokenizer(text, verbose=False)["input_ids"] for text in texts]
        if long := next((len(row) for row in ids if len(row) > self.longest), None):
            raise ValueError(f"a text has {long:,} tokens, and the model reads {self.longest:,}: shorten the texts")
        device = next(self.model.parameters()).device
        # one by one: a model need not ignore padding
        rows = [torch.tensor([row], device=device) for row in ids]
        return torch.cat([self.model(input_ids=row, attention_mask=torch.ones_like(row)).logits for row in rows])


def load_texts(path: Path, spec: DataSpec | None, *, tokenizer: str | None = None, outputs: str | None = None) -> Run:
    """Read a classifier of texts of transformers from a local folder, with its tokenizer.

    Raises ValueError where the data are no texts with labels, and where the classes differ.
    """
    from transformers import AutoModelForSequenceClassification

    if spec is None or spec.kind != "text" or not spec.classes:
        what = "no data" if spec is None else spec.describe()
        raise ValueError(
            f"{path}: a classifier of texts needs a table with a column of texts and label=COLUMN, got {what}"
        )
    model = load_pretrained(AutoModelForSequenceClassification, path)
    network = _TextLogits(model, load_tokenizer(path, tokenizer))
    names = labels_of(path, int(model.config.num_labels))
    try:
        density = classifier(network, classes=names, spec=spec, outputs=outputs, prepare=nn.Identity())
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    return Run(density, replace(spec, tokenizer=WholeBytes(), levels=257), {})
