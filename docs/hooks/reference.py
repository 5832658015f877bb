"""A hook of the site: the reference pages, generated when it is built.

[[cli]]                            the commands and their options, from the typer app
[[api loglik.flows]]               the public names of a module, for mkdocstrings
[[include benchmarks/RESULTS.md]]  a file of the repository, without its title, its headings one level lower
"""

import re
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path

ROOT = Path(__file__).parents[2]
LINE = re.compile(r"^\[\[(cli|api|include)(?: (.+?))?\]\]$", re.MULTILINE)
WORDS = {
    "en": {"argument": "argument or option", "default": "default", "meaning": ""},
    "zh": {"argument": "参数或选项", "default": "默认值", "meaning": "含义"},
}


def on_page_markdown(markdown: str, page, **kwargs) -> str:
    """Fill the directives of a page."""
    language = "zh" if page.file.src_path.endswith(".zh.md") else "en"

    def filled(match: re.Match) -> str:
        if match[1] == "cli":
            return "\n\n".join(commands(language))
        if match[1] == "include":
            return included(match[2])
        return names(match[2]) if language == "en" else links_to_names(match[2])

    return LINE.sub(filled, markdown)


def names(module: str) -> str:
    """Return the directives with which mkdocstrings documents each public name of a module.

    What `import loglik` gives is documented once, in the section of loglik.
    """
    top, public = set(import_module("loglik").__all__), import_module(module).__all__
    above = [name for name in public if module != "loglik" and name in top]
    links = ", ".join(f"[`{name}`][loglik.{name}]" for name in above)
    directives = [f"::: {documented(module, name)}" for name in public if name not in above]
    return "\n\n".join([*([f"{links}: see [loglik](#loglik)."] if above else []), *directives])


def links_to_names(module: str) -> str:
    """Return a list of the public names of a module, with links to the English page, where they are documented."""
    top = set(import_module("loglik").__all__)
    lines = []
    for name in import_module(module).__all__:
        path = documented("loglik" if name in top else module, name)
        lines.append(f'- <a id="{path}" href="../../reference/api.html#{path}"><code>{name}</code></a>')
    return "\n".join(lines)


def documented(module: str, name: str) -> str:
    """Return the path of a name for mkdocstrings, which would take a submodule of the same name for it."""
    home = getattr(getattr(import_module(module), name), "__module__", module)
    return f"{home}.{name}" if home.rpartition(".")[2] == name else f"{module}.{name}"


def included(file: str) -> str:
    """Return a Markdown file without its title and comments, with its headings one level lower."""
    text = (ROOT / file).read_text(encoding="utf-8")
    text = re.sub(r"^# .+\n|^<!-- .+ -->\n", "", text, flags=re.MULTILINE)
    return re.sub(r"^##", "###", text, flags=re.MULTILINE).strip()


def commands(language: str) -> Iterator[str]:
    """Yield a section for each command of the app."""
    import typer

    from loglik.cli.commands import app

    for name, command in typer.main.get_command(app).commands.items():
        for path, leaf in leaves(name, command):
            yield f"## loglik {path}\n\n{leaf.help}\n\n```text\n{usage(path, leaf)}\n```"
            if leaf.params:
                yield table(leaf, language)


def leaves(path: str, command) -> Iterator[tuple[str, object]]:
    """Yield the commands below a command, with their paths: the command itself where it has none below."""
    below = getattr(command, "commands", {})
    if not below:
        yield path, command
    for name, child in below.items():
        yield from leaves(f"{path} {name}", child)


def usage(path: str, command) -> str:
    """Return the line that says how a command is called."""
    arguments = [parameter.metavar for parameter in command.params if parameter.param_type_name == "argument"]
    return " ".join(["loglik", path, *arguments, *(["[OPTIONS]"] if len(arguments) < len(command.params) else [])])


def table(command, language: str) -> str:
    """Return the arguments and options of a command as a table."""
    words = WORDS[language]
    lines = [f"| {words['argument']} | {words['default']} | {words['meaning']} |", "|---|---|---|"]
    for parameter in command.params:
        is_argument = parameter.param_type_name == "argument"
        metavar = parameter.metavar or ("" if is_argument or parameter.is_flag else parameter.name.upper())
        call = metavar if is_argument else f"{', '.join(parameter.opts)} {metavar}".strip()
        shown = parameter.default not in (None, False, ())
        default = f"`{parameter.default}`" if shown else ""
        lines.append("| " + " | ".join(cell(text) for text in (f"`{call}`", default, parameter.help or "")) + " |")
    return "\n".join(lines)


def cell(text: str) -> str:
    """Return a text for a cell of a table."""
    return " ".join(text.split()).replace("|", r"\|")
