"""Training and validation loss of a classifier on few digits, with and without regularisation."""

import torch

from loglik.classification import Classifier
from loglik.data import load
from loglik.networks import MLP

CAPTION = {
    "en": "A classifier of 200 digits, of which 30 have random labels. Without regularisation the training loss "
    "(dashed) falls towards 0 while the validation loss (solid) rises again; weight decay and dropout slow both. "
    "Early stopping keeps the weights at the dot.",
    "zh": "用 200 个数字图像训练的分类器，其中 30 个的标签是随机的。不加正则化时，训练损失（虚线）降到 0，验证损失（"
    "实线）却重新上升；权重衰减和随机丢弃使二者都变缓。提前停止保留圆点处的权重。",
}


def draw(plt):
    """Draw the losses along training."""
    data = load("digits")
    (x, y), (v, w) = ((split.tensor().float() / 8 - 1, split.y) for split in (data.train, data.validation))
    x, y = x[:200], y[:200].clone()
    noise = torch.Generator().manual_seed(0)
    y[:30] = torch.randint(10, (30,), generator=noise)  # wrong labels, which can only be memorised
    figure, ax = plt.subplots()
    for number, (name, dropout, decay) in enumerate((("none", 0.0, 0.0), ("weight decay and dropout", 0.4, 0.3))):
        torch.manual_seed(0)
        model = Classifier(MLP(64, 128, (128,), dropout=dropout), MLP(128, 10, (128,), dropout=dropout), 10)
        optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, weight_decay=decay)
        steps, train, validation = [], [], []
        for step in range(401):
            if step % 10 == 0:
                model.eval()
                with torch.no_grad():
                    losses = [model.loss(y, x).item(), model.loss(w, v).item()]
                steps.append(step)
                train.append(losses[0])
                validation.append(losses[1])
                model.train()
            rows = torch.randperm(len(x))[:32]
            optimizer.zero_grad()
            model.loss(y[rows], x[rows]).backward()
            optimizer.step()
        ax.semilogy(steps, validation, color=f"C{number}", label=name)
        ax.semilogy(steps, train, "--", color=f"C{number}")
        best = min(range(len(steps)), key=validation.__getitem__)
        ax.plot(steps[best], validation[best], "o", color=f"C{number}")
    ax.set(xlabel="step", ylabel="cross-entropy, nats", ylim=(1e-3, 5))
    ax.legend(title="regularisation", fontsize=9)
    return figure
