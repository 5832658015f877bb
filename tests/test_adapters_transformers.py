"""Language models of transformers: exact nats of texts, window by window, in the conventions that are said."""

import json
import math
import re

import polars
import pytest
import torch
from torch import nn

import loglik
from loglik.adapters import from_transformers, load
from loglik.autoregressive import Autoregressive
from loglik.networks import CausalTransformer

transformers = pytest.importorskip("transformers")
pytest.importorskip("tokenizers")

from helpers.commands import refused, well  # noqa: E402
from helpers.language_models import END, TEXT, Bigram, gpt2, llama, saved, tokenizer, with_space  # noqa: E402


@pytest.fixture(scope="module")
def words():
    return tokenizer()


def ids_of(words, text: str = TEXT) -> list[int]:
    return words(text, verbose=False)["input_ids"]


@torch.no_grad()
def rolling(model: nn.Module, tokens: list[int], prefix: int, window: int, pred: int) -> float:
    """The nats of a text, as the README of lm-evaluation-harness describes its rolling log-likelihood.

    The first window predicts min(window, N) tokens from the prefix on. Each later one predicts the next `pred` tokens,
    or those that are left, with as many of the tokens before them as fit in the window's inputs.
    """
    total, done = 0.0, 0
    while done < len(tokens):
        end = min(len(tokens), done + (window if done == 0 else pred))
        inputs = ([prefix, *tokens])[max(0, end - window) : end]  # the input before token i is number i
        log_p = model(input_ids=torch.tensor([inputs])).logits[0].log_softmax(-1)
        for place in range(done, end):
            total += log_p[len(inputs) - (end - place), tokens[place]].item()
        done = end
    return total


@pytest.mark.parametrize("stride", [None, 1, 5, 16])
@pytest.mark.parametrize("length", [1, 15, 16, 17, 33, 48, 70])
def test_a_text_of_any_length_has_the_harness_s_nats(words, length, stride) -> None:
    model = gpt2().double()
    density, tokens = from_transformers(model, words, stride=stride), ids_of(words)[:length]
    nats = density.log_prob(torch.tensor([tokens])).item()
    assert nats == pytest.approx(rolling(model, tokens, words.bos_token_id, 16, stride or 16), abs=1e-9)


def test_evaluate_reads_a_file_in_the_model_s_tokens(words, tmp_path) -> None:
    """A file is one text: nats per token, bits/byte of its bytes, and the conventions in notes."""
    (tmp_path / "a.txt").write_text(TEXT, encoding="utf-8")
    model, size = gpt2(), len(TEXT.encode())
    run = load("transformers", saved(tmp_path / "gpt2", model, words))
    nats = rolling(model, ids_of(words), 0, 16, 16)
    for scored in (run, from_transformers(model, words)):
        result = loglik.evaluate(scored, tmp_path / "a.txt")
        assert result.bits_per_byte == pytest.approx(-nats / (size * math.log(2)), abs=1e-5)
        assert result.nats * result.n == pytest.approx(nats, rel=1e-6)
        assert (result.bound, result.unit, result.n) == ("exact", "token", len(ids_of(words)))
        assert END in result.notes[0] and "windows of 16 tokens" in result.notes[1]
    parts = [loglik.evaluate(run, tmp_path / "a.txt", split=s).n for s in ("train", "validation", "test")]
    assert 0 <= sum(parts) - result.n < 8  # tokens at the cuts


def test_a_bigram_model_s_nats_are_exact_whatever_the_window(words, tmp_path, float64) -> None:
    table = torch.randn(300, 300).log_softmax(-1)
    tokens = ids_of(words)
    truth = table[0, tokens[0]] + sum(table[a, b] for a, b in zip(tokens, tokens[1:], strict=False))
    (tmp_path / "a.txt").write_text(TEXT, encoding="utf-8")
    for window, stride in ((7, 7), (32, 5), (2048, 2048), (None, None)):
        result = loglik.evaluate(
            from_transformers(Bigram(table), words, window=window, stride=stride), tmp_path / "a.txt"
        )
        assert result.nats * result.n == pytest.approx(truth.item(), abs=1e-8)


