"""Training and test loss of an MLP on 60 digits, plain, with dropout and with weight decay."""

from functools import cache

import torch
import torch.nn.functional as F

from loglik.data import load
from loglik.networks import MLP

CAPTION = {
    "en": "Cross-entropy of an MLP that is trained on 60 digits. The training losses (dashed) go to 0; "
    "the test loss (solid) falls and rises, less with dropout or weight decay.",
    "zh": "只用 60 张手写数字训练的 MLP 的交叉熵。训练损失（虚线）趋于 0，测试损失（实线）先降后升；"
    "加 dropout 或权重衰减后升得更少。",
}
STEPS, EVERY = 300, 10
SETTINGS = {"plain": (0.0, 0.0), "dropout 0.5": (0.5, 0.0), "weight decay 1": (0.0, 1.0)}


@cache
def curves() -> dict[str, list[tuple[int, float, float]]]:
    """Return (step, training loss, test loss) for each of the settings."""
    data = load("digits")
    x, y = data.train.x[:60].flatten(1).float() / 16, data.train.y[:60]
    test_x, test_y = data.test.x.flatten(1).float() / 16, data.test.y
    found = {}
    for name, (dropout, decay) in SETTINGS.items():
        torch.manual_seed(0)
        model = MLP(64, 10, (128,), dropout=dropout)
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=decay)
        found[name] = []
        for step in range(1, STEPS + 1):
            model.train()
            loss = F.cross_entropy(model(x), y)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            if step % EVERY == 0:
                with torch.no_grad():
                    model.eval()
                    losses = F.cross_entropy(model(x), y), F.cross_entropy(model(test_x), test_y)
                found[name].append((step, *(value.item() for value in losses)))
    return found


def draw(plt):
    """Draw both losses of each network."""
    figure, axis = plt.subplots()
    for (name, rows), color in zip(curves().items(), ("#c8553d", "#2a7fb8", "#5aa469"), strict=True):
        steps, train, test = zip(*rows, strict=True)
        axis.plot(steps, test, color=color, label=name)
        axis.plot(steps, train, color=color, linestyle="--")
    axis.set(xlabel="steps", ylabel="nats per label", ylim=(0, None))
    axis.legend()
    return figure
