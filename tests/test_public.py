"""The public face: light to import, silent, complete."""

import ast
import importlib
import pkgutil
import re
import subprocess
import sys
from pathlib import Path

import pytest

import loglik

ROOT = Path(loglik.__file__).parent
MODULES = sorted(module.name for module in pkgutil.walk_packages(loglik.__path__, "loglik."))


def python(code: str) -> str:
    """What code prints, to either stream, in a fresh interpreter with every warning shown."""
    done = subprocess.run([sys.executable, "-W", "always", "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout + done.stderr


HEAVY = "[m for m in ('torch', 'numpy', 'sklearn', 'polars', 'matplotlib', 'lightning_fabric') if m in sys.modules]"


@pytest.mark.parametrize(
    "code",
    [
        "import sys, loglik; loglik.__version__; dir(loglik)",
        "import sys, loglik.cli",
        "import sys, loglik.cli, contextlib, io\n"
        "sys.argv = ['loglik', '--help']\n"
        "with contextlib.suppress(SystemExit), contextlib.redirect_stdout(io.StringIO()) as out: loglik.cli.main()\n"
        "assert 'compare' in out.getvalue()",
        "import sys, loglik.cli, contextlib, io\n"
        "sys.argv = ['loglik', 'fit', '--help']\n"
        "with contextlib.suppress(SystemExit), contextlib.redirect_stdout(io.StringIO()) as out: loglik.cli.main()\n"
        "assert '--max-time' in out.getvalue()",
        "import sys, loglik.cli, contextlib, io\n"
        "sys.argv = ['loglik', 'list', 'data']\n"
        "with contextlib.suppress(SystemExit), contextlib.redirect_stdout(io.StringIO()) as out: loglik.cli.main()\n"
        "assert 'fashion-mnist' in out.getvalue()",
    ],
)
def test_light_things_import_nothing_heavy(code) -> None:
    assert python(f"{code}\nprint({HEAVY})") == "[]\n"


def test_importing_everything_prints_nothing() -> None:
    code = "import importlib\nfor name in {}: importlib.import_module(name)"
    noise = python(code.format([name for name in MODULES if name != "loglik.__main__"]))
    assert [line for line in noise.splitlines() if "loglik" in line] == []


@pytest.mark.parametrize("name", loglik.__all__)
def test_public_names_resolve_and_are_documented(name) -> None:
    thing = getattr(loglik, name)
    assert thing.__doc__ and thing.__doc__.strip()
    assert name in dir(loglik)
    assert thing.__module__.startswith("loglik.")


def test_rooms_resolve_and_others_do_not() -> None:
    assert loglik.data.load is importlib.import_module("loglik.data").load
    assert set(loglik.__all__) <= set(dir(loglik))
    with pytest.raises(AttributeError, match="module 'loglik' has no attribute 'gan'"):
        loglik.gan  # noqa: B018


@pytest.mark.parametrize("name", ["loglik", *MODULES])
def test_every_module_says_what_it_is_and_what_it_offers(name) -> None:
    module = importlib.import_module(name)
    assert module.__doc__ and module.__doc__.strip()
    assert isinstance(module.__all__, list)
    assert len(set(module.__all__)) == len(module.__all__)
    for public in module.__all__:
        assert getattr(module, public) is not None


@pytest.mark.parametrize("file", sorted(ROOT.rglob("*.py")), ids=lambda file: file.relative_to(ROOT).as_posix())
def test_only_the_command_line_speaks_of_its_options(file) -> None:
    """What Python raises or prints names Python's arguments; `cli` translates."""
    tree = ast.parse(file.read_text(encoding="utf-8"))
    documented = {
        id(node.body[0].value)
        for node in ast.walk(tree)
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef)) and isinstance(node.body[0], ast.Expr)
    }
    texts = [node for node in ast.walk(tree) if isinstance(node, ast.Constant) and isinstance(node.value, str)]
    options = [node.value for node in texts if id(node) not in documented and re.search(r"(^|\W)--[a-z]", node.value)]
    assert options == [] or file.is_relative_to(ROOT / "cli")


def test_the_types_are_shipped() -> None:
    assert (Path(loglik.__file__).parent / "py.typed").is_file()


def test_the_version_is_the_packages() -> None:
    project = Path(__file__).parents[1] / "pyproject.toml"
    assert f'version = "{loglik.__version__}"' in project.read_text()
