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
# # Composing densities
#
# Every model of loglik is a `Density`, and takes others as its parts: the base of a flow, the prior of a VAE. What is
# composed is a density again, and sums to one. This page composes three densities over the same data, and checks it.

# %% [markdown] tags=["zh"]
# # 组合概率密度
#
# loglik 的每个模型都是一个 `Density`，并且可以把别的密度当作零件：流模型的基分布、VAE 的先验。
# 组合的结果仍是概率密度，总和为一。本页在同一份数据上组合三种密度，并加以检验。

# %%
import itertools
import math

import matplotlib.pyplot as plt
import numpy as np
import torch

import loglik
from loglik import VAE, Autoregressive, Diffusion, Flow, StandardNormal
from loglik.diffusion import Denoiser
from loglik.flows import nsf
from loglik.networks import MLP, CausalTransformer, ResidualMLP
from loglik.transforms import Scale, Standardise
from loglik.vae import Gaussian, KLWeighting

torch.manual_seed(0)
STEPS = 1000  # of training, for each model

# %% [markdown]
# ## Data with a scale
#
# The points lie along a spiral. Their two columns differ in scale by a factor of 10,000, as columns of real tables do.

# %% [markdown] tags=["zh"]
# ## 尺度悬殊的数据
#
# 数据点沿一条螺旋线分布。两列的尺度相差一万倍，真实表格的各列往往如此。

# %% en="A spiral, in units that differ by a factor of 10,000." zh="一条螺旋线，两个坐标的单位相差一万倍。"
rng = np.random.default_rng(0)
t = 3 * np.pi * np.sqrt(rng.uniform(0.1, 1, 3000))
spiral = np.stack([t * np.cos(t), t * np.sin(t)], 1) / 4 + 0.12 * rng.normal(
    size=(3000, 2)
)
x = torch.tensor(spiral * [0.01, 100], dtype=torch.float32)

_, axis = plt.subplots(figsize=(4, 3.3))
axis.scatter(*x.T.numpy(), s=2, alpha=0.4)
axis.set(xlabel="first column", ylabel="second column")
plt.show()

# %% [markdown]
# ## Transforms before any base
#
# `Standardise` maps each column to mean 0 and standard deviation 1. A flow counts its log-determinant, so log-densities
# stay in the units of the data, whatever the base is:
#
# $$
# \log p(x) = \log p_0(z) - \sum_d \log s_d, \quad z_d = \frac{x_d - m_d}{s_d}
# $$
#
# The base may be a VAE. And the prior of that VAE may be any density over its latents: a normal, a flow, a diffusion.
# A diffusion over latents is a latent diffusion model, here trained by one bound, with encoder and decoder. The weight
# of the KL rises during the first quarter of the training: at full weight from the start, an encoder may leave a latent
# unused.

# %% [markdown] tags=["zh"]
# ## 变换可以放在任何基分布之前
#
# `Standardise` 把每一列变为均值 0、标准差 1。流模型计入它的对数行列式，所以无论基分布是什么，对数密度都保持数据的单位：
#
# $$
# \log p(x) = \log p_0(z) - \sum_d \log s_d, \quad z_d = \frac{x_d - m_d}{s_d}
# $$
#
# 基分布可以是 VAE，而这个 VAE 的先验又可以是隐变量上的任何密度：正态分布、流模型、扩散模型。
# 以扩散模型为先验，就是隐扩散模型（latent diffusion）；在这里，它与编码器、解码器由同一个下界一起训练。
# KL 项的权重在训练的前四分之一逐渐升到 1：若一开始就是 1，编码器可能闲置一个隐变量。


