"""The check of the built site's links finds a page, an anchor and a file that do not exist."""

import importlib.util
from pathlib import Path

import pytest

PATH = Path(__file__).parents[1] / "docs" / "hooks" / "links.py"


@pytest.fixture(scope="module")
def links():
    spec = importlib.util.spec_from_file_location("links", PATH)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    ("link", "resolves"),
    [
        ("b/c.html#there", True),
        ("b/", True),
        ("#here", True),
        ("/b/c.html", True),
        ("https://example.com/none", True),
        ("b/none.html", False),
        ("b/c.html#none", False),
        ("#none", False),
        ("picture.png", False),
    ],
)
def test_links_of_a_site(links, link, resolves, tmp_path):
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "index.html").write_text("<p>index</p>")
    (tmp_path / "b" / "c.html").write_text('<h2 id="there">there</h2><a href="../a.html#here">back</a>')
    (tmp_path / "a.html").write_text(f'<h1 id="here">here</h1><a href="{link}">link</a>')
    assert links.broken(tmp_path) == ([] if resolves else [f"a.html: {link}"])
