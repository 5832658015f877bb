"""The norm of the gradient over depth, of plain and of residual stacks."""

import torch
from torch import nn

from loglik.inspection import gradient_flow

CAPTION = {
    "en": "The norm of the gradient at the output of each layer, by that of the last layer, in stacks of 30 "
    "tanh layers. Plain stacks whose weights have a gain of 0.7 or 1.8 lose the gradient or let it grow; "
    "the same layers as residual branches, divided by √30, keep it.",
    "zh": "30 层 tanh 网络中各层输出处的梯度范数，除以最后一层的范数。权重增益为 0.7 或 1.8 的普通网络使梯度消"
    "失或增大；同样的层除以 √30 后作为残差分支，梯度得以保持。",
}
LAYERS, WIDTH = 30, 64


class Layer(nn.Module):
    """x + F(x) or F(x), where F is a linear map and tanh, multiplied by `factor`."""

    def __init__(self, gain, residual, factor):
        super().__init__()
        self.linear, self.residual, self.factor = nn.Linear(WIDTH, WIDTH), residual, factor
        nn.init.normal_(self.linear.weight, std=gain / WIDTH**0.5)

    def forward(self, x):
        branch = self.factor * self.linear(x).tanh()
        return x + branch if self.residual else branch


def draw(plt):
    """Draw the norms against the layer, on a logarithmic axis."""
    x, target = torch.randn(64, WIDTH), torch.randn(64, WIDTH)
    figure, axis = plt.subplots(figsize=(5, 3.6))
    for color, gain in (("#2e86ab", 0.7), ("#d1495b", 1.8)):
        for residual in (False, True):
            network = nn.Sequential(*(Layer(gain, residual, LAYERS**-0.5 if residual else 1) for _ in range(LAYERS)))
            flow = gradient_flow(network, lambda network=network: (network(x) * target).mean(), jacobians=False)
            norms = [layer.output_norm for layer in flow.layers]
            label = f"gain {gain}, {'with shortcuts' if residual else 'plain'}"
            depth = [layer.depth for layer in flow.layers]
            axis.plot(depth, [n / norms[-1] for n in norms], "-" if residual else "--", color=color, label=label)
    axis.set(xlabel="layer", ylabel="gradient norm, relative", yscale="log")
    axis.legend(fontsize=9)
    return figure
