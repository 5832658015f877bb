"""What the commands share: arguments and options, `--set`, and the folder of a run."""

from __future__ import annotations

import re
import shlex
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from loglik.terminal import printable

if TYPE_CHECKING:
    from loglik.data.dataset import Data
    from loglik.data.table_settings import TableSettings
    from loglik.runs import Run

__all__ = [
    "MAX_COUNT",
    "Accumulate",
    "Columns",
    "DataArgument",
    "Device",
    "Devices",
    "From",
    "Json",
    "Label",
    "Missing",
    "Nodes",
    "Out",
    "RunArgument",
    "Samples",
    "Seed",
    "Settings",
    "Strategy",
    "Target",
    "as_options",
    "folder_for",
    "load_model",
    "prompt_of",
    "ranks_of",
    "resume_command",
    "settings_of",
    "share_of",
    "show",
    "show_data",
    "table_of",
    "without_none",
]

DataArgument = Annotated[
    str,
    typer.Argument(
        metavar="DATA",
        help="A name (digits, fashion-mnist, ...), a folder of images or text, tar shards of images "
        "('a/{00..99}.tar'), a table (.csv, .json, .jsonl, .parquet, .feather, .arrow), a .npy, .npz or text file, or "
        "hf:NAME.",
        show_default=False,
    ),
]


def _local_run(path: Path) -> Path:
    """Return a run's folder, downloaded if RUN is on the hub: what a command writes beside a run needs a folder."""
    from loglik.hub import local_run

    return local_run(path)


RunArgument = Annotated[
    Path,
    typer.Argument(
        metavar="RUN",
        help="A folder that `loglik fit` wrote, or hf://OWNER/NAME[@REVISION] on the Hugging Face Hub.",
        callback=_local_run,
    ),
]
From = Annotated[
    str | None,
    typer.Option(
        "--from",
        metavar="KIND",
        help="RUN is a model of another library, in a local folder: diffusers, transformers; or `python`, which RUNS "
        "YOUR CODE: RUN is FILE.py:NAME or package.module:NAME, a model or a function of the data's spec.",
        show_default=False,
    ),
]
Label = Annotated[str | None, typer.Option(metavar="COLUMN", help="The column of a table that holds the labels.")]
Target = Annotated[
    str | None,
    typer.Option(
        metavar="COLUMN[,COLUMN]",
        help="Columns of a table to model given all others: p(targets | inputs). Rows without them are left out.",
    ),
]
Out = Annotated[Path | None, typer.Option(metavar="DIR", help="Where to write; a new folder under runs/ by default.")]
Json = Annotated[Path | None, typer.Option("--json", metavar="FILE", help="Also write the numbers as JSON.")]
MAX_COUNT = 2**31 - 1  # of steps, samples and tokens: an int32
Samples = Annotated[int | None, typer.Option(min=1, max=MAX_COUNT, help="Monte Carlo samples per example, for bounds.")]
Seed = Annotated[int, typer.Option(min=0, max=2**63 - 1, help="Fixes the split, the initial weights and all noise.")]
Device = Annotated[
    str,
    typer.Option(
        metavar="NAME",
        help="Where to compute: cpu, cuda, cuda:1, mps, or auto, a CUDA GPU if there is one, else the CPU.",
    ),
]
Devices = Annotated[
    str | None,
    typer.Option(
        metavar="N",
        help="Number of GPUs (on a CPU, of processes) on each machine, or auto; 1 by default.",
        show_default=False,
    ),
]
Nodes = Annotated[
    int | None, typer.Option(metavar="N", min=1, help="Number of machines; 1 by default.", show_default=False)
]
Strategy = Annotated[
    str | None,
    typer.Option(
        metavar="ddp|fsdp2",
        help="Each of several devices holds all weights (ddp, the default) or a shard of the weights (fsdp2).",
        show_default=False,
    ),
]
Accumulate = Annotated[
    int | None,
    typer.Option(
        metavar="K",
        min=1,
        help="Compute each batch in K parts, which takes less memory; 1 by default.",
        show_default=False,
    ),
]
Settings = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="A training setting or recipe option; repeatable."),
]
Columns = Annotated[
    list[str] | None,
    typer.Option(
        "--column",
        metavar="NAME=KIND",
        help="What a table's column is read as: category, integer, numeric, boolean, date, ignore, or the form of its "
        "dates such as %d/%m/%Y; repeatable.",
    ),
]
Missing = Annotated[
    str | None,
    typer.Option(
        metavar="model|refuse|indicator",
        help="A table's missing values: modelled (the default), an error, or modelled with a column each that says "
        "whether a value is missing.",
        show_default=False,
    ),
]

