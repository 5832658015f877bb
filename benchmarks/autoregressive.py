"""A causal Transformer over characters against nanoGPT, at the shapes of its CPU configuration."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

from harness import Side, Unavailable, count, evaluation, training_steps

TITLE = "Autoregressive"
SHAPES = {"vocabulary": 65, "length": 64, "width": 128, "depth": 4, "heads": 4, "batch": 12, "samples": 8}
NOTES = (
    "`log_prob` is a forward pass with the cross-entropy of every position; `sample` draws 8 sequences of 64 tokens; "
    "`bf16` is under autocast. Both are without biases and without dropout. nanoGPT ties its token embedding to its "
    "output layer, so it has fewer parameters, and it samples without a cache of keys and values."
)


def ours() -> Side:
    import torch

    density = build(SHAPES)
    x = torch.randint(0, SHAPES["vocabulary"], (SHAPES["batch"], SHAPES["length"]))
    return Side(
        operations={
            **training_steps(density.parameters(), lambda: density.loss(x), bf16=True),
            "log_prob": evaluation(density, lambda: density.log_prob(x)),
            "sample": evaluation(density, lambda: density.sample(SHAPES["samples"])),
        },
        parameters=count(density),
    )


def nanogpt() -> Side:
    import torch

    model = build_nanogpt(SHAPES)
    tokens = torch.randint(0, SHAPES["vocabulary"], (SHAPES["batch"], SHAPES["length"] + 1))
    x, y = tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous()
    start = torch.zeros(SHAPES["samples"], 1, dtype=torch.long)
    return Side(
        operations={
            **training_steps(model.parameters(), lambda: model(x, y)[1], bf16=True),
            "log_prob": evaluation(model, lambda: model(x, y)),
            "sample": evaluation(model, lambda: model.generate(start, SHAPES["length"])),
        },
        parameters=count(model),
    )


def build(shapes: Mapping[str, int]) -> Any:
    """Build our density with these shapes."""
    from loglik.autoregressive import Autoregressive
    from loglik.networks import BlockSettings, CausalTransformer

    network = CausalTransformer(shapes["width"], shapes["depth"], shapes["heads"], settings=BlockSettings(bias=False))
    return Autoregressive(network, (shapes["length"],), shapes["vocabulary"], shared=True)


def build_nanogpt(shapes: Mapping[str, int]) -> Any:
    """Build nanoGPT with these shapes, as its training script does."""
    nano = _module()
    return nano.GPT(
        nano.GPTConfig(
            block_size=shapes["length"],
            vocab_size=shapes["vocabulary"],
            n_layer=shapes["depth"],
            n_head=shapes["heads"],
            n_embd=shapes["width"],
            bias=False,
        )
    )


def _module() -> ModuleType:
    folder = os.environ.get("NANOGPT")
    if not folder:
        raise Unavailable("not given: set NANOGPT, or pass --nanogpt, to the folder with nanoGPT's model.py")
    path = Path(folder) / "model.py"
    if not path.is_file():
        raise Unavailable(f"no model.py in the folder given as NANOGPT: {folder}")
    spec = importlib.util.spec_from_file_location("nanogpt_model", path)
    assert spec is not None and spec.loader is not None
    nano = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(nano)
    return nano


SIDES = {"ours": ours, "nanoGPT": nanogpt}
