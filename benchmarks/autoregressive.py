"""A causal Transformer over bytes against nanoGPT, whose folder the user gives in NANOGPT."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path

from harness import Side, Unavailable, count, evaluation, training_step

TITLE = "Autoregressive"
SHAPES = {"vocabulary": 256, "length": 128, "width": 128, "depth": 4, "heads": 4, "batch": 16, "samples": 8}
NOTES = (
    "`log_prob` is a forward pass with the cross-entropy of every position; `sample` draws 8 sequences of 128 bytes. "
    "nanoGPT ties its token embedding to its output layer, so it has fewer parameters, and it samples without a cache "
    "of keys and values."
)


def ours() -> Side:
    import torch

    from loglik.autoregressive import Autoregressive
    from loglik.networks.transformer import CausalTransformer

    length, levels = SHAPES["length"], SHAPES["vocabulary"]
    density = Autoregressive(CausalTransformer(SHAPES["width"], SHAPES["depth"], SHAPES["heads"]), (length,), levels)
    x = torch.randint(0, levels, (SHAPES["batch"], length))
    return Side(
        operations={
            "training step": training_step(density.parameters(), lambda: density.loss(x)),
            "log_prob": evaluation(density, lambda: density.log_prob(x)),
            "sample": evaluation(density, lambda: density.sample(SHAPES["samples"])),
        },
        parameters=count(density),
    )


def nanogpt() -> Side:
    folder = os.environ.get("NANOGPT")
    if not folder:
        raise Unavailable("not given: set NANOGPT, or pass --nanogpt, to the folder with nanoGPT's model.py")
    path = Path(folder) / "model.py"
    if not path.is_file():
        raise Unavailable(f"no model.py in the folder given as NANOGPT: {folder}")
    import torch

    spec = importlib.util.spec_from_file_location("nanogpt_model", path)
    assert spec is not None and spec.loader is not None
    nano = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(nano)

    length, levels = SHAPES["length"], SHAPES["vocabulary"]
    model = nano.GPT(
        nano.GPTConfig(
            block_size=length,
            vocab_size=levels,
            n_layer=SHAPES["depth"],
            n_head=SHAPES["heads"],
            n_embd=SHAPES["width"],
        )
    )
    tokens = torch.randint(0, levels, (SHAPES["batch"], length + 1))
    x, y = tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous()
    start = torch.zeros(SHAPES["samples"], 1, dtype=torch.long)
    return Side(
        operations={
            "training step": training_step(model.parameters(), lambda: model(x, y)[1]),
            "log_prob": evaluation(model, lambda: model(x, y)),
            "sample": evaluation(model, lambda: model.generate(start, length)),
        },
        parameters=count(model),
    )


SIDES = {"ours": ours, "nanoGPT": nanogpt}