# Options of fit and compare, which --set refuses.
OWN_OPTIONS = {
    "seed": "--seed",
    "label": "--label",
    "target": "--target",
    "out": "--out",
    "resume": "--resume",
    "samples": "--samples",
    "device": "--device",
    "devices": "--devices",
    "num_nodes": "--nodes",
    "strategy": "--strategy",
    "accumulate": "--accumulate",
    "keep": "--keep",
    "models": "--models",
    "missing": "--missing",
    "columns": "--column",
    "unseen": "--unseen of evaluate",
    "budget": "--budget",
    "max_time": "--max-time or --budget",
}
# Python's arguments in messages, such as `resume=True` or `label="COLUMN"`: options of the commands, and of --set
OPTION = re.compile(
    r'(?<![\w./-])(accumulate|device|devices|inputs|keep|label|missing|models|normal|num_nodes|out|part|per_row|resume|samples|score|seed|split|strategy|target|to|unseen)=(?:"([^"]*)"|(\w*))'
)
COLUMN = re.compile(r"columns=\{(['\"])(.*?)\1: (['\"])(.*?)\3\}")
SETTING = re.compile(r"(?<![\w./-])(alpha|bits|colour|conditional|dequantize|fit|resize|window)=(\w+)")
NOT_SETTINGS = {"callbacks", "data", "density", "settings", "progress", "report"}


def settings_of(pairs: Sequence[str] | None) -> dict[str, Any]:
    """Return `key=value` words as a dictionary."""
    settings = {}
    for pair in pairs or ():
        key, equals, text = (part.strip() for part in pair.partition("="))
        if not equals or not key:
            raise ValueError(f"--set needs key=value, got {pair!r}")
        if key in OWN_OPTIONS or key in NOT_SETTINGS:
            raise ValueError(f"--set cannot set {key!r}" + (f": use {OWN_OPTIONS[key]}" if key in OWN_OPTIONS else ""))
        settings[key] = _value(text)
    return settings


def _value(text: str) -> Any:
    """Return a text as a number (YAML reads 1e-3 as a text), or as YAML reads it."""
    import yaml

    for kind in (int, float):
        with suppress(ValueError):
            return kind(text)
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError:
        raise ValueError(f"--set: {text!r} is not a value") from None


def as_options(message: str) -> str:
    """Return a message in the words of the command line: Python's arguments as options.

    >>> as_options('choose another out=, or pass resume=True; give label="COLUMN" or conditional=True')
    'choose another --out, or pass --resume; give --label COLUMN or --set conditional=true'
    """

    def option(found: re.Match[str]) -> str:
        name, value = found[1].replace("num_", "").replace("_", "-"), found[2] or found[3]
        return f"--{name}" if value in ("", "True", None) else f"--{name} {value}"

    def setting(found: re.Match[str]) -> str:
        return f"--set {found[1]}={found[2].lower() if found[2] in ('True', 'False') else found[2]}"

    message = COLUMN.sub(lambda found: f"--column {shlex.quote(f'{found[2]}={found[4]}')}", message)
    return SETTING.sub(setting, OPTION.sub(option, message))


def table_of(columns: Sequence[str] | None, missing: str | None) -> TableSettings | None:
    """Return the settings of the options --column and --missing; None if there are none."""
    from loglik.data.table_settings import TableSettings

    kinds = {}
    for pair in columns or ():
        name, equals, kind = pair.rpartition("=")
        if not equals or not name:
            raise ValueError(f"--column needs NAME=KIND, got {pair!r}")
        kinds[name] = kind
    return TableSettings(**without_none(missing=missing, columns=kinds or None)) if kinds or missing else None


