"""nanoGPT's larger shape, 6 layers of width 384: training steps, and generation token by token."""

from __future__ import annotations

from harness import Side, count, evaluation, load_workload, training_steps

TITLE = "Autoregressive, 6 layers, and generation"
SHAPES = {"vocabulary": 65, "length": 256, "width": 384, "depth": 6, "heads": 6, "batch": 64, "streams": 32}
LARGE = {"vocabulary": 50304, "length": 1024, "width": 768, "depth": 12, "heads": 12, "batch": 16, "streams": 0}
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
    return Side(
        operations={
            **training_steps(density.parameters(), lambda: density.loss(x), bf16=True),
            **{_name(n): evaluation(density, lambda n=n: density.generate(n)) for n in _streams()},
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
    return Side(
        operations={
            **training_steps(model.parameters(), lambda: model(x, y)[1], bf16=True),
            **{
                _name(1): evaluation(model, lambda: model.generate(start, SHAPES["length"] - 1)) for _ in _streams()[:1]
            },
        },
        parameters=count(model),
    )


def _streams() -> tuple[int, ...]:
    return (1, SHAPES["streams"]) if SHAPES["streams"] else ()


def _name(streams: int) -> str:
    return f"generate, {streams} stream{'s' * (streams > 1)}"


SIDES = {"ours": ours, "nanoGPT": nanogpt}
