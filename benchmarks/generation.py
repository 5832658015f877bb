"""nanoGPT's larger shape, 6 layers of width 384: training steps, and generation token by token."""

from __future__ import annotations

from harness import Side, count, evaluation, load_workload, training_step

TITLE = "Autoregressive, 6 layers, and generation"
SHAPES = {"vocabulary": 65, "length": 256, "width": 384, "depth": 6, "heads": 6, "batch": 64, "streams": 32}
NOTES = (
    "`generate` fills the window: 256 tokens per stream without a prompt (nanoGPT generates 255 after a prompt of one "
    "token, which it requires). Tokens per second are 256, or 8,192 for 32 streams, divided by the time. nanoGPT runs "
    "the network over all previous tokens for each new one. `bf16` is under autocast. Both are without biases and "
    "without dropout; nanoGPT ties its token embedding to its output layer."
)


def ours() -> Side:
    import torch

    shared = load_workload("autoregressive")
    density = shared.build(SHAPES)
    x = torch.randint(0, SHAPES["vocabulary"], (SHAPES["batch"], SHAPES["length"]))
    step = training_step(density.parameters(), lambda: density.loss(x))
    return Side(
        operations={
            "training step": step,
            "training step, bf16": shared.in_bf16(step),
            "generate, 1 stream": evaluation(density, lambda: density.generate(1)),
            "generate, 32 streams": evaluation(density, lambda: density.generate(SHAPES["streams"])),
        },
        parameters=count(density),
    )


def nanogpt() -> Side:
    import torch

    shared = load_workload("autoregressive")
    model = shared.build_nanogpt(SHAPES)
    tokens = torch.randint(0, SHAPES["vocabulary"], (SHAPES["batch"], SHAPES["length"] + 1))
    x, y = tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous()
    start = torch.zeros(1, 1, dtype=torch.long)
    step = training_step(model.parameters(), lambda: model(x, y)[1])
    return Side(
        operations={
            "training step": step,
            "training step, bf16": shared.in_bf16(step),
            "generate, 1 stream": evaluation(model, lambda: model.generate(start, SHAPES["length"] - 1)),
        },
        parameters=count(model),
    )


SIDES = {"ours": ours, "nanoGPT": nanogpt}