# %%
def vae(prior):
    """Return a VAE over two standardised columns, with a prior over its latents."""
    encoder, decoder = MLP(2, 2 * 2, (128, 128)), MLP(2, 2 * 2, (128, 128))
    warmup = KLWeighting(warmup=STEPS // 4)
    model = VAE(encoder, decoder, Gaussian((2,)), prior, objective=warmup)
    return Flow([Standardise((2,))], base=model)


def latent_diffusion():
    """Return a diffusion over two latents."""
    network = ResidualMLP(2, 2, width=64, depth=2, context=16)
    return Diffusion(Denoiser(network, features=16, event_shape=(2,)), (2,))


densities = {
    "VAE": vae(StandardNormal((2,))),
    "VAE, flow prior": vae(Flow(nsf(2, layers=2), StandardNormal((2,)))),
    "VAE, diffusion prior": vae(latent_diffusion()),
    "flow": Flow([Standardise((2,)), *nsf(2, layers=4)], StandardNormal((2,))),
}
runs = {}
for name, density in densities.items():
    runs[name] = loglik.fit(
        density, x, max_steps=STEPS, learning_rate=5e-3, progress=False
    )
    result = loglik.evaluate(
        density, runs[name].data_for(x).split("test").x, samples=32
    )
    print(f"{name:21} {result.nats:6.3f} ± {result.stderr:.3f} nats  {result.bound}")

# %% [markdown]
# The bound of a composition is the weakest bound of its parts. The terms of a bound keep their names through all
# levels, and sum to `log_prob` of the same draws.

# %% [markdown] tags=["zh"]
# 组合的界是其各部分中最弱的一种。下界的各项穿过每一层组合仍保留名称，它们的和就是用同一批随机数算出的 `log_prob`。

# %%
density = densities["VAE, flow prior"]
with torch.no_grad():
    torch.manual_seed(1)
    total = density.log_prob(x[:1000]).mean()
    torch.manual_seed(1)
    terms = {term: values.mean() for term, values in density.terms(x[:1000]).items()}
for term, value in terms.items():
    print(f"{term:18} {value:8.3f}")
print(f"{'sum':18} {sum(terms.values()):8.3f}\n{'log_prob':18} {total:8.3f}")
assert abs(sum(terms.values()) - total) < 1e-2

# %% en="Samples of each density, in the units of the data." zh="各密度的样本，单位与数据相同。"
_, axes = plt.subplots(2, 2, figsize=(5.6, 4.6), sharex=True, sharey=True)
for axis, (name, density) in zip(axes.flat, densities.items(), strict=True):
    axis.scatter(*density.sample(2000).T.numpy(), s=2, alpha=0.4)
    axis.set_title(name, fontsize=11)
    axis.set(xlim=(-0.035, 0.035), ylim=(-350, 350))
plt.show()

# %% [markdown]
# ## Does it sum to one?
#
# A density integrates to 1. In two dimensions a sum over a grid shows it. A bound is no exception, if it is read right:
# the exponential of a VAE's `log_prob` is an importance weight $w$ with $\mathbb{E}[w] = p(x)$. So
#
# $$
# \int e^{\log p(x)}\,dx = 1 , \qquad \mathbb{E} \int w(x)\,dx = 1 , \qquad \int e^{\text{ELBO}(x)}\,dx \le 1 .
# $$
#
# The three are of an exact density, of importance weights, and of the ELBO. A diffusion's draws are no importance
# weights: with such a prior the integral is below 1, as that of the ELBO is.

# %% [markdown] tags=["zh"]
# ## 总和是一吗？
#
# 概率密度的积分为 1。在二维，对网格求和即可看到。下界也不例外，只要读法正确：
# VAE 的 `log_prob` 取指数，是满足 $\mathbb{E}[w] = p(x)$ 的重要性权重 $w$。于是
#
# $$
# \int e^{\log p(x)}\,dx = 1 , \qquad \mathbb{E} \int w(x)\,dx = 1 , \qquad \int e^{\text{ELBO}(x)}\,dx \le 1 .
# $$
#
# 三种情形依次是：精确的密度、重要性权重、ELBO。扩散模型的抽样不是重要性权重：以它为先验时，积分与 ELBO 一样小于 1。

# %% en="log p(x) on the grid, and the integral of the density." zh="网格上的 log p(x)，以及密度的积分。"
first, second = torch.linspace(-0.045, 0.045, 90), torch.linspace(-450, 450, 90)
grid = torch.stack(torch.meshgrid(first, second, indexing="ij"), -1).view(-1, 2)
cell = (first[1] - first[0]) * (second[1] - second[0])
integrals = {}
_, axes = plt.subplots(2, 2, figsize=(5.6, 4.9), sharex=True, sharey=True)
for axis, (name, density) in zip(axes.flat, densities.items(), strict=True):
    with torch.no_grad():
        log_prob = density.log_prob(grid, samples=16)
    integrals[name] = (log_prob.exp().sum() * cell).item()
    extent = (-0.045, 0.045, -450, 450)
    picture = log_prob.clamp(min=-10).view(90, 90).T.numpy()
    axis.imshow(picture, origin="lower", extent=extent, aspect="auto", vmin=-10, vmax=2)
    axis.set_title(f"{name}\n∫ = {integrals[name]:.3f}", fontsize=11)
plt.show()

# %% [markdown]
# Units are counted in the same way. If the data are multiplied by 1,000, each log-density falls by $D \log 1000$, and
# the integral stays 1.

# %% [markdown] tags=["zh"]
# 单位也以同样的方式计入。数据乘以 1000，每个对数密度就减少 $D \log 1000$，而积分仍为 1。

# %%
flow = densities["flow"]
larger = Flow(
    [Scale(1 / 1000)], base=flow
)  # the same density, of data in a thousandth of the unit
with torch.no_grad():
    change = (larger.log_prob(1000 * x[:100]) - flow.log_prob(x[:100])).mean()
print(f"change {change:.4f}, -D log 1000 = {-2 * math.log(1000):.4f}")

# %% [markdown]
# ## Where all events can be listed
#
# Images of 3 × 3 binary pixels are only $2^9 = 512$. Their probabilities are summed one by one, for a network with
# arbitrary weights.

# %% [markdown] tags=["zh"]
# ## 所有事件都能列举时
#
# 3 × 3 的二值图像只有 $2^9 = 512$ 张。网络权重任意，把它们的概率逐一相加：

# %%
pixels = Autoregressive(CausalTransformer(32, 2, 4), (1, 3, 3), levels=2).eval()
torch.nn.init.normal_(pixels.head.weight)
every = torch.tensor(list(itertools.product((0, 1), repeat=9)), dtype=torch.uint8).view(
    -1, 1, 3, 3
)
with torch.no_grad():
    mass = pixels.log_prob(every).exp()
print(
    f"{len(every)} images, from {mass.min():.1e} to {mass.max():.1e}; the sum is {mass.sum():.6f}"
)

# %% [markdown]
# `loglik.verify` does this for any model: `normalised` enumerates where it can, and elsewhere estimates
# $\mathbb{E}_{x \sim p}[q(x) / p(x)] = 1$ with a normalised $q$.

# %% [markdown] tags=["zh"]
# `loglik.verify` 对任何模型都做这样的检验：能列举时就列举（`normalised`），否则取一个归一化的 $q$，
# 估计 $\mathbb{E}_{x \sim p}[q(x) / p(x)] = 1$。

# %%
for name in ("VAE, flow prior", "flow"):
    for row in loglik.verify(
        runs[name], x, only=["normalised", "change-of-units"]
    ).rows:
        for finding in row.findings:
            value = f"{finding.value:.4f}" + (
                f" ± {finding.stderr:.4f}" if finding.stderr else ""
            )
            print(
                f"{name:16} {row.check.name:16} {row.outcome:8} {value:16} {finding.expected}"
            )