def show(line: str = "") -> None:
    """Print a line; control characters in it, which may come from data, are printed as escapes."""
    print(printable(line))


def show_data(data: Data) -> None:
    """Print one line that describes data, and one for each column that is left out or not read as it stands."""
    for line in [data.describe(), *data.grouped_notes()]:
        show(as_options(line))


def ranks_of(devices: str | None, nodes: int | None, strategy: str | None, accumulate: int | None) -> dict[str, Any]:
    """Return the training settings of the options --devices, --nodes, --strategy and --accumulate."""
    if devices is not None and devices != "auto" and not (devices.isdecimal() and int(devices) > 0):
        raise ValueError(
            f"--devices must be a number above 0 or auto, got {devices!r}; --device NAME chooses one device"
        )
    number = int(devices) if devices is not None and devices.isdecimal() else devices
    return without_none(devices=number, num_nodes=nodes, strategy=strategy, accumulate=accumulate)


def share_of(text: str, option: str) -> float:
    """Return a share that is written as `1%` or `0.01`.

    Raises ValueError for anything else, and for a share that is not between 0 and 1.
    """
    with suppress(ValueError):
        share = float(text.removesuffix("%")) / (100 if text.endswith("%") else 1)
        if 0 < share < 1:
            return share
    raise ValueError(f"{option} must be a share between 0 and 1, as 1% or 0.01, got {text!r}")


def without_none(**options: Any) -> dict[str, Any]:
    """Return the options that are not None."""
    return {name: value for name, value in options.items() if value is not None}


def folder_for(out: Path | None, source: str, before: str = "", after: str = "") -> Path:
    """Return `out`, or if it is None the first free folder under runs/, named after the data."""
    if out is not None:
        return out
    stem = Path(source).stem or "data"
    stem = "".join(c if c.isalnum() or c in "-_" else "-" for c in stem).strip("-") or "data"
    name, number = f"{before}{stem}{after}", 2
    path = Path("runs") / name
    while path.exists() and (not path.is_dir() or any(path.iterdir())):
        path, number = Path("runs") / f"{name}-{number}", number + 1
    return path


def load_model(
    run: Path,
    kind: str | None,
    data: str | None,
    *,
    label: str | None = None,
    target: str | None = None,
    settings: Sequence[str] | None = None,
    seed: int = 0,
    device: str = "auto",
    sampling: bool = False,
) -> tuple[Run, Any]:
    """Return the run in a folder, or the model of another library that `kind` says, and the data to use.

    Args:
        run: the folder, or the path of the model.
        kind: --from.
        data: DATA; of another library's model they are read, so that the model is of their spec.
        label, target, settings, seed: --label, --target, --set and --seed, for another library's model only.
        device: --device.
        sampling: the data are --like, and may be None; nothing is scored on them.

    Raises ValueError for options that only another library's model has, and where such a model has no data.
    """
    if kind is None:
        for option, value in {"label": label, "target": target, "set": settings}.items():
            if value:
                raise ValueError(f"--{option} goes with --from KIND: a run of `loglik fit` has its own")
        from loglik import runs

        return runs.load(run, device=device), data
    from loglik.adapters.loading import load, load_for

    own: dict[str, Any] = {"device": device, **settings_of(settings)}
    if data is not None:
        return load_for(kind, run, data, label=label, target=target, seed=seed, **own)
    if not sampling:
        raise ValueError("--from needs DATA: a model of another library does not know what it was trained on")
    try:
        return load(kind, run, **own), None
    except ValueError as error:
        if "pass data" not in str(error):
            raise
        raise ValueError(f"{error} (--like DATA)") from error


def prompt_of(text: str | None) -> str:
    """Return a prompt, or the text of the file after an @."""
    text = text or ""
    return Path(text[1:]).read_text(encoding="utf-8") if text.startswith("@") and len(text) > 1 else text


def resume_command(folder: Path) -> str:
    """Return the command that continues the run in a folder: this command with --resume."""
    words = [word for word in sys.argv[1:] if word != "--resume"]
    if not any(word == "--out" or word.startswith("--out=") for word in words):
        words += ["--out", str(folder)]
    return shlex.join(["loglik", *words, "--resume"])
