"""A hook of the site: the tutorials run as notebooks when it is built, and their pages show prose, code and outputs.

docs/tutorials/images.py is a notebook in jupytext's percent format. The page images.md, which holds the line
[[tutorial images]], shows it in English, and images.zh.md in Chinese: prose cells with the tag `zh` are Chinese, those
without a tag English. Code runs once for both. A cell that draws has captions: `# %% en="..." zh="..."`.

The build fails where a cell raises an error or writes to stderr, and where a figure has no caption.
"""

import copy
import hashlib
import html
import os
import re
import tempfile
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parents[2]
SOURCES = ROOT / "docs" / "tutorials"
EXECUTED = ROOT / "build" / "tutorials"  # by the digest of the source: an unchanged tutorial is not run again
ASSETS = Path("assets") / "tutorials"
LINE = re.compile(r"^\[\[tutorial (\w+)\]\]$", re.MULTILINE)
DOWNLOAD = {"en": "Download this page as a notebook", "zh": "下载本页的 notebook"}
TIMEOUT = 600  # seconds a cell may take
INK = "#2b2b2c"  # text and axes of figures, until it is replaced by the ink of a palette
PALETTES = {"light": "#222222", "dark": "#dddddd"}
STYLE = {
    "text.color": INK, "axes.labelcolor": INK, "axes.edgecolor": INK, "xtick.color": INK, "ytick.color": INK,
    "axes.facecolor": "none", "figure.facecolor": "none", "axes.spines.top": False, "axes.spines.right": False,
    "figure.figsize": (5.6, 3.3), "font.size": 11, "legend.frameon": False, "figure.constrained_layout.use": True,
    "svg.hashsalt": "loglik",
}  # fmt: skip
SETUP = f"""
%config InlineBackend.figure_formats = ["svg"]
%config InlineBackend.print_figure_kwargs = {{"bbox_inches": None, "metadata": {{"Date": None}}}}
%matplotlib inline
import matplotlib.pyplot as plt
plt.rcParams.update({STYLE!r})
"""


def on_pre_build(config, **kwargs) -> None:
    """Run the tutorials and write their figures and notebooks, before the site looks which files there are."""
    names = sorted(path.stem for path in SOURCES.glob("*.py"))
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        list(pool.map(executed, names))
    for name in names:
        write_assets(name, Path(config["docs_dir"]))


def on_page_markdown(markdown: str, page, **kwargs) -> str:
    """Fill the directive of a page."""
    language = "zh" if page.file.src_path.endswith(".zh.md") or page.file.dest_path.startswith("zh/") else "en"
    up = "../" * page.file.src_path.count("/")
    return LINE.sub(lambda match: rendered(match[1], language, up), markdown)


@cache
def executed(name: str):
    """Return a tutorial as a notebook with its outputs.

    Raises ValueError where there is no such tutorial, and nbclient's CellExecutionError where a cell fails.
    """
    import jupytext
    import nbformat
    from nbclient import NotebookClient
    from traitlets.config import Config

    file = SOURCES / f"{name}.py"
    if not file.is_file():
        raise ValueError(f"there is no tutorial {name!r}: {file} is missing")
    source = file.read_text(encoding="utf-8")
    stored = EXECUTED / f"{name}-{hashlib.sha256((SETUP + source).encode()).hexdigest()[:16]}.ipynb"
    if stored.is_file():
        return nbformat.read(stored, as_version=4)
    notebook = jupytext.reads(source, fmt="py:percent")
    notebook.cells.insert(0, nbformat.v4.new_code_cell(SETUP))
    # one thread a kernel: the models are small, and the tutorials run side by side
    path = os.pathsep.join(filter(None, [str(ROOT / "src"), os.environ.get("PYTHONPATH")]))
    environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", "PYDEVD_DISABLE_FILE_VALIDATION": "1"}
    with tempfile.TemporaryDirectory() as folder:
        resources = {"metadata": {"path": folder}}
        # sockets in a folder of this user's: ipykernel warns of TCP
        sockets = Config(ConnectionFileMixin={"transport": "ipc", "ip": f"{folder}/kernel"})
        client = NotebookClient(notebook, timeout=TIMEOUT, kernel_name="python3", resources=resources, config=sockets)
        client.execute(env=environment)
    del notebook.cells[0]
    EXECUTED.mkdir(parents=True, exist_ok=True)
    nbformat.write(notebook, stored)
    return notebook


