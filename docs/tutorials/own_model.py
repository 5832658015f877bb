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
# # A model of your own
#
# A network of yours becomes a part of a density that loglik has. A density of yours is a class with two methods, and is
# then trained, evaluated, verified, compared and composed like every other.

# %% [markdown] tags=["zh"]
# # 自己的模型
#
# 你的网络可以成为 loglik 某个密度的一部分。你自己的密度只是一个有两个方法的类；写好之后，
# 就能像其他密度一样训练、评估、验证、比较和组合。

# %%
import math

import matplotlib.pyplot as plt
import numpy as np
import torch
from sklearn.datasets import load_breast_cancer
from torch import nn

import loglik
from loglik import VAE, Density, Flow
from loglik.flows import nsf
from loglik.transforms import Standardise
from loglik.vae import Categorical
from loglik.verification import Finding, check

torch.manual_seed(0)
STEPS = 1000  # of training, for each model

# %% [markdown]
# ## Your network
#
# Any module with the right shapes fits. The encoder of a VAE maps images, shifted and scaled to order one, to a mean and
# a log-scale for each latent; the decoder maps latents to the parameters of the observation model, here 17 logits for
# each of 64 pixels.

# %% [markdown] tags=["zh"]
# ## 自己的网络
#
# 形状合适的任何模块都可以。VAE 的编码器读入平移缩放到单位量级的图像，输出每个隐变量的均值和对数标准差；
# 解码器由隐变量给出观测模型的参数，这里是 64 个像素各 17 个 logit。

