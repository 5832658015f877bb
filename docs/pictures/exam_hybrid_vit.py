"""Test accuracy of the minimal hybrid ViT while it trains, and without its parts."""

import importlib.util
from functools import cache
from pathlib import Path

import torch

from loglik.data import load

CAPTION = {
    "en": "Test accuracy on digits after 50 and 150 steps of training: the hybrid ViT, and the same network "
    "without its convolutions, without its positions and without both.",
    "zh": "在 digits 上训练 50 步和 150 步后的测试准确率：混合 ViT，以及去掉卷积、去掉位置、两者都去掉的同一网络。",
}
STEPS = (50, 150)
SCRIPT = Path(__file__).parents[2] / "examples" / "hybrid_vit.py"


@cache
def accuracies() -> dict[str, list[float]]:
    """Return the accuracy of each variant after each number of steps."""
    spec = importlib.util.spec_from_file_location("hybrid_vit", SCRIPT)
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    data, found = load("digits"), {}
    for name, options in script.VARIANTS.items():
        found[name] = []
        for steps in STEPS:
            torch.manual_seed(0)
            density = script.classifier(data, **options)
            script.train(density, data, steps)
            found[name].append(script.measure(density, data)[0])
    return found


def draw(plt):
    """Draw a group of bars for each number of steps."""
    figure, axis = plt.subplots()
    colors = ("#2a7fb8", "#e0a030", "#5aa469", "#c8553d")
    for number, ((name, values), color) in enumerate(zip(accuracies().items(), colors, strict=True)):
        axis.bar([place + 0.2 * number for place in range(len(STEPS))], values, 0.18, color=color, label=name)
    axis.set(ylabel="test accuracy", xlabel="steps", ylim=(0, 1))
    axis.set_xticks([place + 0.3 for place in range(len(STEPS))], [str(steps) for steps in STEPS])
    figure.legend(loc="outside upper center", ncols=2)
    return figure
