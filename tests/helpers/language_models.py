"""Tiny language models and tokenizers of transformers, with random weights."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import nn

END = "<|endoftext|>"
TEXT = "".join(f"The {i}th cat sat on a mat \N{EN DASH} naïve, and {i * i} dogs slept.\n" for i in range(60))


def tokenizer(size: int = 300, **special: str) -> Any:
    """A byte-level tokenizer, as GPT-2 has."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    pairs = Tokenizer(models.BPE())
    pairs.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    pairs.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=size, special_tokens=[END], initial_alphabet=alphabet, show_progress=False)
    pairs.train_from_iterator([TEXT], trainer)
    return PreTrainedTokenizerFast(tokenizer_object=pairs, **(special or {"bos_token": END, "eos_token": END}))


def with_space(lower: bool = False) -> Any:
    """A tokenizer that writes a space before a text, as Llama's does, and lower case where `lower`."""
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    pairs = Tokenizer(models.BPE(unk_token="<unk>"))
    if lower:
        pairs.normalizer = normalizers.Lowercase()
    pairs.pre_tokenizer = pre_tokenizers.Metaspace(replacement="\u2581", prepend_scheme="always")
    pairs.decoder = decoders.Metaspace(replacement="\u2581", prepend_scheme="always")
    trainer = trainers.BpeTrainer(vocab_size=200, special_tokens=["<unk>", "<s>", "</s>"], show_progress=False)
    pairs.train_from_iterator([TEXT], trainer)
    return PreTrainedTokenizerFast(tokenizer_object=pairs, bos_token="<s>", eos_token="</s>", unk_token="<unk>")


def gpt2(levels: int = 300, window: int = 16, **kwargs: Any) -> nn.Module:
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    sizes = {"n_positions": window, "n_embd": 16, "n_layer": 2, "n_head": 2, "initializer_range": 0.3}
    ends = {"bos_token_id": 0, "eos_token_id": 0}
    return GPT2LMHeadModel(GPT2Config(vocab_size=levels, **sizes, **ends, **kwargs)).eval()


def llama(levels: int = 300, window: int = 16, kind: str = "Llama") -> nn.Module:
    import transformers

    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = getattr(transformers, f"{kind}Config")(
        vocab_size=levels, max_position_embeddings=window, num_key_value_heads=1, initializer_range=0.3, **sizes
    )
    return getattr(transformers, f"{kind}ForCausalLM")(config).eval()


class Bigram(nn.Module):
    """p(x_t | x_{t-1}) from a table, called as a model of transformers is."""

    def __init__(self, table: torch.Tensor) -> None:
        super().__init__()
        self.register_buffer("table", table)
        self.scale = nn.Parameter(torch.ones((), dtype=table.dtype))

    def forward(self, input_ids: torch.Tensor, **kwargs: Any) -> SimpleNamespace:
        return SimpleNamespace(logits=self.table[input_ids] * self.scale)


def saved(folder: Path, model: Any, words: Any) -> Path:
    model.save_pretrained(folder)
    words.save_pretrained(folder)
    return folder
