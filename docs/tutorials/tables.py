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
# # Tables
#
# A density of rows answers many questions with one model: how likely is a row, which rows are wrong, what stood in a
# gap. The table has 442 patients with diabetes and comes with scikit-learn.

# %% [markdown] tags=["zh"]
# # 表格
#
# 有了行的概率密度，一个模型可以回答许多问题：一行的可能性有多大，哪些行有错，缺失处原来是什么值。
# 这里的表格是 442 位糖尿病患者的数据，随 scikit-learn 提供。

# %%
import matplotlib.pyplot as plt
import numpy as np
import polars as pl
import torch
from sklearn.datasets import load_diabetes

import loglik

STEPS = 600  # of training, for each model
DRAWS = 20  # of each missing value
torch.manual_seed(0)

diabetes = load_diabetes(scaled=False)
frame = pl.DataFrame(
    {name: diabetes.data[:, d] for d, name in enumerate(diabetes.feature_names)}
)
frame = frame.with_columns(progression=diabetes.target)
integers = [
    name for name in frame.columns if (frame[name] == frame[name].floor()).all()
]
frame = frame.with_columns(pl.col(integers).cast(pl.Int64))
frame.write_csv("patients.csv")

data = loglik.data.load("patients.csv")
print(data.describe())
print(", ".join(f"{column.name}: {column.type}" for column in data.spec.columns))

# %% [markdown]
# Each column is modelled by its kind. An integer has a probability, a real number has a density in its own unit, and
# their logarithms are summed. All models here are over the same kinds, so their numbers are comparable.
#
# ## Train and compare
#
# `independent` models each column alone. What another model gains over it comes from dependence between columns.

# %% [markdown] tags=["zh"]
# 每列按其类型建模：整数有概率，实数有以自身单位计的密度，取对数后相加。这里所有模型的列类型相同，所以得分可以比较。
#
# ## 训练与比较
#
# `independent` 对每一列单独建模。其他模型比它多得的部分，来自列与列之间的依赖关系。

# %% en="Nats per row gained over independent columns, with the standard error of the paired differences." zh="每行比各列独立多得的 nat 数，以及配对差的标准误差。"
runs = {
    name: loglik.fit(name, "patients.csv", max_steps=STEPS, progress=False)
    for name in ("independent", "vae", "flow")
}
test = data.test.x
with torch.no_grad():
    scores = {
        name: run.density.log_prob(test, samples=64) for name, run in runs.items()
    }
gains = {
    name: (score - scores["independent"]).numpy()
    for name, score in scores.items()
    if name != "independent"
}
for name, score in scores.items():
    print(
        f"{name:12} {score.mean():7.2f} nats per row, {runs[name].density.bound.value}"
    )

_, axis = plt.subplots(figsize=(5.6, 1.8))
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
# The flow gains most here because it finds that one column is nearly a function of two others: s4 is the ratio of s1
# to s3, total cholesterol by HDL.
#
# ## Rows that could exist
#
# Samples are rows in the units of the table; integers stay integers.

# %% [markdown] tags=["zh"]
# 流模型在这里得分最高，因为它发现有一列几乎是另外两列的函数：s4 是 s1 与 s3 之比，即总胆固醇除以 HDL。
#
# ## 可能存在的行
#
# 样本是以表格单位表示的行；整数列仍是整数。

# %% en="s4 against the ratio s1 / s3: patients, rows of the flow, rows of the independent model." zh="s4 与 s1 / s3 的关系：患者数据、流模型的样本、各列独立的样本。"
names = frame.columns
s1, s3, s4 = (names.index(name) for name in ("s1", "s3", "s4"))
rows = {
    "patients": data.split("all").x.numpy(),
    "flow": runs["flow"].density.sample(442).numpy(),
    "independent": runs["independent"].density.sample(442).numpy(),
}
_, axes = plt.subplots(1, 3, figsize=(5.6, 2.4), sharex=True, sharey=True)
for axis, (name, sample) in zip(axes, rows.items(), strict=True):
    axis.scatter(sample[:, s1] / sample[:, s3], sample[:, s4], s=3, alpha=0.5)
    axis.set(title=name, xlabel="s1 / s3", xlim=(0, 10), ylim=(0, 10))
axes[0].set_ylabel("s4")
plt.show()

print(*(f"{name:>11}" for name in names[:6]))
for row in runs["flow"].density.sample(3):
    print(*(f"{value:11.4g}" for value in row[:6].tolist()))

