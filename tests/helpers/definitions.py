"""What a Python file of the project defines, without importing it."""

import ast
from pathlib import Path

ROOT = Path(__file__).parents[2]


def defines(place: str) -> bool:
    """Whether a file has a definition, such as src/loglik/density.py::Density.loss; an import defines nothing."""
    file, _, symbol = place.partition("::")
    if not (ROOT / file).is_file():
        return False
    node: ast.AST | None = ast.parse((ROOT / file).read_text(encoding="utf-8"))
    for name in symbol.split("."):
        node = next((child for child in getattr(node, "body", []) if name in named(child)), None)
    return node is not None


def named(node: ast.AST) -> list[str]:
    """The names that a statement defines."""
    if isinstance(node, ast.FunctionDef | ast.ClassDef):
        return [node.name]
    targets = node.targets if isinstance(node, ast.Assign) else [node.target] if isinstance(node, ast.AnnAssign) else []
    return [target.id for target in targets if isinstance(target, ast.Name)]
