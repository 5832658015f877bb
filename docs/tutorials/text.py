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
# # Text
#
# A Transformer learns a text one token at a time. The text here is made by a rule whose entropy is known, so the page
# can show what a likelihood is worth: how near the model is to the truth, and where it still is not.

# %% [markdown] tags=["zh"]
# # 文本
#
# Transformer 逐个 token 地学习文本。本页的文本由一条规则生成，熵是已知的，因此可以看清似然的意义：
# 模型离真实分布还有多远，差在哪里。

# %%
import math
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import torch

import loglik

STEPS = 300  # of training
LINES = 30_000
torch.manual_seed(0)

rng = np.random.default_rng(0)
a, b = rng.integers(0, 10, (2, LINES))
Path("sums.txt").write_text(
    "".join(f"{i}+{j}={i + j:02}\n" for i, j in zip(a, b, strict=True))
)
print(Path("sums.txt").read_text()[:35])

# %% [markdown]
# Each line has seven characters. Two of them, the digits a and b, are drawn at random; the other five follow from them
# and from the position. So the entropy of a character is
#
# $$
# H = \frac{2 \ln 10}{7} = 0.658 \text{ nats}.
# $$
#
# Maximum likelihood minimises the KL divergence: the mean of $-\log p_\theta$ is $H + \mathrm{KL}(p \,\|\, p_\theta)$.
# No model can have less than H, and one that has H has learned to add.

# %% [markdown] tags=["zh"]
# 每行有七个字符，其中两个数字 a 和 b 是随机抽取的，其余五个由它们和所在位置决定。所以每个字符的熵是
#
# $$
# H = \frac{2 \ln 10}{7} = 0.658 \text{ nats}.
# $$
#
# 最大似然就是最小化 KL 散度：$-\log p_\theta$ 的平均值等于 $H + \mathrm{KL}(p \,\|\, p_\theta)$。
# 任何模型都不可能低于 H；达到 H 的模型，就学会了加法。

# %% [markdown]
# ## Train
#
# A text file is cut by position into training, validation and test data. `window` is the number of tokens that the
# network sees, and `tokenizer` says what a token is: `bytes`, `characters`, or `bpe` for byte pairs learned from the
# text.

# %% [markdown] tags=["zh"]
# ## 训练
#
# 文本文件按位置切分为训练、验证和测试数据。`window` 是网络看到的 token 数；`tokenizer` 决定 token 是什么：
# `bytes`（字节）、`characters`（字符），或 `bpe`（从文本中学到的字节对）。

# %%
run = loglik.fit(
    "autoregressive",
    "sums.txt",
    out="runs/sums",
    tokenizer="characters",
    window=28,
    split="80/10/10",
    width=64,
    depth=2,
    max_steps=STEPS,
    validate_every=STEPS // 10 or 1,
    progress=False,
)
result = loglik.evaluate(run)
entropy = 2 * math.log(10) / 7
print(
    f"{-result.nats:.4f} ± {result.stderr:.4f} nats per character, of which {entropy:.4f} are entropy"
)
print(
    f"{result.bits_per_byte:.4f} bits per byte, perplexity {result.perplexity:.3f}, {result.bound}"
)

# %% en="Nats per character of the validation split while training, and the entropy, below which no model can be." zh="训练过程中验证集上每个字符的 nat 数，以及任何模型都不能低于的熵。"
steps = [row["step"] for row in run.history]
nats = [-row["validation_nats"] / 28 for row in run.history]
_, axis = plt.subplots(figsize=(5.6, 2.8))
axis.plot(steps, nats, marker="o", label="model")
axis.axhline(entropy, linestyle="--", color="C1", label="entropy")
axis.set(xlabel="step", ylabel="nats per character", ylim=(0, None))
axis.legend()
plt.show()

# %% [markdown]
# `evaluate` scores tokens that have at least half a window before them, and comes within a thousandth of the entropy.
# The validation loss counts every token of a window, also the first ones, before which the network cannot know where
# in a line it is. So it stays above.
#
# ## What each character costs
#
# `token_log_probs` gives $\log p(x_t \mid x_{<t})$. In a window of four lines the digits a and b cost $\ln 10 = 2.30$
# nats each, and nothing else costs anything, from the moment on that the network knows where in a line it is.

