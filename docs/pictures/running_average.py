"""The running average of BatchNorm over steps, beside the means of the batches."""

import torch
from torch import nn

from loglik.data import load

CAPTION = {
    "en": "One feature of BatchNorm: the mean of each mini-batch of 16 digits, torch's running mean, and its "
    "formula. The running mean starts at 0; after 3/m = 30 steps its start has a weight of 4%.",
    "zh": "BatchNorm 的一个特征：每个含 16 个数字的小批量的均值、torch 的滑动均值及其公式。滑动均值从 0 开始，"
    "3/m = 30 步后初值的权重只剩 4%。",
}
STEPS, SIZE, MOMENTUM = 100, 16, 0.1


def draw(plt):
    """Draw the three curves over 100 steps."""
    x = load("digits").train.x.flatten(1).float()
    feature = int(x.std(0).argmax())
    norm = nn.BatchNorm1d(x.shape[1], momentum=MOMENTUM)
    means, running, formula = [], [], [0.0]
    for _ in range(STEPS):
        batch = x[torch.randint(len(x), (SIZE,))]
        norm(batch)
        means.append(float(batch[:, feature].mean()))
        running.append(float(norm.running_mean[feature]))
        formula.append((1 - MOMENTUM) * formula[-1] + MOMENTUM * means[-1])
    steps = range(1, STEPS + 1)
    figure, axis = plt.subplots(figsize=(5, 3.2))
    axis.plot(steps, means, ".", color="gray", label=r"$\mu_B$")
    axis.plot(steps, running, linewidth=4, label="torch")
    axis.plot(steps, formula[1:], "--", label=r"$(1-m)\bar\mu+m\mu_B$")
    axis.axhline(float(x[:, feature].mean()), color="gray", linewidth=0.8)
    axis.set(xlabel="step", ylabel="mean of the feature")
    axis.legend(loc="lower right")
    return figure
