"""Text on the command line: fit, evaluate, sample from a prompt, and one line for what cannot be done."""

import io
import json
import random
from pathlib import Path

import pytest
import torch

import loglik
from helpers.commands import refused, well
from loglik.cli import use
from loglik.tasks import continue_text

TEXT = "".join(f"{i} cats sat on {i % 7} mats; ünder it all.\n" for i in range(150))
SMALL = ("width=8", "depth=1", "batch_size=4", "window=16", "precision=32-true")


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def sets(*pairs: str) -> list[str]:
    return [word for pair in pairs for word in ("--set", pair)]


pytestmark = pytest.mark.usefixtures("own_folder")


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("text") / "notes.txt"
    path.write_text(TEXT, encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def folder(source) -> Path:
    out = source.parent / "run"
    changes = sets(*SMALL, "tokenizer=characters", "split=80/20/0")
    said = well("fit", source, "--model", "autoregressive", "--max-steps", 4, "--out", out, *changes)
    assert "characters" in said and "0 to test on" in said
    assert "validation split: autoregressive: " in said and "nats per token" in said and "bits/byte" in said
    return out


def test_compare_fits_80_columns(source, monkeypatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    said = well("compare", source, "--models", "autoregressive", "--budget", "1s", "--out", "compared")
    assert "log-likelihood per token of" in said and "perplexity" in said and "…" not in said


def test_evaluate(folder, source) -> None:
    said = well("evaluate", folder, "--split", "validation", "--json", "r.json")
    row = json.loads(Path("r.json").read_text())[0]
    assert row["unit"] == "token" and f"{row['n']} tokens: autoregressive: " in said
    assert row["bits_per_byte"] > 0 and row["perplexity"] > 1 and row["stderr"] > 0
    Path("other.txt").write_text("7 cats sat\n" * 10)
    assert "110 tokens: " in well("evaluate", folder, "other.txt")
    page = (folder / "report.html").read_text()
    assert "nats per token" in page and "perplexity" in page and "nats per example" not in page


def test_sample_goes_on_from_a_prompt(folder) -> None:
    words = ("sample", folder, "--prompt", "7 cats", "--length", 40, "--seed", 3)
    said = well(*words)
    assert said.startswith("7 cats") and len(said) == len("7 cats") + 40 + 1
    assert well(*words) == said != well(*words[:-1], 4)
    assert well(*words, "--temperature", 0) == well(*words[:-1], 9, "--top-k", 1)
    assert well(*words, "--out", "t.txt") == "1 samples: t.txt\n" and Path("t.txt").read_text() == said
    several = well(*words, "-n", 3)
    assert several.count("--- sample ") == 3 and several.count("7 cats") >= 3
    Path("p.txt").write_text("on 3 mats")
    assert well("sample", folder, "--prompt", "@p.txt", "--length", 1)[:-2] == "on 3 mats"
    assert "64 samples" in well("sample", folder)


def test_streams_to_a_terminal(folder, monkeypatch) -> None:
    pieces: list[str] = []
    monkeypatch.setattr(use, "_print_piece", pieces.append)
    monkeypatch.setattr(io, "StringIO", Terminal)
    assert well("sample", folder, "--prompt", "7 ca", "--length", 12) == "\n"
    assert pieces[0] == "7 ca" and 12 <= len(pieces) <= 13  # a piece for each character


def test_what_is_streamed_is_what_is_given(folder) -> None:
    run = loglik.load(folder)
    pieces: list[str] = []
    texts = continue_text(run, "on", length=50, on_text=pieces.append, seed=1)
    assert "".join(pieces) == texts[0]
    ended = continue_text(run, "on", length=400, stop="\\n", seed=1)[0]
    assert ended.endswith("\n") and ended.count("\n") == 1


BAD = {
    "a label that is not asked for": (("--prompt", "7 cats", "--label", "x"), "this density is not conditional"),
    "an unknown character": (("--prompt", "7 çats"), "the prompt, byte 2: the character 'ç' is none of the"),
    "a long prompt": (
        ("--prompt", "7 cats sat on 3 mats"),
        "the prompt has 20 tokens (characters), and the model's conte",
    ),
    "top_k of 0": (("--top-k", 0), "top_k must be at least 1, got 0"),
    "top_p of 2": (("--top-p", 2), "top_p must be above 0 and at most 1, got 2"),
    "a temperature below 0": (("--temperature", -1), "temperature must be at least 0, got -1"),
    "a stop of two tokens": (("--stop", "ca"), "stop must be one token of the model (characters), and 'ca' is 2"),
    "a length below 0": (("--length", -5), "length must be at least 0, got -5"),
}


@pytest.mark.parametrize("what", BAD)
def test_bad_prompts_are_one_line(folder, what) -> None:
    words, said = BAD[what]
    assert said in refused("sample", folder, *words)


def test_bad_text_is_one_line(source, tmp_path) -> None:
    Path("b.txt").write_bytes(b"fine\n" * 40 + b"\xff\n" + b"fine\n" * 40)
    said = refused("fit", "b.txt", "--model", "autoregressive", *sets("tokenizer=characters"))
    assert "b.txt: line 41, byte 200: not UTF-8" in said
    said = refused("fit", source, "--model", "autoregressive", *sets("window=4000"))
    assert "bytes are too short for a window of 4000" in said
    assert "split must be three percentages" in refused("fit", source, "--model", "independent", *sets("split=9/1"))
    assert "unknown tokenizer 'words'" in refused("fit", source, "--model", "independent", *sets("tokenizer=words"))
    well("fit", source, "--model", "independent", "--out", "ind")
    assert "a prompt is for an autoregressive density of text" in refused("sample", "ind", "--prompt", "x")


def moods(path: Path, n: int = 120) -> Path:
    chance = random.Random(0)
    words = {"good": ["lovely", "great"], "bad": ["awful", "dull"]}
    rows = [f"{mood},The film {i} was {chance.choice(words[mood])}" for i in range(n // 2) for mood in words]
    path.write_text("\n".join(["mood,text", *rows]) + "\n")
    return path


def test_texts_are_classified(tmp_path) -> None:
    path = moods(tmp_path / "moods.csv")
    torch.manual_seed(0)
    said = well(
        "fit", path, "--label", "mood", "--model", "classifier", "--max-steps", 30, "--out", "run",
        *sets("width=32", "dropout=0", "learning_rate=1e-2", "window=24"),
    )  # fmt: skip
    assert "texts of up to 24 tokens" in said and "accuracy 100.0%" in said
    run = loglik.load("run")
    assert run.spec.padded and run.spec.classes == ("bad", "good") and run.spec.levels == 257
    assert "accuracy 100.0%" in well("evaluate", "run", path)
    assert "for text use autoregressive" in refused("fit", path, "--label", "mood", "--model", "flow")
    assert "column 'text' is left out" in well("fit", path, "--model", "independent", "--out", "alone")
    rows = path.read_text().splitlines()
    Path("more.csv").write_text(
        "\n".join(f"{row},{i}" for i, row in enumerate(rows)).replace("text,0", "text,n") + "\n"
    )
    alone = ("--label", "mood", "--model", "classifier", "--max-steps", 3, "--out", "more")
    assert "column 'text' is left out" in well("fit", "more.csv", *alone)
    assert "the model accepts one column of text beside 'mood', found text, n" in refused("evaluate", "run", "more.csv")


def test_padding_changes_nothing(float64) -> None:
    from loglik.classification.tokens import TokenEncoder

    encoder = TokenEncoder(9, width=16, depth=2, heads=2, padding=8).eval()
    x = torch.randint(8, (5, 6))
    longer = torch.cat([x, torch.full((5, 4), 8)], dim=1)
    torch.testing.assert_close(encoder(longer), encoder(x), rtol=0, atol=1e-12)
    assert encoder(torch.full((2, 3), 8)).isfinite().all()


def test_inspect_a_run_without_a_test_split(folder) -> None:
    assert "page: look/inspection.html" in well("inspect", folder, "--out", "look")
