"""Check every internal link of the built site, with its anchor: `python docs/hooks/links.py site`.

mkdocs checks the links that pages write. This also sees those that themes, hooks and plugins add.
"""

import sys
from functools import cache
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit


class _Page(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.links: list[str] = []
        self.anchors: set[str] = set()

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        for name, value in attributes:
            if name in ("href", "src") and value:
                self.links.append(value)
            elif name == "id" or (tag == "a" and name == "name"):
                self.anchors.add(value or "")


@cache
def parsed(path: Path) -> _Page:
    """Return the links and anchors of a page."""
    page = _Page()
    page.feed(path.read_text(encoding="utf-8"))
    return page


def broken(site: Path) -> list[str]:
    """Return each internal link that leads nowhere, as `page: link`."""
    return [
        f"{path.relative_to(site).as_posix()}: {link}"
        for path in sorted(site.rglob("*.html"))
        for link in dict.fromkeys(parsed(path).links)
        if not resolves(site, path, link)
    ]


def resolves(site: Path, page: Path, link: str) -> bool:
    """Return whether a link of a page leads outside, or to a file of the site and an anchor that it has."""
    parts = urlsplit(link)
    if parts.scheme or parts.netloc:
        return True
    path = unquote(parts.path)
    target = page if not path else site / path.lstrip("/") if path.startswith("/") else page.parent / path
    if target.is_dir():
        target /= "index.html"
    if not target.is_file():
        return False
    return not parts.fragment or target.suffix != ".html" or unquote(parts.fragment) in parsed(target).anchors


if __name__ == "__main__":
    found = broken(Path(sys.argv[1]))
    print("\n".join(found) if found else "every internal link resolves")
    sys.exit(bool(found))