def test_probabilities_sum_to_one(words, float64) -> None:
    density = from_transformers(Bigram(torch.randn(300, 300)), words, window=2)
    first = density.log_prob(torch.arange(300)[:, None])
    assert first.exp().sum().item() == pytest.approx(1)
    pairs = density.log_prob(torch.cartesian_prod(torch.arange(5), torch.arange(300))).view(5, 300)
    torch.testing.assert_close(pairs.logsumexp(1), first[:5])


@pytest.mark.parametrize("kind", ["GPT2", "Llama", "Qwen2"])
def test_the_model_s_own_loss_is_the_mean_of_its_tokens(words, kind) -> None:
    model = gpt2() if kind == "GPT2" else llama(kind=kind)
    x = torch.tensor(ids_of(words)[:32]).view(2, 16)
    density = from_transformers(model, words, prefix="none")
    own = model(input_ids=x, labels=x).loss
    torch.testing.assert_close(-density.log_prob(x).mean() / 15, own, atol=1e-5, rtol=0)
    assert density.token_log_probs(x)[:, 0].eq(0).all()


def test_our_transformer_s_weights_in_gpt2_give_the_same_nats(words) -> None:
    """Learned positions, LayerNorm before each part, GELU; our start vector is the embedding of GPT-2's first token."""
    width, depth, heads, t, levels = 16, 2, 2, 12, 300
    ours = Autoregressive(CausalTransformer(width, depth, heads), (t,), levels).eval()
    for name, parameter in ours.named_parameters():
        nn.init.normal_(parameter, mean=float("norm" in name and "weight" in name), std=0.3)
    nn.init.zeros_(ours.head.bias)
    with torch.no_grad():
        ours.start.copy_(ours.tokens.weight[7])
    config = transformers.GPT2Config(
        vocab_size=levels, n_positions=t, n_embd=width, n_layer=depth, n_head=heads, activation_function="gelu",
        tie_word_embeddings=False, bos_token_id=0, eos_token_id=0,
    )  # fmt: skip
    theirs = transformers.GPT2LMHeadModel(config).eval()
    theirs.load_state_dict(_as_gpt2(ours))
    x = torch.randint(levels, (3, t))
    density = from_transformers(theirs, words, prefix=7)
    torch.testing.assert_close(density.token_log_probs(x), ours.token_log_probs(x), atol=1e-5, rtol=0)
    torch.testing.assert_close(density.log_prob(x), ours.log_prob(x), atol=1e-5, rtol=1e-6)


def _as_gpt2(ours: Autoregressive) -> dict[str, torch.Tensor]:
    names = {
        "norm_attention": "ln_1", "norm_mlp": "ln_2", "expand": "mlp.c_fc", "contract": "mlp.c_proj",
        "attention.qkv": "attn.c_attn", "attention.output": "attn.c_proj",
    }  # fmt: skip
    state = {"transformer.wte.weight": ours.tokens.weight, "transformer.wpe.weight": ours.positions}
    state |= {"lm_head.weight": ours.head.weight}
    state |= {f"transformer.ln_f.{end}": getattr(ours.network.norm, end) for end in ("weight", "bias")}
    for name, value in ours.network.blocks.state_dict().items():
        number, part, end = re.fullmatch(r"(\d+)\.(.+)\.(weight|bias)", name).groups()
        turned = value.T if end == "weight" and value.dim() == 2 else value  # GPT-2 has maps of rows
        state[f"transformer.h.{number}.{names[part]}.{end}"] = turned
    return {name: value.detach().contiguous() for name, value in state.items()}


