"""Models of transformers: causal language models as densities over texts, and classifiers of images and texts."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from loglik.adapters.hf_folder import load_pretrained, load_tokenizer, quiet, read_json
from loglik.adapters.hf_tokenizer import PretrainedTokenizer
from loglik.adapters.language_model import LanguageModel, read_tokens
from loglik.data.limits import first_line, quote
from loglik.data.spec import DataSpec
from loglik.density import evaluation_mode
from loglik.runs import Run

__all__ = ["from_transformers", "load"]

DEFAULT_WINDOW = 2048  # of a model without a longest text
FEW = 128  # tokens that a tokenizer may lack
READ = ("ForCausalLM", "LMHeadModel", "ForImageClassification", "ForSequenceClassification")
UNLIMITED = 10**9  # of a tokenizer that knows no longest text


def from_transformers(
    model: nn.Module,
    tokenizer: Any,
    *,
    window: int | None = None,
    stride: int | None = None,
    prefix: int | str = "auto",
    rows: bool = False,
    lossy: bool = False,
) -> LanguageModel:
    """Return a causal language model of transformers as a density over texts in its tokens.

    `loglik.evaluate(density, "text.txt")` gives nats per token and bits/byte, and `density.text_log_probs(texts)` the
    log-probability of each token.

    Args:
        model: such as `GPT2LMHeadModel`; it is used as it is, in evaluation mode where it is scored.
        tokenizer: the model's own.
        window: L, at most the model's longest text, which is the default.
        stride: how far apart the windows of a longer text begin: L, side by side, if None.
        prefix: the token that each text is given before it: `auto` for that of the beginning of a text or else of its
            end, `none` to leave each first token out of the score, or a token or its id.
        rows: each line of a text file, each file of a folder and each row of a table with one column is a text of its
            own; otherwise a file or folder is one text.
        lossy: score texts that the tokenizer changes, as what they are changed to.

    Raises ValueError for a model that is not causal, a tokenizer that does not fit it, and a window that is too long.
    """
    levels = _check_causal(model)
    if (size := getattr(tokenizer, "vocab_size", 0)) > levels:
        raise ValueError(
            f"the tokenizer has {size:,} tokens, and the model has logits of {levels:,}: they do not belong together"
        )
    longest = _longest(model, tokenizer)
    if window is not None and not 1 <= window <= (longest or window):
        raise ValueError(f"window must be from 1 to the model's {longest} tokens, got {window}")
    window = window or longest or DEFAULT_WINDOW
    first = _prefix(tokenizer, prefix, levels)
    spec = DataSpec(
        kind="text",
        event_shape=(window,),
        levels=levels + rows,
        tokenizer=PretrainedTokenizer(tokenizer, levels, lossy=lossy),
        padded=rows,
    )
    notes = _notes(tokenizer, window, stride or window, first, rows, lossy)
    if len(tokenizer) < levels - max(FEW, levels // 10):  # tables of embeddings are padded by less
        notes += (f"the tokenizer has {len(tokenizer):,} of the model's {levels:,} tokens: it may be another model's",)
    return LanguageModel(model, spec, window=window, stride=stride, prefix=first, notes=notes)


def load(
    path: Path,
    spec: DataSpec | None = None,
    *,
    tokenizer: str | None = None,
    window: int | None = None,
    stride: int | None = None,
    prefix: int | str = "auto",
    rows: bool | None = None,
    lossy: bool = False,
    outputs: str | None = None,
) -> Run:
    """Read a model of transformers from a local folder: a causal language model, or a classifier of images or texts.

    Args:
        path: what `save_pretrained` wrote, the tokenizer beside the model.
        spec: of the data; a table with one column of text makes each row a text of its own.
        tokenizer: the folder of the tokenizer of texts, if it is another.
        window, stride, prefix, rows, lossy: see `from_transformers`; of a language model.
        outputs: see `classifier`; of a classifier.

    Raises ValueError for models of another kind, pickled weights, and a tokenizer that does not fit.
    """
    kind = _architecture(path)
    if kind.endswith("ForImageClassification"):
        from loglik.adapters.classifiers import load_images

        return load_images(path, spec, outputs=outputs)
    if kind.endswith("ForSequenceClassification"):
        from loglik.adapters.text_classifier import load_texts

        return load_texts(path, spec, tokenizer=tokenizer, outputs=outputs)
    from transformers import AutoModelForCausalLM

    own = load_tokenizer(path, tokenizer)
    model = load_pretrained(AutoModelForCausalLM, path)
    if spec is not None and spec.kind not in ("text", "table"):
        raise ValueError(f"{path}: a language model reads text, and the data are {spec.describe()}")
    padded = spec is not None and (spec.padded or spec.kind == "table")
    try:
        density = from_transformers(
            model, own, window=window, stride=stride, prefix=prefix, rows=padded if rows is None else rows, lossy=lossy
        )
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    if spec is not None and density.data_spec.padded:  # a table's column beside the texts
        density.data_spec = replace(density.data_spec, label=spec.label, classes=spec.classes)
    return Run(density, density.data_spec, {})


def _architecture(path: Path) -> str:
    """Return the class of a model's configuration, if it is one that has a likelihood here."""
    config = read_json(path, "config.json")
    kind = next(iter(config.get("architectures") or ()), "")
    if config.get("is_encoder_decoder"):
        raise ValueError(
            f"{path}: {kind or 'the model'} is a sequence-to-sequence model, p(text | source): only causal language "
            "models and classifiers are read"
        )
    if not kind.endswith(READ):
        raise ValueError(
            f"{path}: {kind or 'a model without architectures in its config.json'} is neither a causal language model "
            "(...ForCausalLM, ...LMHeadModel) nor a classifier (...ForImageClassification, "
            "...ForSequenceClassification)"
        )
    return str(kind)


