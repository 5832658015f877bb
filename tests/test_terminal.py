"""Strings of data in the terminal: none of them can command it."""

import numpy as np
import pytest
from PIL import Image

from helpers.commands import refused, run, well
from loglik.report import print_classes
from loglik.terminal import printable

TITLE = "\x1b]0;owned\x07"
NAMES = [f"a{TITLE}", "b\u202ecod.exe", "[/c] <i>red", "d\x9b31m"]


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("cat", "cat"),
        ("naïve 猫 👩\u200d🔬", "naïve 猫 👩\u200d🔬"),
        (TITLE, r"\x1b]0;owned\x07"),
        ("a\nb\r\tc\x7f", r"a\nb\r\tc\x7f"),
        ("\x9b31m", r"\x9b31m"),
        ("\u202e\u2066\u200f\u061c", r"\u202e\u2066\u200f\u061c"),
        ("\u2028\u2029", r"\u2028\u2029"),
        ("\ud800", r"\ud800"),
    ],
)
def test_control_characters_are_escaped(text, shown) -> None:
    assert printable(text) == shown
    assert printable(shown) == shown


def test_some_can_be_kept() -> None:
    assert printable("a\n\tb\x1b", keep="\n\t") == "a\n\tb\\x1b"


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    """A table whose column, classes and categories have control characters."""
    path = tmp_path_factory.mktemp("terminal") / "owned\x07\x1b.csv"
    rows = [f'{i % 7},"{NAMES[i % 4]}","{NAMES[(i + 1) % 4]}"' for i in range(80)]
    path.write_text("\n".join([f"x{TITLE},kind{TITLE},k", *rows]))
    return path


def clean(out: str) -> bool:
    return printable(out, keep="\n") == out


def test_a_classifier_prints_its_classes_as_escapes(table, tmp_path) -> None:
    words = ["fit", table, "--label", "k", "--model", "classifier", "--max-steps", 2, "--out", tmp_path / "run"]
    assert clean(well(*words))
    out = well("evaluate", tmp_path / "run")
    assert clean(out) and r"a\x1b]0;owned\x07" in out and r"b\u202ecod.exe" in out and "[/c] <i>red" in out
    page = (tmp_path / "run" / "report.html").read_text()
    assert "<i>red" not in page


def test_other_commands_and_errors_escape_too(table, tmp_path) -> None:
    words = ["compare", table, "--models", "independent", "--budget", "1s", "--out", tmp_path / "all"]
    out = well(*words)
    assert clean(out) and r"owned\x07\x1b" in out
    assert clean(refused("fit", table, "--model", "flow", "--label", f"no{TITLE}\nsuch"))
    assert clean(refused("evaluate", tmp_path / f"absent{TITLE}"))
    assert clean(refused("fit", table, "--model", f"flow{TITLE}"))
    for command in ("inspect", "verify"):
        done = run(command, tmp_path / "all" / "independent", "--out", tmp_path / command, *only(command))
        assert done.status == 0 and clean(done.out + done.err) and r"\x1b" in done.out + "\\x1b" * (command == "verify")


def only(command: str) -> list[str]:
    return ["--only", "normalised"] if command == "verify" else []


def test_samples_of_a_text_are_escaped(tmp_path) -> None:
    (tmp_path / "t.txt").write_bytes(b"\x1b[2J\x07" * 600)
    small = ["--set", "width=16", "--set", "depth=1", "--set", "window=8", "--max-steps", 1]
    well("fit", tmp_path / "t.txt", "--model", "autoregressive", *small, "--out", tmp_path / "run")
    assert clean(well("sample", tmp_path / "run", "--prompt", "\x1b", "--length", 20).replace("\t", ""))


def test_markup_in_a_class_is_text(capsys) -> None:
    print_classes([[1, 1], [0, 2]], ["[/b]", "[red]x"])
    out = capsys.readouterr().out
    assert "[/b]" in out and "[red]x" in out


def test_image_folders_too(tmp_path) -> None:
    rng = np.random.default_rng(0)
    for name in ("a\x1b[31m", "b\u202e"):
        (tmp_path / "images" / name).mkdir(parents=True)
        for i in range(12):
            Image.fromarray(rng.integers(0, 256, (4, 4), dtype=np.uint8)).save(tmp_path / "images" / name / f"{i}.png")
    words = ["fit", tmp_path / "images", "--model", "classifier", "--max-steps", 1]
    assert clean(well(*words, "--out", tmp_path / "run"))
    assert clean(well("evaluate", tmp_path / "run"))