def test_each_text_by_itself(words, tmp_path) -> None:
    """Lines of a file, files of a folder and rows of a table: one row each, of any length, none cut."""
    texts = ["A cat.", TEXT[:400], "", "naïve"]
    density = from_transformers(gpt2(), words, rows=True)
    alone = [scores.sum().item() for scores in density.text_log_probs(texts)]
    assert alone[1] == pytest.approx(rolling(density.network, ids_of(words, TEXT[:400]), 0, 16, 16), abs=1e-3)
    one_line = [text.replace("\n", " ") for text in texts]
    (tmp_path / "lines.txt").write_text("\n".join(one_line) + "\n", encoding="utf-8")
    (tmp_path / "folder").mkdir()
    for number, text in enumerate(texts):
        (tmp_path / "folder" / f"{number}.txt").write_text(text, encoding="utf-8")
    run = load("transformers", saved(tmp_path / "gpt2", density.network, words), rows=True)
    for data, own in ((tmp_path / "lines.txt", one_line), (tmp_path / "folder", texts), ({"text": texts}, texts)):
        result = loglik.evaluate(run, data, per_row=tmp_path / "rows.csv")
        nats = [float(line.split(",")[1]) for line in (tmp_path / "rows.csv").read_text().splitlines()[1:]]
        expected = [scores.sum().item() for scores in density.text_log_probs(own)]
        assert nats == pytest.approx(expected, abs=1e-3)
        size = sum(len(text.encode()) for text in own)
        assert result.bits_per_byte == pytest.approx(-sum(expected) / (size * math.log(2)), abs=1e-5)


def test_the_command_scores_each_row_of_a_column(words, tmp_path) -> None:
    """A column of distinct texts, alone or beside a label, is no table that our models read."""
    folder, texts = saved(tmp_path / "gpt2", gpt2(), words), [f"{i} cats: {TEXT[: 3 * i]}." for i in range(40)]
    nats = [scores.sum().item() for scores in from_transformers(gpt2(), words).text_log_probs(texts)]
    alone, labelled = tmp_path / "alone.csv", tmp_path / "labelled.csv"
    polars.DataFrame({"review": texts}).write_csv(alone)
    polars.DataFrame({"review": texts, "stars": [i % 2 for i in range(40)]}).write_csv(labelled)
    for data, options in ((alone, ()), (labelled, ("--label", "stars"))):
        well("evaluate", "--from", "transformers", folder, data, *options, "--per-row", tmp_path / "rows.csv")
        assert polars.read_csv(tmp_path / "rows.csv")["nats"].to_list() == pytest.approx(nats, abs=1e-3)


def test_a_text_of_one_token(tmp_path) -> None:
    words = tokenizer(eos_token=END)
    (tmp_path / "a.txt").write_text("a", encoding="utf-8")
    assert loglik.evaluate(from_transformers(gpt2(), words), tmp_path / "a.txt").n == 1
    with pytest.raises(ValueError, match="the text has one token, and the first is not scored: pass prefix=TOKEN"):
        loglik.evaluate(from_transformers(gpt2(), words, prefix="none"), tmp_path / "a.txt")


def test_bytes_of_an_unscored_token_are_not_counted(words) -> None:
    text, density = "A cat sat.", from_transformers(gpt2(), words, rows=True, prefix="none")
    result = loglik.evaluate(density, {"text": [text, text + " naïve"]})
    own = density.data_spec.tokenizer
    first = own.lengths[own.encode(text.encode())[0]]
    size = 2 * len(text) + len(" naïve".encode()) - 2 * first
    assert result.bits_per_byte == pytest.approx(-2 * result.nats / (size * math.log(2)))


def test_tokens_have_the_bytes_of_the_text(words) -> None:
    density = from_transformers(gpt2(), words)
    own = density.data_spec.tokenizer
    assert own.decode(own.encode(TEXT.encode())) == TEXT.encode() and own.added == 0
    assert own.table[0] == END.encode()
    spaced = from_transformers(llama(200), with_space()).data_spec.tokenizer
    tokens = spaced.encode(TEXT.encode())
    assert spaced.added == 1 and spaced.lengths[tokens].sum() == len(TEXT.encode()) + 1