# %% [markdown]
# ## Fill gaps
#
# `fill` draws missing values from $p(\text{missing} \mid \text{observed})$. A draw is a value and no mean: the spread of
# several draws says how uncertain the value is. Two columns are hidden in turn: s4, which the rest of the row
# determines, and the progression of the disease, which it does not.

# %% [markdown] tags=["zh"]
# ## 填补缺失值
#
# `fill` 从 $p(\text{missing} \mid \text{observed})$（已观测条件下缺失值的分布）中抽样。抽到的是一个值，不是平均值；
# 多次抽样的离散程度反映这个值有多不确定。下面依次遮住两列：s4，由同一行的其余列决定；病情进展，则不能由它们决定。

# %% en="Hidden values of the test split against the mean and standard deviation of draws." zh="测试集中被遮住的值，与多次抽样的均值和标准差。"
_, axes = plt.subplots(1, 2, figsize=(5.6, 2.9))
for axis, name in zip(axes, ("s4", "progression"), strict=True):
    column = names.index(name)
    missing = torch.zeros(test.shape, dtype=torch.bool)
    missing[:, column] = True
    draws = torch.stack(
        [
            loglik.fill(runs["flow"].density, test, missing)[:, column]
            for _ in range(DRAWS)
        ]
    )
    truth, draws = test[:, column].numpy(), draws.numpy()
    axis.errorbar(
        truth,
        draws.mean(0),
        draws.std(0),
        fmt="o",
        markersize=3,
        elinewidth=0.7,
        alpha=0.7,
    )
    axis.axline(
        (truth.mean(), truth.mean()), slope=1, color="gray", linestyle="--", linewidth=1
    )
    axis.set(
        title=name,
        xlabel="hidden value",
        ylabel="mean of draws" if name == "s4" else None,
    )
    inside = (abs(draws.mean(0) - truth) < 2 * draws.std(0)).mean()
    print(
        f"{name}: {inside:.0%} of the hidden values are within two standard deviations of the draws' mean"
    )
plt.show()

# %% [markdown]
# On the command line `loglik fill RUN TABLE` does the same for a file with empty cells.
#
# ## Find rows that are wrong
#
# Now s4 is exchanged between the patients of the test split. Each value by itself is as usual as before, so independent
# columns see nothing. The joint density sees it. The last bar on the left holds all lower values.

# %% [markdown] tags=["zh"]
# 在命令行中，`loglik fill RUN TABLE` 对有空格子的文件做同样的事。
#
# ## 找出错误的行
#
# 现在把测试集中各位患者的 s4 互相调换。每个值单独看都与原来一样正常，所以各列独立的模型看不出问题，联合密度看得出。
# 图中最左边的柱包含所有更低的值。

# %% en="Log-likelihoods of rows as they were and with s4 exchanged, under the flow." zh="原有的行与 s4 被调换的行在流模型下的对数似然。"
wrong = test.clone()
wrong[:, s4] = test[
    torch.randperm(len(test), generator=torch.Generator().manual_seed(0)), s4
]
with torch.no_grad():
    for name, run in runs.items():
        before, after = (
            run.density.log_prob(rows, samples=64) for rows in (test, wrong)
        )
        found = (before[:, None] > after).double().mean()
        print(
            f"{name:12} ranks a row as it was above an exchanged one in {found:.0%} of all pairs"
        )
_, axis = plt.subplots(figsize=(5.6, 2.4))
edges = np.linspace(max(after.min().item(), -100), before.max().item(), 30)
axis.hist(before.numpy(), edges, alpha=0.7, label="as they were")
axis.hist(after.numpy().clip(min=edges[0]), edges, alpha=0.7, label="s4 exchanged")
axis.set(xlabel="log p(row), nats", ylabel="rows")
axis.legend()
plt.show()

# %% [markdown]
# `loglik evaluate RUN new.csv --per-row scores.csv` writes such a number for each row, with its standard error.
#
# ## Your table
#
# Put its path in the place of `"patients.csv"`: CSV, Parquet, Feather or JSON. With `label="income"` a column is the
# label, and `conditional=True` learns $p(\text{row} \mid \text{label})$.

# %% [markdown] tags=["zh"]
# `loglik evaluate RUN new.csv --per-row scores.csv` 为每一行写出这样一个数及其标准误差。
#
# ## 你自己的表格
#
# 把 `"patients.csv"` 换成它的路径即可：CSV、Parquet、Feather 或 JSON。用 `label="income"` 指定标签列；
# 设 `conditional=True`，模型学习 $p(\text{row} \mid \text{label})$，即给定标签时行的分布。