# %%
LATENT = 8
encoder = nn.Sequential(
    nn.Conv2d(1, 32, 3, padding=1),
    nn.GELU(),
    nn.Conv2d(32, 64, 3, stride=2, padding=1),
    nn.GELU(),
    nn.Flatten(),
    nn.Linear(64 * 4 * 4, 2 * LATENT),
)
decoder = nn.Sequential(nn.Linear(LATENT, 256), nn.GELU(), nn.Linear(256, 64 * 17))
vae = VAE(encoder, decoder, Categorical((1, 8, 8), levels=17), latent=LATENT)
run = loglik.fit(vae, "digits", max_steps=STEPS // 4, progress=False)
result = loglik.evaluate(run)
print(
    f"{result.nats:.2f} ± {result.stderr:.2f} nats per image, {result.bound}, {result.params:,} parameters"
)

# %% [markdown]
# ## Your density
#
# The logarithms of six measurements of tumours have heavier tails than a Gaussian. Student's t has such tails, with the
# degrees of freedom ν as a parameter:
#
# $$
# \begin{aligned}
# \log p(x) = {} & \log \Gamma\left(\tfrac{\nu + D}{2}\right) - \log \Gamma\left(\tfrac{\nu}{2}\right)
# - \tfrac{D}{2} \log (\nu \pi) - \sum_d \log L_{dd} \\
# & - \tfrac{\nu + D}{2} \log \left(1 + \tfrac{\|z\|^2}{\nu}\right), \quad z = L^{-1}(x - m)
# \end{aligned}
# $$
#
# `log_prob` and `sample` make it a density. `initialise`, which is optional, sets parameters from the training data
# before the first step. `event_shape` is the shape of one example, and `bound` is exact unless the class says otherwise.

# %% [markdown] tags=["zh"]
# ## 自己的密度
#
# 肿瘤六项测量值取对数后，尾部比高斯分布重。学生 t 分布有这样的尾部，自由度 ν 是它的参数：
#
# $$
# \begin{aligned}
# \log p(x) = {} & \log \Gamma\left(\tfrac{\nu + D}{2}\right) - \log \Gamma\left(\tfrac{\nu}{2}\right)
# - \tfrac{D}{2} \log (\nu \pi) - \sum_d \log L_{dd} \\
# & - \tfrac{\nu + D}{2} \log \left(1 + \tfrac{\|z\|^2}{\nu}\right), \quad z = L^{-1}(x - m)
# \end{aligned}
# $$
#
# 有 `log_prob` 和 `sample`，就是一个密度。可选的 `initialise` 在第一步之前用训练数据设定参数。
# `event_shape` 是一个样本的形状；除非类中另有说明，`bound` 为精确。


# %%
class StudentT(Density):
    """A multivariate Student t with location m, scale L and ν degrees of freedom."""

    def __init__(self, dims):
        super().__init__()
        self.event_shape = (dims,)
        self.location = nn.Parameter(torch.zeros(dims))
        self.log_diagonal = nn.Parameter(torch.zeros(dims))
        self.below = nn.Parameter(torch.zeros(dims, dims))
        self.log_dof = nn.Parameter(torch.tensor(math.log(10)))

    def scale(self):
        return self.below.tril(-1) + self.log_diagonal.exp().diag()

    def log_prob(self, x, context=None, *, samples=1):
        dims, dof = self.event_shape[0], self.log_dof.exp()
        z = torch.linalg.solve_triangular(
            self.scale(), (x - self.location).T, upper=False
        )
        constant = (
            torch.lgamma((dof + dims) / 2)
            - torch.lgamma(dof / 2)
            - dims / 2 * torch.log(dof * math.pi)
        )
        return (
            constant
            - self.log_diagonal.sum()
            - (dof + dims) / 2 * torch.log1p(z.square().sum(0) / dof)
        )

    def sample(self, n, context=None):
        normal = torch.randn(n, *self.event_shape)
        chi2 = torch.distributions.Chi2(self.log_dof.exp()).sample((n, 1))
        return (
            self.location + normal * (self.log_dof.exp() / chi2).sqrt() @ self.scale().T
        )

    def initialise(self, x, context=None):
        self.location.data = x.median(0).values


cancer = load_breast_cancer()
columns = [10, 11, 13, 14, 15, 18]
x = np.log(cancer.data[:, columns])
print(x.shape, ", ".join(cancer.feature_names[columns]))


def standardised(base, *transforms):
    """Return a base density behind the standardisation of the columns, and more transforms."""
    return Flow([Standardise((6,)), *transforms], base)


student = standardised(StudentT(6))
run = loglik.fit(student, x, max_steps=STEPS, learning_rate=1e-2, progress=False)
result = loglik.evaluate(student, run.data_for(x).split("test").x)
print(
    f"{result.nats:.3f} ± {result.stderr:.3f} nats per row, {student.base.log_dof.exp():.2f} degrees of freedom"
)

# %% [markdown]
# ## Verify it
#
# A likelihood that lacks a constant trains as well as a right one, and looks better in a table. `verify` tests the
# statements that hold of any density: it is normalised, its samples and its likelihood agree, units are counted.

# %% [markdown] tags=["zh"]
# ## 验证
#
# 漏掉一个常数的似然，训练起来和正确的一样顺利，在表格里还更好看。`verify` 检验任何密度都应满足的命题：
# 归一化；样本与似然一致；单位被计入。


# %%
def table(verification):
    """Print the statements that apply to a model."""
    for row in verification.rows:
        if row.outcome != "does not apply":
            print(f"{row.check.name:20} {row.outcome:9} {row.check.says}")


table(loglik.verify(run, x))


# %%
class Forgetful(StudentT):
    """Student's t without the log-determinant of its scale."""

    def log_prob(self, x, context=None, *, samples=1):
        return super().log_prob(x) + self.log_diagonal.sum()


wrong = standardised(Forgetful(6))
wrong.load_state_dict(student.state_dict())
verification = loglik.verify(
    wrong, x, only=["normalised", "expected-score", "change-of-units"]
)
for row in verification.failed:
    finding = row.findings[0]
    print(
        f"{row.check.name} fails: {finding.computed} is {finding.value:.3f}, expected {finding.expected}"
    )

# %% [markdown]
# A check of your own is a function with the decorator `check`. The tails of this density fall as a power: along any ray
# $\log p$ changes by $-(\nu + D)$ for each unit of $\log r$.

# %% [markdown] tags=["zh"]
# 加上装饰器 `check` 的函数，就是你自己的检验。这个密度的尾部按幂律下降：沿任一射线，
# $\log r$ 每增加 1，$\log p$ 变化 $-(\nu + D)$。


# %%
@check(
    "student-tail",
    section="My densities",
    statement=r"\frac{d \log p}{d \log r} \to -(\nu + D)",
)
def student_tail(subject):
    """The tails of Student's t fall as a power of the distance."""
    density = subject.part(StudentT).density.double()
    ray = torch.ones(1, 6, dtype=torch.float64)
    slope = (density.log_prob(1e6 * ray) - density.log_prob(1e5 * ray)) / math.log(10)
    density.float()
    return Finding.equal(
        "the slope far out",
        slope.item(),
        -(density.log_dof.exp().item() + 6),
        tolerance=1e-3,
    )


(row,) = loglik.verify(run, x, only="student-tail").rows
print(
    row.check.name,
    row.outcome,
    f"{row.findings[0].value:.4f}",
    row.findings[0].expected,
)

# %% [markdown]
# ## Compare it
#
# Your density competes with recipes on the same test rows. Differences of the same rows have a smaller error than the
# two means have: so compare the mean of the differences with its own standard error.

# %% [markdown] tags=["zh"]
# ## 比较
#
# 你的密度与内置模型在同一批测试数据上比较。逐行之差的误差比两个平均值各自的误差小，所以应当看差的平均值及其标准误差。

# %% en="Nats per row gained over independent columns, with the standard error of the paired differences." zh="每行比各列独立多得的 nat 数，以及配对差的标准误差。"
runs = {"Student t": run}
for name in ("independent", "vae", "flow"):
    runs[name] = loglik.fit(name, x, max_steps=STEPS // 2, progress=False)
runs["flow, Student base"] = loglik.fit(
    standardised(StudentT(6), *nsf(6, layers=2)),
    x,
    max_steps=STEPS // 2,
    progress=False,
)
test = run.data_for(x).split("test").x
with torch.no_grad():
    scores = {
        name: fitted.density.log_prob(test, samples=64) for name, fitted in runs.items()
    }
baseline = scores.pop("independent")
gains = {name: (score - baseline).numpy() for name, score in scores.items()}
for name, gain in gains.items():
    print(
        f"{name:20} {gain.mean():6.3f} ± {gain.std() / len(gain) ** 0.5:.3f} nats over independent columns"
    )

_, axis = plt.subplots(figsize=(5.6, 2.2))
errors = [gain.std() / len(gain) ** 0.5 for gain in gains.values()]
axis.barh(
    list(gains),
    [gain.mean() for gain in gains.values()],
    xerr=errors,
    ecolor="gray",
    capsize=4,
)
axis.set_xlabel("nats gained over independent columns")
plt.show()

# %% [markdown]
# The last one is a flow whose base is the density of this page. On the 57 rows of the test split the errors are large:
# differences of the size of one error say nothing.
#
# A run of your own density is written with `out=` and read with the class at hand: `loglik.load(path, density=...)`.

# %% [markdown] tags=["zh"]
# 最后一个是以本页的密度为基分布的流模型。测试集只有 57 行，误差很大：与误差同样大小的差别不说明任何问题。
#
# 自己的密度用 `out=` 写到磁盘，读取时把类的实例交给 `loglik.load(path, density=...)`。

# %%
loglik.fit(
    standardised(StudentT(6)),
    x,
    out="runs/student",
    max_steps=STEPS // 4,
    progress=False,
)
again = loglik.load("runs/student", density=standardised(StudentT(6)))
print(
    again.model,
    again.steps,
    "steps,",
    f"{again.density.log_prob(test).mean():.3f} nats per row",
)