def test_a_space_that_the_tokenizer_adds_is_no_byte_of_the_text(tmp_path) -> None:
    text, density = "the cat sat on a mat", from_transformers(llama(200), with_space())
    (tmp_path / "a.txt").write_text(text)
    result = loglik.evaluate(density, tmp_path / "a.txt")
    assert result.bits_per_byte == pytest.approx(-result.nats * result.n / (len(text) * math.log(2)))


def test_generation_with_a_cache_follows_the_whole_model(words) -> None:
    """The likeliest tokens of a cache are those of the model, and windows that are full start again at their half."""
    density = from_transformers(gpt2(), words)
    prompt = torch.tensor(ids_of(words)[:5])
    found = density.generate(2, prompt=prompt, length=11, temperature=0)
    read = torch.cat([torch.zeros(2, 1, dtype=torch.long), found], 1)[:, :-1]
    expected = density.network(input_ids=read).logits.argmax(-1)
    assert torch.equal(found[:, 5:], expected[:, 5:])
    assert density.generate(1, prompt=prompt, length=40).shape == (1, 45)
    assert density.sample(3).shape == (3, 16)


def test_a_sample_is_of_the_model(words, float64) -> None:
    density = from_transformers(Bigram(torch.randn(300, 300) * 4), words, window=2)
    x = density.sample(4000)
    entropy = -density.log_prob(x).mean().item()
    p = density.network.table[0].softmax(-1)
    q = density.network.table.softmax(-1)
    truth = -(p @ p.log()).item() - (p @ (q * q.log()).sum(1)).item()
    assert entropy == pytest.approx(truth, abs=0.12)


def test_a_run_continues_a_text(words, tmp_path) -> None:
    run = load("transformers", saved(tmp_path / "gpt2", gpt2(), words))
    (text,) = loglik.continue_text(run, "The 1th", length=6, seed=1)
    assert text.startswith("The 1th") and len(text) > len("The 1th")


def refusal(folder, **settings) -> str:
    with pytest.raises((ValueError, FileNotFoundError)) as error:
        load("transformers", folder, **settings)
    message = str(error.value)
    assert "\n" not in message
    return message


def test_folders_that_are_no_language_model(words, tmp_path) -> None:
    assert "no such folder" in refusal(tmp_path / "none")
    (tmp_path / "empty").mkdir()
    assert "has no config.json" in refusal(tmp_path / "empty")
    folder = saved(tmp_path / "gpt2", gpt2(), words)
    (folder / "model.safetensors").rename(tmp_path / "kept")
    (folder / "pytorch_model.bin").write_bytes(b"pickle")
    assert "pytorch_model.bin, which may be a pickle" in refusal(folder)
    (tmp_path / "kept").rename(folder / "model.safetensors")
    config = json.loads((folder / "config.json").read_text())

    def changed(**kwargs) -> None:
        (folder / "config.json").write_text(json.dumps({**config, **kwargs}))

    changed(architectures=["BertForMaskedLM"])
    assert "BertForMaskedLM is neither a causal language model" in refusal(folder)
    changed(architectures=["T5ForConditionalGeneration"], is_encoder_decoder=True)
    assert "sequence-to-sequence" in refusal(folder)
    changed(auto_map={"AutoModelForCausalLM": "evil.Model"})
    assert "code of its own" in refusal(folder)
    changed(n_layer=3)
    assert "it would be random" in refusal(folder)
    changed(n_positions=8)
    assert "it would be random" in refusal(folder)
    (folder / "config.json").write_text("{")
    assert "config.json is damaged" in refusal(folder)
    changed()
    assert "window must be from 1 to the model's 16 tokens, got 17" in refusal(folder, window=17)
    assert "stride must be from 1 to the window of 8 tokens, got 9" in refusal(folder, window=8, stride=9)
    assert "prefix='<bos>' is no token" in refusal(folder, prefix="<bos>")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).unlink()
    assert "has no tokenizer" in refusal(folder)


