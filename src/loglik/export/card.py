"""The model card of a run: what it is, what its number means, and what it must not be used for, in Markdown."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml

from loglik.data.limits import some
from loglik.evaluation.format import summary
from loglik.evaluation.result import Result
from loglik.runs import Run

__all__ = ["CURVE", "card", "disclosures", "write_curve"]

CURVE = "curve.png"
SHOWN = 12  # names of columns and classes

MEANING = {
    "exact": "`log_prob` is log p(x) exactly.",
    "lower": "`log_prob` is a random draw whose mean is a lower bound of log p(x): the model is at least as good as "
    "the number says, and more Monte Carlo samples make it tighter or less noisy.",
    "estimate": "`log_prob` is an estimate of log p(x), which may lie above or below it.",
}
TASKS = {
    ("classifier", "image"): "image-classification",
    ("classifier", "table"): "tabular-classification",
    ("classifier", "text"): "text-classification",
    ("autoregressive", "text"): "text-generation",
}


def card(run: Run, result: Result | None, repository: str, *, license: str = "unknown", curve: bool = True) -> str:
    """Return the text of README.md: front matter that the hub reads, and what a person should know.

    Args:
        run: the run.
        result: its score on data that it was not trained on; None where it was not scored.
        repository: OWNER/NAME, for the line that loads the run.
        license: of the weights, by its name on the hub.
        curve: whether `CURVE` is beside the card.
    """
    family = run.model.partition(":")[0]
    density = run.density
    event = "p(y | x), the label given the data" if density.event == "y" else "p(x)"
    if density.conditional and density.event == "x":
        event = "p(targets | inputs)" if run.spec.inputs else "p(x | label)"
    article = "An" if family[0] in "aeiou" else "A"
    count = sum(p.numel() for p in density.parameters() if p.requires_grad)
    parts = [
        f"# {_text(repository.rpartition('/')[2])}",
        f"{article} {_text(run.model)} model of {_text(_data_name(run))}: the density {event} in nats, in the units of "
        "the data, trained with [loglik](https://pypi.org/project/loglik/).",
        _table(
            {
                "data": f"{_data_name(run)}: {run.spec.describe()}",
                "bound": density.bound.value,
                "parameters": f"{count:,}",
                "training": f"{run.steps:,} steps in {run.train_seconds:.0f} s, seed {run.config['training']['seed']}",
                "versions": ", ".join(f"{name} {v}" for name, v in run.config.get("versions", {}).items()),
            }
        ),
        "## Numbers",
        _numbers(run, result),
        MEANING[density.bound.value]
        + " Numbers of models of the same data in the same units can be compared; numbers of different data cannot.",
    ]
    if curve:
        parts += ["## Training", f"![nats against the step, of training and validation]({CURVE})"]
    parts += ["## Data", _data(run, license), *_use(run), "## Load", _load(run, repository)]
    return (
        f"---\n{yaml.safe_dump(_front(run, result, family, license), sort_keys=False)}---\n\n"
        + "\n\n".join(parts)
        + "\n"
    )


def _front(run: Run, result: Result | None, family: str, license: str) -> dict[str, Any]:
    front: dict[str, Any] = {"library_name": "loglik", "license": license}
    if (family, run.spec.kind) in TASKS:
        front["pipeline_tag"] = TASKS[family, run.spec.kind]
    front["tags"] = ["density-estimation", "log-likelihood", family, run.spec.kind]
    if result is not None:
        metrics = {"nats": result.nats, "bits_per_dim": result.bits_per_dim, "bits_per_byte": result.bits_per_byte}
        metrics["accuracy"] = result.accuracy
        data = _data_name(run)
        found = {
            "task": {"type": front.get("pipeline_tag", "density-estimation")},
            "dataset": {"type": re.sub(r"[^\w.-]+", "-", data), "name": data, "split": "test"},
            "metrics": [
                {"type": name, "value": float(value), "name": _metric(name, result)}
                for name, value in metrics.items()
                if value is not None
            ],
        }
        front["model-index"] = [{"name": run.model, "results": [found]}]
    return front


def _metric(name: str, result: Result) -> str:
    if name == "nats":
        error = "" if result.stderr is None else f", standard error {result.stderr:.4g}"
        return f"mean log p per {result.unit} ({result.bound}{error})"
    return name.replace("_", " ")


def _data_name(run: Run) -> str:
    name = str(run.config.get("data") or "")
    return "data in memory" if name in ("", "array") else name


def _numbers(run: Run, result: Result | None) -> str:
    if result is not None:
        lines = [f"On {result.n:,} {result.unit}s that it was not trained on: {_text(summary(result))}."]
        lines += [f"Note: {_text(note)}." for note in result.notes]
        return "\n".join(lines)
    best = max((row["validation_nats"] for row in run.history), default=None)
    known = "" if best is None else f" In training its best validation score was {best:.3f} nats."
    return f"The run was not scored when this card was made.{known}"


def _data(run: Run, license: str) -> str:
    spec = run.spec
    lines = [f"{_text(_data_name(run))}: {_text(spec.describe())}. The rows are not here."]
    if spec.columns:
        lines.append(f"Columns: {_text(some([column.name for column in spec.columns][:SHOWN]))}.")
    if spec.inputs:
        lines.append(f"Inputs: {_text(some([column.name for column in spec.inputs][:SHOWN]))}.")
    if spec.classes:
        lines.append(f"Classes: {_text(some(spec.classes[:SHOWN]))}.")
    if license == "unknown":
        lines.append("The licence of the data and of the weights is unknown: ask whoever published this run.")
    return " ".join(lines)


def _use(run: Run) -> list[str]:
    uses = {
        "classifier": "predict labels with their probabilities, and to find the rows that surprise it",
        "autoregressive": "score, complete and draw sequences like the data",
    }
    use = uses.get(run.model.partition(":")[0], "score data like these, draw samples, and find what is unlike them")
    limits = [
        f"The density is of data as it was trained on ({run.spec.describe()}): a number for other data means little.",
        "Samples repeat what the data have, their errors and their biases too.",
        "A high log p does not mean that a row is true, and a low one not that it is wrong.",
        *(line[0].upper() + line[1:] for line in disclosures(run)),
    ]
    return ["## Use", f"Meant to {use}.", "\n".join(f"- {_text(limit.rstrip('.'))}." for limit in limits)]


def _load(run: Run, repository: str) -> str:
    density = run.density
    arguments = "y, x" if density.event == "y" else "x, context" if density.conditional else "x"
    command = "predict {} DATA" if density.event == "y" or run.spec.inputs else "sample {}"
    address = f"hf://{repository}"
    return (
        "```python\n"
        "import loglik\n\n"
        f'run = loglik.load("{address}")\n'
        f"run.density.log_prob({arguments})\n"
        "```\n\n"
        f"or `loglik {command.format(address)}`. No code and no pickle is run by loading: the weights are safetensors, "
        "checked against their SHA-256."
    )


def disclosures(run: Run) -> list[str]:
    """Return what the files of a run tell of its training data, one phrase each."""
    from loglik.mixture.neighbours import Neighbours

    spec, found = run.spec, []
    rows = sum(part.count for part in run.density.modules() if isinstance(part, Neighbours))
    if rows:
        found.append(f"the weights hold {rows:,} rows of the training data, as neighbours")
    columns = (*spec.columns, *spec.inputs)
    if columns:
        names = sum(len(column.categories) for column in columns)
        categories = f", {names:,} names of categories" if names else ""
        found.append(
            f"the file config.yaml has the names of {len(columns)} columns{categories}, and the ranges of their numbers"
        )
    if spec.classes:
        found.append(
            f"the file config.yaml has the names of {len(spec.classes):,} classes, such as {spec.classes[0]!r:.40}"
        )
    if spec.tokenizer is not None and spec.tokenizer.kind != "bytes":
        found.append(f"the file config.yaml has the {spec.levels:,} tokens, which were found in the training text")
    if spec.kind in ("table", "array") and run.model.partition(":")[0] != "classifier":
        found.append("the weights hold quantiles and values that are frequent in a column of the training data")
    return found


def write_curve(run: Run, path: Path) -> bool:
    """Draw the training curve as a picture; return whether there is one."""
    if not run.history:
        return False
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 3.5), layout="constrained")
    run.plot(figure.subplots())
    figure.savefig(path, dpi=120)
    return True


def _table(rows: dict[str, str]) -> str:
    lines = ["| | |", "|---|---|", *(f"| {name} | {_text(value)} |" for name, value in rows.items())]
    return "\n".join(lines)


def _text(value: str) -> str:
    """Return a text as Markdown shows it: names of columns and classes may hold any character."""
    return re.sub(r"([\\`*\[\]<>|#])", r"\\\1", " ".join(value.split()))