@torch.no_grad()
def _check_causal(model: nn.Module) -> int:
    """Return the number of a model's logits; raise ValueError unless they do not depend on later tokens."""
    name = type(model).__name__
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    inputs = torch.arange(1, 9, device=device).repeat(2, 1)
    inputs[1, -1] = 0
    with evaluation_mode(model), quiet():
        try:
            logits = read_tokens(model, inputs, use_cache=False).logits
        except (AttributeError, TypeError, ValueError, IndexError) as error:
            raise ValueError(
                f"{name} is not called as a causal language model is ({first_line(error)}): pass one, such as "
                "GPT2LMHeadModel"
            ) from error
    if logits.dim() != 3 or logits.shape[:2] != inputs.shape:
        raise ValueError(
            f"{name} returns logits of shape {tuple(logits.shape)} for {tuple(inputs.shape)} tokens: it is no language "
            "model"
        )
    change = (logits[0, :-1] - logits[1, :-1]).abs().max()
    if change > 16 * torch.finfo(logits.dtype).eps * logits.abs().max():
        raise ValueError(
            f"{name} is not causal: its logits depend on later tokens, as those of a masked language model, which has "
            "no p(x_t | x_<t)"
        )
    return logits.shape[-1]


def _longest(model: nn.Module, tokenizer: Any) -> int | None:
    """Return the most tokens that a model reads at once; None where nothing says it."""
    config = getattr(model, "config", None)
    config = getattr(config, "text_config", None) or config
    found = [getattr(config, name, None) for name in ("n_positions", "max_position_embeddings", "n_ctx")]
    limit = getattr(tokenizer, "model_max_length", None)
    found.append(limit if limit is not None and limit < UNLIMITED else None)
    return next((int(value) for value in found if value is not None), None)


def _prefix(tokenizer: Any, prefix: int | str, levels: int) -> int | None:
    """Return the token before a text.

    Raises ValueError for a token that there is not.
    """
    if prefix is None or prefix == "none":
        return None
    if prefix == "auto":
        token = tokenizer.bos_token_id
        token = tokenizer.eos_token_id if token is None else token
    else:
        token = prefix if isinstance(prefix, int) else tokenizer.get_vocab().get(prefix)
        if token is None:
            raise ValueError(
                f"prefix={quote(prefix)} is no token of the tokenizer: use auto, none, a token or its number"
            )
    if token is not None and not 0 <= token < levels:
        raise ValueError(
            f"the token before a text, {token}, is not among the model's {levels} tokens: pass prefix=none, or a token"
        )
    return token


def _notes(tokenizer: Any, window: int, stride: int, prefix: int | None, rows: bool, lossy: bool) -> tuple[str, ...]:
    """Return the conventions of a number, as one line each."""
    first = "the first token of a text is not scored"
    if prefix is not None:
        first = f"each text is given {tokenizer.convert_ids_to_tokens(prefix)!r} before it, which is not scored"
    how = "side by side, each given the token before it" if stride == window else f"one every {stride} tokens"
    found = [f"{first}; no special tokens are added, and the end of a text is not scored",
             f"windows of {window} tokens {how}, and one that ends with the text"]  # fmt: skip
    return tuple(found + ["a text that the tokenizer changes is scored as what it is changed to"] * lossy)
