"""The generated reference pages have every command, option and public name."""

import importlib.util
from pathlib import Path
from types import SimpleNamespace

import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def reference():
    spec = importlib.util.spec_from_file_location("reference", ROOT / "docs" / "hooks" / "reference.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def page(reference, markdown: str, path: str = "reference/cli.md") -> str:
    return reference.on_page_markdown(markdown, SimpleNamespace(file=SimpleNamespace(src_path=path)))


@pytest.mark.parametrize(("path", "word"), [("reference/cli.md", "default"), ("reference/cli.zh.md", "默认值")])
def test_commands_and_their_options(reference, path, word):
    text = page(reference, "[[cli]]", path)
    commands = ["compare", "fit", "evaluate", "sample", "encode", "fill", "anomalies", "inspect", "verify"]
    for command in (*commands, "list models"):
        assert f"\n## loglik {command}\n" in "\n" + text
    assert "| `--budget TIME` | `40s` | Training time of each model" in text
    assert (
        "loglik evaluate RUN [DATA] [OPTIONS]" in text and "| `--resume` |  | Continue the run" in text and word in text
    )


def test_public_names_once(reference):
    top, rooms = page(reference, "[[api loglik]]"), page(reference, "[[api loglik.tasks]]\n\n[[api loglik.vae]]")
    assert "::: loglik.Density\n" in top and "::: loglik.VAE\n" in top
    # a function beside a module of its name
    assert "::: loglik.training.fit.fit\n" in top and "::: loglik.tasks.continue_text.continue_text\n" in top
    assert "::: loglik.vae.Categorical" in rooms and "::: loglik.tasks.Latents" in rooms
    assert "::: loglik.vae.VAE" not in rooms and "[`VAE`][loglik.VAE]" in rooms


def test_an_included_file_has_no_title_and_lower_headings(reference):
    text = page(reference, "# Numbers\n\n[[include benchmarks/RESULTS.md]]")
    assert text.startswith("# Numbers\n\n") and text.count("\n# ") == 0
    assert "\n### Flow\n" in text and "<!--" not in text