# %% [markdown] tags=["zh"]
# `evaluate` 只给前面至少有半个窗口的 token 打分，结果与熵相差约千分之一。验证损失则计入窗口中的每个 token，
# 包括最前面的几个，那时网络还无法知道自己在一行的什么位置，所以它停在熵之上。
#
# ## 每个字符的代价
#
# `token_log_probs` 给出 $\log p(x_t \mid x_{<t})$。在四行长的窗口中，数字 a 和 b 各需 $\ln 10 = 2.30$ nat；
# 一旦网络知道自己在一行的什么位置，其余字符就不需要任何代价。

# %% en="Mean cost of each character in a window of four lines; the dashed line is ln 10." zh="四行长的窗口中每个字符的平均代价；虚线为 ln 10。"
windows = run.data_for().split("test").tensor()
with torch.no_grad():
    cost = -run.density.token_log_probs(windows).mean(0).numpy()
_, axis = plt.subplots(figsize=(5.6, 2.8))
axis.bar(range(28), cost, color=["C0" if i % 7 in (0, 2) else "C1" for i in range(28)])
axis.axhline(math.log(10), linestyle="--", color="gray")
axis.set_xticks(range(28), list("a+b=cc↵" * 4))
axis.set_ylabel("nats")
plt.show()

# %% [markdown]
# ## Continue a text

# %% [markdown] tags=["zh"]
# ## 续写

# %%
for prompt in ("3+5=", "9+9=", "7+"):
    print(loglik.continue_text(run, prompt, n=3, length=7 - len(prompt)))

# %% [markdown]
# `temperature`, `top_k` and `top_p` narrow what is drawn. At temperature 0 the most probable token is taken each time.

# %% [markdown] tags=["zh"]
# `temperature`、`top_k` 和 `top_p` 收窄抽样的范围。温度为 0 时，每次都取概率最大的 token。

# %%
print(loglik.continue_text(run, "6+7=13\n", n=1, length=21, temperature=0.0)[0])

# %% [markdown]
# ## Find errors
#
# A wrong sum has a low likelihood, so the model finds it. All hundred sums are scored with the right result, and with
# one that is larger by one.

# %% [markdown] tags=["zh"]
# ## 找出错误
#
# 错误的算式似然很低，模型因此能找到它。下面给全部一百个算式打分：一次用正确结果，一次用大 1 的结果。


# %%
def scores(shift):
    """Return the log-probability of the two digits after =, of every sum with its result shifted."""
    encode = run.spec.tokenizer.encode  # bytes to tokens
    lines = [f"{i}+{j}={i + j + shift:02}\n" for i in range(10) for j in range(10)]
    tokens = torch.stack(
        [torch.as_tensor(encode(("1+1=02\n" * 3 + line).encode())) for line in lines]
    )
    with torch.no_grad():
        return run.density.token_log_probs(tokens)[:, -3:-1].sum(1)


right, wrong = scores(0), scores(1)
print(f"right: mean {right.mean():7.3f} nats, lowest {right.min():7.3f}")
print(f"wrong: mean {wrong.mean():7.3f} nats, highest {wrong.max():7.3f}")
print(f"{(right > wrong).double().mean():.0%} of the sums are told apart")

# %% [markdown]
# ## Your text
#
# Put the path of a file, or of a folder of text, in the place of `"sums.txt"`, and leave out `width`, `depth` and
# `max_steps` in favour of `max_time="10m"`. Numbers of different tokenizers are comparable in bits per byte.

# %% [markdown] tags=["zh"]
# ## 你自己的文本
#
# 把 `"sums.txt"` 换成你的文本文件或文件夹的路径，去掉 `width`、`depth` 和 `max_steps`，改用 `max_time="10m"`。
# 不同分词方式的结果，用每字节比特数就可以比较。
