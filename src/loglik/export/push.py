"""push: a run to a repository of the Hugging Face Hub, with a model card, or to a folder in the same form."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from loglik import files
from loglik.data.limits import first_line
from loglik.evaluation.evaluate import evaluate
from loglik.evaluation.result import Result
from loglik.export.card import CURVE, card, disclosures, write_curve
from loglik.hub import HubRun, hub_client, hub_errors
from loglik.runs import Run, check_empty, write_config, write_metrics, write_weights

__all__ = ["Push", "prepare"]

REPLACED = ("source",)  # of config.yaml


@dataclass(frozen=True)
class Push:
    """A run's files in a folder, ready to be uploaded.

    Attributes:
        address: where `upload` puts them.
        folder: has them now.
        tells: what they tell of the training data.
        unscored: why the card has no score; empty where it has one.
    """

    address: HubRun
    folder: Path
    tells: list[str]
    unscored: str

    def describe(self) -> list[str]:
        """Return a line for each file, and for what the files tell."""
        sizes = [(path.name, path.stat().st_size) for path in sorted(self.folder.iterdir())]
        lines = [f"{name}: {size:,} bytes" for name, size in sizes]
        lines += [f"note: {tell}" for tell in self.tells]
        return lines + ([f"note: the card has no score: {self.unscored}"] if self.unscored else [])

    def upload(self, *, private: bool = False) -> str:
        """Upload the files, and return the address of the commit. The token is the one of `hf auth login` or HF_TOKEN.

        Raises:
            ImportError: huggingface_hub is not installed.
            PermissionError: there is no token, or it may not write there.
        """
        what = str(self.address)
        hub = hub_client(what)
        with hub_errors(what, self.address.revision):
            api = hub.HfApi()
            api.create_repo(self.address.repository, private=private, exist_ok=True)
            if self.address.revision is not None:
                api.create_branch(self.address.repository, branch=self.address.revision, exist_ok=True)
            commit = api.upload_folder(
                repo_id=self.address.repository,
                folder_path=self.folder,
                path_in_repo=self.address.folder or None,
                revision=self.address.revision,
                commit_message="Upload a loglik run",
            )
        return str(commit.commit_url)


@contextmanager
def prepare(
    run: Run,
    repository: str,
    *,
    to: str | Path | None = None,
    data: Any = None,
    license: str = "unknown",
    seed: int = 0,
) -> Iterator[Push]:
    """Write a run's files and card to a folder, a temporary one if `to` is None, and yield what would be uploaded.

    config.yaml does not say where the training data were, unless they have a public name; nothing else of this machine
    is in the files.

    Args:
        run: the run, of a model that `load` can build.
        repository: OWNER/NAME, or `hf://OWNER/NAME[/FOLDER][@REVISION]`.
        to: a new or empty folder.
        data: to score the run on for the card; if None, the test split of its own data, if they are there.
        license: of the weights, by its name on the hub.
        seed: of the score's noise.

    Raises ValueError for a density that was built by hand, and FileExistsError for a folder that has files.
    """
    address = HubRun.parse(repository if repository.startswith("hf:") else f"hf://{repository}")
    assert address is not None
    if run.config.get("model") is None or "training" not in run.config or ":export" in str(run.config["model"]):
        raise ValueError("a density that was built by hand cannot be loaded by others: push a run of `loglik fit`")
    result, unscored = _score(run, data, seed)
    with _folder(to) as folder:
        write_config(folder, _public(run.config))
        write_weights(folder, run.density)
        write_metrics(folder, run.history)
        curve = write_curve(run, folder / CURVE)
        name = f"{address.repository}/{address.folder}" if address.folder else address.repository
        files.write_text(folder / "README.md", card(run, result, name, license=license, curve=curve))
        yield Push(address, folder, disclosures(run), unscored)


@contextmanager
def _folder(to: str | Path | None) -> Iterator[Path]:
    if to is None:
        with tempfile.TemporaryDirectory() as temporary:
            yield Path(temporary)
        return
    check_empty(Path(to), resumable=False)
    Path(to).mkdir(parents=True, exist_ok=True)
    yield Path(to)


def _public(config: dict[str, Any]) -> dict[str, Any]:
    """Return a configuration without the paths of this machine."""
    source, data = config.get("source"), str(config.get("data") or "")
    local = source is not None and Path(source).is_absolute()
    return {**config, "source": None if local else source, "data": Path(data).name if "/" in data and local else data}


def _score(run: Run, data: Any, seed: int) -> tuple[Result | None, str]:
    """Return the score of a run, or why there is none."""
    try:
        return evaluate(run, data, seed=seed), ""
    except (ValueError, OSError) as error:
        if data is not None:
            raise
        return None, first_line(error)
