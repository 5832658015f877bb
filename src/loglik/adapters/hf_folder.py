"""A model in a local folder, as transformers' `save_pretrained` wrote it: read without pickles and code of its own."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from loglik.data.limits import first_line, quote

__all__ = ["labels_of", "load_pretrained", "load_tokenizer", "pickles_in", "quiet", "read_json"]

PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".msgpack", ".h5")


def read_json(path: Path, name: str) -> dict[str, Any]:
    """Return the object in a JSON file of a folder.

    Raises FileNotFoundError where there is none, and ValueError where it is damaged.
    """
    if not path.is_dir():
        raise FileNotFoundError(f"{path}: no such folder: give the folder that the model's save_pretrained wrote")
    file = path / name
    if not file.is_file():
        raise FileNotFoundError(f"{path} has no {name}: give the folder that the model's save_pretrained wrote")
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{file} is damaged: {first_line(error)}") from None
    if not isinstance(found, dict):
        raise ValueError(f"{file} is damaged: it holds no object")
    return found


def pickles_in(path: Path) -> list[str]:
    """Return the names of the files of a folder that may be pickles, which can run code."""
    return [file.name for file in sorted(path.iterdir()) if file.suffix in PICKLES]


def load_pretrained(auto: Any, path: Path, *, weights: bool = True) -> Any:
    """Return what an Auto class of transformers reads from a local folder.

    Args:
        auto: such as `AutoModelForCausalLM` or `AutoTokenizer`.
        path: the folder.
        weights: whether the class reads weights, from safetensors only.

    Raises ValueError for weights in pickles, code of the model's own, missing weights, and files that do not fit.
    """
    config = read_json(path, "config.json")
    if "auto_map" in config and weights:
        raise ValueError(
            f"{path}: the model needs code of its own (auto_map in config.json), which is not run: load it yourself, "
            "and pass it to loglik.adapters.from_transformers"
        )
    if weights and not any(path.glob("*.safetensors")):
        found = pickles_in(path)
        pickled = f" but {found[0]}, which may be a pickle and can run code: it is not read" if found else ""
        raise ValueError(f"{path} has no weights in safetensors{pickled}; save them with model.save_pretrained(PATH)")
    own: dict[str, Any] = (
        {"use_safetensors": True, "output_loading_info": True, "ignore_mismatched_sizes": True} if weights else {}
    )
    try:
        with quiet():
            loaded = auto.from_pretrained(str(path), local_files_only=True, trust_remote_code=False, **own)
    except Exception as error:  # a stranger's files can be wrong in any way
        raise ValueError(f"{path}: transformers cannot read it: {first_line(error)}") from error
    if not weights:
        return loaded
    model, information = loaded
    if wrong := [*information.get("missing_keys", ()), *information.get("mismatched_keys", ())]:
        name = sorted(str(key[0] if isinstance(key, tuple) else key) for key in wrong)[0]
        raise ValueError(
            f"{path}: the weights have no {quote(name)} of the shape that {type(model).__name__} needs, so it would be "
            f"random ({len(wrong)} such): they are another model's"
        )
    return model


def load_tokenizer(path: Path, tokenizer: str | None = None) -> Any:
    """Return the tokenizer in a model's folder, or in another. Raises ValueError where there is none."""
    from transformers import AutoTokenizer

    folder = path if tokenizer is None else Path(tokenizer)
    if not any((folder / name).is_file() for name in ("tokenizer.json", "tokenizer_config.json")):
        raise ValueError(
            f"{folder} has no tokenizer: save it there with tokenizer.save_pretrained(PATH), or pass tokenizer=PATH"
        )
    return load_pretrained(AutoTokenizer, folder, weights=False)


def labels_of(path: Path, count: int) -> list[str] | int:
    """Return the names of a classifier's outputs, or their number where they have none."""
    labels = {int(number): str(name) for number, name in (read_json(path, "config.json").get("id2label") or {}).items()}
    unnamed = [f"LABEL_{number}" for number in range(count)]
    names = [labels.get(number, name) for number, name in enumerate(unnamed)]
    return count if names == unnamed else names


@contextmanager
def quiet() -> Iterator[None]:
    """Keep transformers from printing in a block."""
    from transformers.utils import logging

    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity(logging.CRITICAL)
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()
