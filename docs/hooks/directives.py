"""A hook of the site: lines of pages that are filled when it is built.

    [[source src/loglik/networks/attention.py::attention]]   the definition, shown from the source, with a link to it
    [[picture heads]]                                         what docs/pictures/heads.py draws
    [[verify softmax-rows]]                                   what `loglik verify` finds on digits

The build fails where a symbol, a picture or a check does not exist.
"""

import ast
import html
import importlib.util
import json
import re
import textwrap
import warnings
from functools import cache
from pathlib import Path

from pygments import highlight
from pygments.formatters import HtmlFormatter
from pygments.lexers import TextLexer, get_lexer_for_filename
from pygments.util import ClassNotFound

ROOT = Path(__file__).parents[2]
LINE = re.compile(r"^\[\[(source|picture|verify) (.+?)\]\]$", re.MULTILINE)
OUTSIDE = re.compile(r"\[([^\]]+)\]\((\.\./[^)#\s]+)(#[^)\s]*)?\)")
LINKED: set[str] = set()  # files of the repository that pages link to
WORDS = {
    "en": {"check": "check", "model": "model", "computed": "computed", "value": "value", "statement": "statement"},
    "zh": {"check": "检验", "model": "模型", "computed": "计算的量", "value": "数值", "statement": "命题"},
    "outcome": {"holds": "成立", "fails": "不成立", "reported": "仅报告"},
}


def on_pre_build(config, **kwargs) -> None:
    """Draw the pictures, before the site looks which files there are."""
    for path in sorted((ROOT / "docs" / "pictures").glob("*.py")):
        drawn(path.stem, Path(config["docs_dir"]))


def on_page_markdown(markdown: str, page, config, **kwargs) -> str:
    """Fill the directives of a page, and let links to files outside docs/ lead to their copies in the site."""
    language = "zh" if page.file.src_path.endswith(".zh.md") or page.file.dest_path.startswith("zh/") else "en"

    def filled(match: re.Match) -> str:
        kind, what = match.groups()
        if kind == "source":
            return source(what, page)
        if kind == "picture":
            return picture(what, page, Path(config["docs_dir"]), language)
        return verification(what, language)

    return OUTSIDE.sub(lambda match: outside(match, page), LINE.sub(filled, markdown))


def on_post_build(config, **kwargs) -> None:
    """Write the linked files of the repository into the site, highlighted and with an anchor for each line."""
    for file in sorted(LINKED):
        target = Path(config["site_dir"]) / "source" / f"{file}.html"
        target.parent.mkdir(parents=True, exist_ok=True)
        text = (ROOT / file).read_text(encoding="utf-8")
        try:
            lexer = get_lexer_for_filename(file)
        except ClassNotFound:
            lexer = TextLexer()
        page = HtmlFormatter(full=True, title=file, linenos="inline", lineanchors="L", anchorlinenos=True)
        target.write_text(highlight(text, lexer, page), encoding="utf-8")


def repository_link(file: str, page, line: int | None = None) -> str:
    """Return the address of a file of the repository in the site, from a page."""
    LINKED.add(file)
    anchor = "" if line is None else f"#L-{line}"
    return f"{'../' * page.file.dest_path.count('/')}source/{file}.html{anchor}"


def outside(match: re.Match, page) -> str:
    """Return a link to a file of the repository, from one that is relative to a page."""
    docs = ROOT / "docs"
    target = (docs / page.file.src_path).parent.joinpath(match[2]).resolve()
    if target.is_relative_to(docs) or not target.is_relative_to(ROOT):
        return match[0]
    if not target.is_file():
        raise ValueError(f"{page.file.src_path}: the link {match[2]} leads to no file")
    return f'<a href="{repository_link(target.relative_to(ROOT).as_posix(), page)}">{match[1]}</a>'


def source(what: str, page) -> str:
    """Return a definition as a block of code with a link to it."""
    file, _, symbol = what.partition("::")
    text = (ROOT / file).read_text(encoding="utf-8")
    node: ast.AST = ast.parse(text)
    for name in symbol.split("."):
        found = [n for n in getattr(node, "body", []) if name in _defined(n)]
        if not found:
            raise ValueError(f"{file} defines no {symbol}")
        node = found[0]
    first = min([node.lineno, *(d.lineno for d in getattr(node, "decorator_list", []))])
    code = textwrap.dedent("\n".join(text.splitlines()[first - 1 : node.end_lineno]))
    link = repository_link(file, page, first)
    return f'<a href="{link}"><code>{file}</code>, <code>{symbol}</code></a>\n\n```python\n{code}\n```'


def _defined(node: ast.AST) -> list[str]:
    if isinstance(node, ast.FunctionDef | ast.ClassDef):
        return [node.name]
    targets = node.targets if isinstance(node, ast.Assign) else [node.target] if isinstance(node, ast.AnnAssign) else []
    return [target.id for target in targets if isinstance(target, ast.Name)]