def test_models_in_memory_that_have_no_likelihood(words) -> None:
    torch.manual_seed(0)
    small = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    masked = transformers.BertForMaskedLM(transformers.BertConfig(vocab_size=300, **small))
    with pytest.raises(ValueError, match="BertForMaskedLM is not causal"):
        from_transformers(masked, words)
    with pytest.raises(ValueError, match="GPT2Model is not called as a causal language model is"):
        from_transformers(gpt2().transformer, words)
    with pytest.raises(ValueError, match="the tokenizer has 300 tokens, and the model has logits of 200"):
        from_transformers(gpt2(200), words)
    density = from_transformers(gpt2(), tokenizer(pad_token=END))
    assert density.prefix is None and "first token of a text is not scored" in density.notes[0]
    with pytest.raises(ValueError, match="no token to begin a text with"):
        density.sample(1)
    with pytest.raises(ValueError, match=r"tokens must hold integers 0 \.\.\. 299, got 0 \.\.\. 300"):
        density.log_prob(torch.tensor([[0, 300]]))


def test_a_tokenizer_that_may_be_another_model_s(words, tmp_path) -> None:
    (tmp_path / "a.txt").write_text(TEXT, encoding="utf-8")
    result = loglik.evaluate(from_transformers(gpt2(1000), words), tmp_path / "a.txt")
    assert "the tokenizer has 300 of the model's 1,000 tokens" in result.notes[2]
    table = torch.zeros(300, 300).index_fill(1, torch.arange(250), 5.0)  # the tokens of words are unlikely
    result = loglik.evaluate(from_transformers(Bigram(table), words), tmp_path / "a.txt")
    assert result.notes[-1].startswith("tokens at random would score better")


def test_a_tokenizer_that_changes_the_text_is_found(tmp_path) -> None:
    (tmp_path / "a.txt").write_text("a cat sat\non The mat\n")
    with pytest.raises(
        ValueError, match=r"a.txt: line 2, byte 13: the model's tokenizer does not keep this text: 'The"
    ):
        loglik.evaluate(from_transformers(llama(200), with_space(lower=True)), tmp_path / "a.txt")
    result = loglik.evaluate(from_transformers(llama(200), with_space(lower=True), lossy=True), tmp_path / "a.txt")
    assert "what it is changed to" in result.notes[2]
    (tmp_path / "b.txt").write_bytes(b"a cat \xff")
    with pytest.raises(ValueError, match="byte 6: not UTF-8 text"):
        loglik.evaluate(from_transformers(llama(200), with_space()), tmp_path / "b.txt")


def test_the_command_scores_and_continues_a_text(words, tmp_path) -> None:
    folder, model = tmp_path / "gpt2", gpt2()
    saved(folder, model, words)
    (tmp_path / "a.txt").write_text(TEXT, encoding="utf-8")
    (tmp_path / "a.csv").write_text("text\nA cat.\nnaïve\n", encoding="utf-8")
    bits = -rolling(model, ids_of(words), 0, 16, 16) / (len(TEXT.encode()) * math.log(2))
    out = well("evaluate", "--from", "transformers", folder, tmp_path / "a.txt")
    assert f"{bits:.3f} bits/byte" in out and "windows of 16 tokens side by side" in out
    out = well("evaluate", "--from", "transformers", folder, tmp_path / "a.csv", "--set", "stride=4")
    assert out.startswith("2 examples") and "one every 4 tokens" in out
    (tmp_path / "short.txt").write_text("A cat.", encoding="utf-8")
    assert "windows of 16 tokens" in well("evaluate", "--from", "transformers", folder, tmp_path / "short.txt")
    (tmp_path / "bad.txt").write_bytes(b"A \xff")
    assert "line 1, byte 2: not UTF-8 text" in refused(
        "evaluate", "--from", "transformers", folder, tmp_path / "bad.txt"
    )
    assert well("sample", "--from", "transformers", folder, "--prompt", "A cat", "--length", 3).startswith("A cat")
    assert "a language model reads text, and the data are images" in refused(
        "evaluate", "--from", "transformers", folder, "digits"
    )
    assert "stride must be from 1" in refused(
        "evaluate", "--from", "transformers", folder, tmp_path / "a.txt", "--set", "stride=17"
    )
