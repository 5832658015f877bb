# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Images
#
# Three densities are trained on handwritten digits, compared by their likelihood, and used: to draw digits, to find
# images that are no digits, and to classify. Everything runs in half a minute on one CPU core.

# %% [markdown] tags=["zh"]
# # 图像
#
# 本教程在手写数字上训练三种概率密度模型，用似然比较它们，然后加以使用：生成数字、找出不是数字的图像、做分类。
# 在一个 CPU 核上，全部代码半分钟即可运行完。

# %%
import matplotlib.pyplot as plt
import numpy as np
import torch
from sklearn.datasets import load_digits

import loglik

STEPS = 300  # of training, for each model; more steps give better models
torch.manual_seed(0)

digits = load_digits()
images, labels = digits.images.astype(np.uint8), digits.target
print(images.shape, images.dtype, "values from", images.min(), "to", images.max())

# %% [markdown]
# An array of unsigned bytes of shape (N, H, W) is read as images. These have 8 × 8 pixels of 17 grey levels each. The
# name `"digits"` stands for the same data. `fit` splits data at random: 80 % for training, 10 % for validation and 10 %
# for the test.

# %% [markdown] tags=["zh"]
# 形状为 (N, H, W) 的无符号字节数组会被当作图像读入。这里每张图像有 8 × 8 个像素，每个像素有 17 级灰度。
# 也可以用名称 `"digits"` 指代同一份数据。`fit` 随机划分数据：80 % 用于训练，10 % 用于验证，10 % 用于测试。