def picture(name: str, page, docs: Path, language: str) -> str:
    """Return the picture that docs/pictures/NAME.py draws, one for light pages and one for dark ones."""
    light, dark = drawn(name, docs)
    up = "../" * page.file.src_path.count("/")
    alt = html.escape(caption(name, language), quote=True)
    return (
        f'<figure markdown="1">\n![{alt}]({up}{light}#only-light)\n![{alt}]({up}{dark}#only-dark)\n'
        f"<figcaption>{caption(name, language)}</figcaption>\n</figure>"
    )


@cache
def _module(name: str):
    path = ROOT / "docs" / "pictures" / f"{name}.py"
    if not path.is_file():
        raise ValueError(f"there is no picture {name!r}: {path} is missing")
    spec = importlib.util.spec_from_file_location(f"pictures_{name}", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def caption(name: str, language: str) -> str:
    """Return what a picture shows: its CAPTION in a language."""
    return _module(name).CAPTION[language]


@cache
def drawn(name: str, docs: Path) -> tuple[str, str]:
    """Draw a picture in both palettes, and return the two files' names under docs/."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    import torch

    paths = []
    for palette, ink in (("light", "#222222"), ("dark", "#dddddd")):
        style = {
            "text.color": ink, "axes.labelcolor": ink, "axes.edgecolor": ink, "xtick.color": ink, "ytick.color": ink,
            "axes.facecolor": "none", "figure.facecolor": "none", "savefig.facecolor": "none", "svg.hashsalt": name,
            "axes.spines.top": False, "axes.spines.right": False, "figure.figsize": (6.4, 3.4), "font.size": 11,
            "legend.frameon": False, "figure.constrained_layout.use": True,
        }  # fmt: skip
        target = docs / "assets" / "pictures" / f"{name}-{palette}.svg"
        target.parent.mkdir(parents=True, exist_ok=True)
        if not target.exists() or target.stat().st_mtime < (ROOT / "docs" / "pictures" / f"{name}.py").stat().st_mtime:
            torch.manual_seed(0)
            with plt.rc_context(style), warnings.catch_warnings():
                warnings.filterwarnings(
                    "ignore", "__array", DeprecationWarning
                )  # of torch, where Matplotlib reads tensors
                figure = _module(name).draw(plt)
                figure.savefig(target, metadata={"Date": None})
                plt.close(figure)
        paths.append(target.relative_to(docs).as_posix())
    return paths[0], paths[1]


MODELS = (
    ("classifier", {"network": "vit", "stem": "convolution"}),
    ("classifier", {"network": "resnet"}),
    ("autoregressive", {}),
    ("flow", {}),
    ("vae", {}),
    ("diffusion", {}),
)
STEPS = 300


@cache
def verified() -> list[tuple[str, dict]]:
    """Train a model of each family on digits, and return every row that applies, with the model's name."""
    cached = ROOT / "build" / "verified.json"
    if cached.is_file():
        return [(model, row) for model, row in json.loads(cached.read_text(encoding="utf-8"))]
    import loglik

    rows = []
    for name, options in MODELS:
        run = loglik.fit(name, "digits", max_steps=STEPS, progress=False, **options)
        label = f"{name} ({options['network']})" if options else name
        rows += [(label, row.to_dict()) for row in loglik.verify(run).rows if row.outcome != "does not apply"]
    failed = [f"{model}: {row['name']}" for model, row in rows if row["outcome"] == "fails"]
    if failed:
        raise ValueError(f"loglik verify finds statements that fail: {', '.join(failed)}")
    cached.parent.mkdir(exist_ok=True)
    cached.write_text(json.dumps(rows), encoding="utf-8")
    return rows


def verification(name: str, language: str) -> str:
    """Return a table of what a check found on digits."""
    words = WORDS[language]
    found = [(model, row) for model, row in verified() if row["name"] == name]
    if not found:
        raise ValueError(f"no check {name!r} applies to a model on digits")
    lines = [f"| {words['model']} | `{name}` | {words['computed']} | {words['value']} | {words['statement']} |"]
    lines.append("|---|---|---|---:|---:|")
    for model, row in found:
        outcome = WORDS["outcome"][row["outcome"]] if language == "zh" else row["outcome"]
        for number, finding in enumerate(row["findings"]):
            value = "–" if finding["value"] is None else f"{finding['value']:.4g}"
            if finding["stderr"]:
                value += f" ± {finding['stderr']:.2g}"
            first = (model, outcome) if number == 0 else ("", "")
            computed = finding["computed"].replace("|", r"\|")
            lines.append(f"| {first[0]} | {first[1]} | {computed} | {value} | {finding['expected']} |")
    return "\n".join(lines)
