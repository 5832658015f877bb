"""What a contributor reads and what runs for them name things that exist."""

import ast
import builtins
import re
from pathlib import Path

import pytest
import yaml

import loglik

ROOT = Path(__file__).parents[1]
GUIDE = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
CODE = re.findall(r"`([^`\n]+)`", GUIDE) + re.findall(r"^    (make [^#\n]+)", GUIDE, re.M)
MAKEFILE = (ROOT / "Makefile").read_text(encoding="utf-8")
TARGETS = set(re.findall(r"^([a-z-]+):", MAKEFILE, re.M))
VARIABLES = set(re.findall(r"\$\((?:if \$\()?([A-Z]+)\)", MAKEFILE))
WORKFLOWS = {path.stem: path for path in (ROOT / ".github" / "workflows").iterdir()}
NEW = {  # what the walks write
    "src/loglik/mixture/", "src/loglik/recipes/mixture.py", "tests/test_mixture.py", "src/loglik/transforms/asinh.py",
    "src/loglik/data/NAME.py",
}  # fmt: skip


def names_in(file: Path) -> set[str]:
    """What a module defines, at any depth: functions, classes and variables."""
    tree = ast.walk(ast.parse(file.read_text(encoding="utf-8")))
    names = set()
    for node in tree:
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            names.add(node.name)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            names.add(node.id)
    return names


FILES = [*ROOT.glob("src/**/*.py"), *ROOT.glob("tests/**/*.py")]
DEFINED = {file.relative_to(ROOT).as_posix(): names_in(file) for file in FILES}


def makes(command: str) -> None:
    """Each `make` in a command has a target, and variables that the Makefile reads."""
    for words in re.findall(r"\bmake ([^\n;&|]+)", command):
        for word in re.sub(r'"[^"]*"', "", words).split():
            name, equals, _ = word.partition("=")
            assert name in (VARIABLES if equals else TARGETS), command


@pytest.mark.parametrize("text", sorted(set(CODE)))
def test_what_the_guide_names_exists(text):
    if text.startswith("make "):
        makes(text)
    elif re.fullmatch(r"[\w./-]+(/|\.(py|md|toml|yaml|txt))", text) and text not in NEW:
        assert (ROOT / text).exists() or (ROOT / "src" / "loglik" / text).exists()
    elif text.isidentifier() and not hasattr(builtins, text):
        assert any(text in names for names in DEFINED.values())


def test_what_the_guide_finds_in_a_file_is_there():
    found = re.findall(r"`(\w+)`\s+(?:in|of)\s+`([\w/]+\.py)`", GUIDE)
    assert len(found) > 9
    assert [pair for pair in found if pair[0] not in DEFINED[pair[1]]] == []


def test_the_guides_links_exist():
    links = re.findall(r"\]\(([^)]+)\)", GUIDE)
    assert links and all((ROOT / link).is_file() for link in links)


@pytest.mark.parametrize("name", sorted(WORKFLOWS))
def test_workflows_run_what_the_makefile_has(name):
    jobs = yaml.safe_load(WORKFLOWS[name].read_text(encoding="utf-8"))["jobs"]
    for job in jobs.values():
        for step in job["steps"]:
            makes(step.get("run", ""))


def test_the_versions_tested_are_those_supported():
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    matrix = yaml.safe_load(WORKFLOWS["tests"].read_text(encoding="utf-8"))["jobs"]["test"]["strategy"]["matrix"]
    assert matrix["python"] == re.findall(r'"Programming Language :: Python :: (3\.\d+)"', project)
    oldest, newest = (int(version.split(".")[1]) for version in matrix["torch"])
    assert f'"torch>=2.{oldest},<2.{newest + 1}",' in project
    assert re.search(rf"^torch==2\.{newest}\.\d+$", (ROOT / "constraints.txt").read_text(encoding="utf-8"), re.M)


def test_pre_commit_runs_the_lint_and_types_of_make_test():
    recipe = re.search(r"^test:.*\n((?:\t.*\n)+)", MAKEFILE, re.M)[1].replace("$(BIN)", ".venv/bin")
    commands = [line.strip() for line in recipe.splitlines() if "pytest" not in line]
    (repository,) = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text(encoding="utf-8"))["repos"]
    assert [hook["entry"] for hook in repository["hooks"]] == commands


def test_the_citations_version_is_the_packages():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert (citation["title"], citation["version"]) == ("loglik", loglik.__version__)