# %% en="Sixteen digits of the data." zh="数据中的十六个数字。"
def show(rows, titles=None, columns=8):
    """Draw images in a grid."""
    rows = np.asarray(rows).reshape(len(rows), 8, 8)
    lines = -(-len(rows) // columns)
    _, axes = plt.subplots(
        lines, columns, figsize=(5.6, 0.8 * lines if titles is None else lines)
    )
    for i, axis in enumerate(axes.flat):
        axis.axis("off")
        if i < len(rows):
            axis.imshow(rows[i], cmap="gray", vmin=0, vmax=16)
            if titles is not None:
                axis.set_title(titles[i], fontsize=10)
    plt.show()


show(images[:16])

# %% [markdown]
# ## What the number means
#
# A pixel takes one of 17 values, so a model gives an image a probability, and no density. The score is the mean of
# $\log p(x)$ over the test split, in nats per image. Bits per dimension are the same number in other units:
#
# $$
# \text{bits/dim} = -\frac{\log p(x)}{D \ln 2}
# $$
#
# with $D = 64$ pixels. They are the length of the shortest code for the images, in bits per pixel: a code that knows
# nothing needs $\log_2 17 = 4.09$. The baseline `independent` counts how often each pixel takes each value. A model that
# is better than it has learned how pixels depend on each other.

# %% [markdown] tags=["zh"]
# ## 这个数是什么意思
#
# 每个像素取 17 个值之一，所以模型给图像的是概率，而不是概率密度。得分是测试集上 $\log p(x)$ 的平均值，
# 单位是 nat/图像。换一个单位，就是每维比特数：
#
# $$
# \text{bits/dim} = -\frac{\log p(x)}{D \ln 2}
# $$
#
# 其中像素数 $D = 64$。它是图像最短编码的长度，以比特/像素计：一无所知的编码需要 $\log_2 17 = 4.09$ 比特。
# 基线 `independent` 只统计每个像素取每个值的频率；比它好的模型，学到了像素之间的依赖关系。

# %%
runs, results = {}, {}
for name in ("independent", "vae", "flow", "diffusion"):
    runs[name] = loglik.fit(name, "digits", max_steps=STEPS, progress=False)
    result = results[name] = loglik.evaluate(runs[name])
    print(
        f"{name:12} {result.nats:8.2f} ± {result.stderr:.2f} nats  {result.bits_per_dim:.3f} bits/dim  {result.bound}"
    )

# %% [markdown]
# `exact` means that the number is the log-likelihood. `lower` means that it is a lower bound: the model is at least as
# good as that. A VAE bounds $\log p(x)$ by the ELBO, a diffusion by the ELBO of its chain. The flow is exact for real
# numbers; for integers it adds noise to them (dequantization), and Jensen's inequality makes a bound of it.
# The VAE and the flow average importance weights, which tightens their bounds.
#
# With so few steps the order of the models says little: `loglik compare digits` trains each for the same time, and
# says which of them is undertrained.

# %% [markdown] tags=["zh"]
# `exact` 表示这个数就是对数似然。`lower` 表示它是下界：模型至少有这么好。VAE 用 ELBO 给出 $\log p(x)$ 的下界，
# 扩散模型用整条链的 ELBO。流模型对实数是精确的；对整数，它先加噪声（去量化），由 Jensen 不等式得到下界。
# VAE 和流模型对多个重要性权重取平均，使下界更紧。
#
# 步数这么少，模型的名次说明不了多少问题：`loglik compare digits` 让每个模型训练同样长的时间，并指出哪些还没有训练好。

# %% en="Nats per image gained over the baseline, with the standard error of the paired differences." zh="每张图像比基线多得的 nat 数，以及配对差的标准误差。"
test = runs["vae"].data_for().split("test")
baseline = runs["independent"].density.log_prob(test.x)
names = list(runs)[1:]
with torch.no_grad():
    scores = [runs[name].density.log_prob(test.x, samples=16) for name in names]
gains = [(score - baseline).numpy() for score in scores]
_, axis = plt.subplots(figsize=(5.6, 2.2))
axis.barh(
    names,
    [g.mean() for g in gains],
    xerr=[g.std() / len(g) ** 0.5 for g in gains],
    ecolor="gray",
    capsize=4,
)
axis.set_xlabel("nats gained over independent pixels")
plt.show()

# %% [markdown]
# ## Draw digits
#
# `sample` returns images in the units of the data: integers from 0 to 16.

# %% [markdown] tags=["zh"]
# ## 生成数字
#
# `sample` 返回的图像与数据单位相同：0 到 16 的整数。

# %% en="Eight samples each of independent pixels, the VAE, the flow and the diffusion, from top to bottom." zh="自上而下：独立像素、VAE、流模型和扩散模型各八个样本。"
samples = torch.cat([run.density.sample(8) for run in runs.values()])
show(samples)

# %% [markdown]
# ## Find what is no digit
#
# An image that the model has not seen the like of has a low likelihood. Here test images compete with the same images
# upside down, of which some (0, 1, 8) still are digits.

# %% [markdown] tags=["zh"]
# ## 找出不是数字的图像
#
# 模型没有见过类似的图像，似然就低。这里把测试图像与上下颠倒的同一批图像相比；颠倒之后，有些（0、1、8）仍然是数字。

# %% en="Log-likelihoods of test images, and of the same images upside down." zh="测试图像及其上下颠倒后的对数似然。"
with torch.no_grad():
    upright = runs["vae"].density.log_prob(test.x, samples=32)
    flipped = runs["vae"].density.log_prob(test.x.flip(-2), samples=32)
both = torch.cat([upright, flipped])
edges = np.linspace(both.min().item(), both.max().item(), 40)
_, axis = plt.subplots(figsize=(5.6, 2.6))
axis.hist(upright.numpy(), edges, alpha=0.7, label="test images")
axis.hist(flipped.numpy(), edges, alpha=0.7, label="upside down")
axis.set(xlabel="log p(x), nats", ylabel="images")
axis.legend()
plt.show()

share = (upright[:, None] > flipped).float().mean()
print(f"a test image is likelier than one upside down in {share:.0%} of all pairs")

# %% en="The eight test images that the VAE finds least likely, with log p(x)." zh="VAE 认为似然最低的八张测试图像及其 log p(x)。"
lowest = upright.argsort()[:8]
show(test.x[lowest], [f"{upright[i]:.0f}" for i in lowest])

# %% [markdown]
# ## Classify by Bayes' rule
#
# With `conditional=True` a model learns $p(x \mid y)$. Bayes' rule makes a classifier of it:
#
# $$
# p(y \mid x) = \frac{p(x \mid y)\,p(y)}{\sum_{k} p(x \mid k)\,p(k)}
# $$

# %% [markdown] tags=["zh"]
# ## 用贝叶斯公式分类
#
# 设 `conditional=True`，模型学习的是 $p(x \mid y)$。由贝叶斯公式得到分类器：
#
# $$
# p(y \mid x) = \frac{p(x \mid y)\,p(y)}{\sum_{k} p(x \mid k)\,p(k)}
# $$

# %%
run = loglik.fit(
    "vae",
    "digits",
    conditional=True,
    network="mlp",
    max_steps=2 * STEPS,
    progress=False,
)
with torch.no_grad():
    joint = torch.stack(
        [
            run.density.log_prob(test.x, torch.full((len(test.x),), k), samples=16)
            for k in range(10)
        ],
        1,
    )
posterior = joint.log_softmax(1)  # all classes are equally frequent
accuracy = (posterior.argmax(1) == test.y).double().mean()
nats = posterior.gather(1, test.y[:, None]).mean()
print(f"accuracy {accuracy:.1%}, {nats:.3f} nats per label")

# %% [markdown]
# `loglik.fit("classifier", "digits")` learns $p(y \mid x)$ directly, and is calibrated on the validation split.
#
# ## Your images
#
# A folder of images takes the place of `"digits"`: `loglik.fit("vae", "photos/")`. Class subfolders become labels.
# On the command line `loglik compare photos/` trains every family and writes a page.

# %% [markdown] tags=["zh"]
# `loglik.fit("classifier", "digits")` 直接学习 $p(y \mid x)$，并在验证集上校准。
#
# ## 你自己的图像
#
# 把 `"digits"` 换成图像文件夹即可：`loglik.fit("vae", "photos/")`。各类的子文件夹名成为标签。
# 在命令行中，`loglik compare photos/` 会训练每一族模型，并写出一个结果页面。