def in_language(cell, language: str) -> bool:
    """Return whether a page in a language shows a cell."""
    return cell.cell_type == "code" or ("zh" in cell.metadata.get("tags", ())) == (language == "zh")


def figures(name: str):
    """Yield each figure of a tutorial with its cell: the stem of its files, the cell, and the SVG."""
    number = 0
    for cell in executed(name).cells:
        for output in cell.get("outputs", ()):
            if "image/svg+xml" in output.get("data", {}):
                number += 1
                yield f"{name}-{number}", cell, output.data["image/svg+xml"]


def write_assets(name: str, docs: Path) -> None:
    """Write a tutorial's figures, in each palette, and its notebook without outputs, in each language."""
    import nbformat

    folder = docs / ASSETS
    folder.mkdir(parents=True, exist_ok=True)
    for stem, _, svg in figures(name):
        for palette, ink in PALETTES.items():
            write_changed(folder / f"{stem}-{palette}.svg", svg.replace(INK, ink))
    for language in DOWNLOAD:
        notebook = copy.deepcopy(executed(name))
        notebook.cells = [cell for cell in notebook.cells if in_language(cell, language)]
        for cell in notebook.cells:
            cell.metadata = {}
            if cell.cell_type == "code":
                cell.outputs, cell.execution_count = [], None
        write_changed(folder / f"{name}-{language}.ipynb", nbformat.writes(notebook))


def write_changed(path: Path, text: str) -> None:
    """Write a file unless it holds the text, so that `mkdocs serve` does not build again for nothing."""
    if not path.is_file() or path.read_text(encoding="utf-8") != text:
        path.write_text(text, encoding="utf-8")


def rendered(name: str, language: str, up: str) -> str:
    """Return a tutorial as Markdown; `up` leads from the page to the folder of all pages."""
    stems = iter([stem for stem, _, _ in figures(name)])
    parts = []
    for number, cell in enumerate(executed(name).cells, 1):
        if not in_language(cell, language):
            continue
        if cell.cell_type != "code":
            parts.append(cell.source)
            continue
        parts.append(f"```python\n{cell.source}\n```")
        for output in cell.outputs:
            if output.get("name") == "stderr":
                raise ValueError(f"the tutorial {name!r}, cell {number}, writes to stderr: {output.text}")
        for figure_or_text in shown(cell.outputs):
            if figure_or_text is None:
                parts.append(figure(f"{up}{ASSETS.as_posix()}/{next(stems)}", cell.metadata.get(language), name))
            else:
                parts.append(f"``` {{ .text .no-copy .output }}\n{figure_or_text.rstrip()}\n```")
    parts.append(f"[{DOWNLOAD[language]}]({up}{ASSETS.as_posix()}/{name}-{language}.ipynb)")
    return "\n\n".join(parts)


def shown(outputs) -> list[str | None]:
    """Return a cell's outputs in order: None for a figure, and texts, those that follow each other as one."""
    found: list[str | None] = []
    for output in outputs:
        data = output.get("data", {})
        text = None if "image/svg+xml" in data else output.get("text") or data.get("text/plain", "")
        if text and found and found[-1] is not None:
            found[-1] += text
        elif text != "":
            found.append(text)
    return found


def figure(stem: str, caption: str | None, name: str) -> str:
    """Return a figure with its caption, one file for light pages and one for dark ones."""
    if not caption:
        raise ValueError(f'the tutorial {name!r} has a figure without a caption: # %% en="..." zh="..."')
    alt = html.escape(caption, quote=True)
    return (
        f'<figure markdown="1">\n![{alt}]({stem}-light.svg#only-light)\n![{alt}]({stem}-dark.svg#only-dark)\n'
        f"<figcaption>{caption}</figcaption>\n</figure>"
    )
