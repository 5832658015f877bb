"""A small GPT-2 of transformers: bits/byte by `loglik evaluate --from transformers` and by lm-evaluation-harness.

`python benchmarks/language_model.py TEXT [--seconds 240] [--folder DIR]` trains byte-pair encoding of 512 tokens
(tokenizers) and a GPT-2 (transformers) on the first 90 % of a text, saves them, and scores the last 10 % and the whole
text with loglik, and with lm-evaluation-harness's `HFLM.loglikelihood_rolling` where `lm_eval` is installed.
"""

from __future__ import annotations

import argparse
import math
import os
import tempfile
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
END = "<|endoftext|>"
WINDOW, WIDTH, DEPTH, HEADS, BATCH, RATE = 128, 96, 2, 3, 16, 3e-3


def tokenizer_of(text: str) -> Any:
    """Return a byte-level tokenizer of 512 tokens, trained on a text."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    pairs = Tokenizer(models.BPE())
    pairs.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    pairs.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=512, special_tokens=[END], initial_alphabet=alphabet, show_progress=False)
    pairs.train_from_iterator([text], trainer)
    return PreTrainedTokenizerFast(tokenizer_object=pairs, bos_token=END, eos_token=END)


def train(text: str, tokenizer: Any, seconds: float) -> Any:
    """Return a GPT-2 that was trained for a time, at a learning rate that falls to 0."""
    import torch
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    end = tokenizer.eos_token_id
    sizes = {"n_positions": WINDOW, "n_embd": WIDTH, "n_layer": DEPTH, "n_head": HEADS}
    model = GPT2LMHeadModel(GPT2Config(vocab_size=512, bos_token_id=end, eos_token_id=end, **sizes))
    tokens = torch.tensor(tokenizer(text, verbose=False)["input_ids"])
    optimizer = torch.optim.AdamW(model.parameters(), RATE, weight_decay=0.1)
    model.train()
    begin, steps = time.monotonic(), 0
    while (done := (time.monotonic() - begin) / seconds) < 1:
        optimizer.param_groups[0]["lr"] = RATE * min(1, steps / 50) * (1 - done)
        starts = torch.randint(len(tokens) - WINDOW, (BATCH,))
        x = tokens[starts[:, None] + torch.arange(WINDOW)]
        loss = model(input_ids=x, labels=x).loss
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        steps += 1
    print(f"{steps} steps of {BATCH} windows in {seconds:g} s, the last loss {loss.item():.3f} nats/token", flush=True)
    return model.eval()


def harness(folder: Path, text: str) -> float | None:
    """Return the nats of lm-evaluation-harness for a text; None where it is not installed."""
    try:
        from lm_eval.api.instance import Instance
        from lm_eval.models.huggingface import HFLM
    except ImportError:
        return None
    model = HFLM(pretrained=str(folder), device="cpu", batch_size=1)
    request = Instance("loglikelihood_rolling", {}, (text,), 0)
    return float(model.loglikelihood_rolling([request], disable_tqdm=True)[0])


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("text", type=Path)
    parser.add_argument("--seconds", type=float, default=240)
    parser.add_argument("--folder", type=Path)
    args = parser.parse_args()
    from loglik import evaluate
    from loglik.adapters import load

    text = args.text.read_text(encoding="utf-8")
    cut = len(text) * 9 // 10
    with tempfile.TemporaryDirectory() as temporary:
        folder = args.folder or Path(temporary) / "gpt2"
        if not folder.exists():
            tokenizer = tokenizer_of(text[:cut])
            train(text[:cut], tokenizer, args.seconds).save_pretrained(folder)
            tokenizer.save_pretrained(folder)
        run = load("transformers", folder)
        print("| text | bytes | tokens | loglik, bits/byte | lm-evaluation-harness | difference |")
        print("|---|--:|--:|--:|--:|--:|")
        for name, part in (("the last 10 %", text[cut:]), ("all", text)):
            file = Path(temporary) / "part.txt"
            file.write_text(part, encoding="utf-8")
            result, theirs = evaluate(run, file), harness(folder, part)
            assert result.bits_per_byte is not None
            size = len(part.encode())
            cells = ("not installed", "")
            if theirs is not None:
                bits = -theirs / (size * math.log(2))
                cells = f"{bits:.6f}", f"{abs(result.bits_per_byte - bits):.1e}"
            print(
                f"| {name} | {size:,} | {result.n:,} | {result.bits_per_byte:.6f} | {' | '.join(cells)} |", flush=True
            )


if __name__ == "__main__":
    main()
