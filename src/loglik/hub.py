"""Runs on the Hugging Face Hub: `hf://OWNER/NAME`, with a folder and a revision where there are some.

The files are downloaded once, to the cache that `huggingface_hub` keeps, and read from there without a connection.
Only the files of a run are downloaded, by name; they are checked as those of any folder are.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

__all__ = ["RUN_FILES", "HubRun", "hub_client", "hub_errors", "local_run"]

RUN_FILES = (
    "config.yaml", "config.sha256", "model.safetensors", "model.sha256", "metrics.csv", "metrics.sha256",
)  # fmt: skip
PREFIX = re.compile(r"hf:/{1,2}(?!/)")  # Path makes one slash of two
WORD = re.compile(r"[\w.-]+")


@dataclass(frozen=True)
class HubRun:
    """The address of a run on the hub.

    >>> HubRun.parse("hf://ada/digits-flow/small@v1")
    HubRun(repository='ada/digits-flow', folder='small', revision='v1')
    """

    repository: str
    folder: str = ""
    revision: str | None = None

    def __str__(self) -> str:
        folder, revision = self.folder and f"/{self.folder}", self.revision and f"@{self.revision}"
        return f"hf://{self.repository}{folder}{revision or ''}"

    @staticmethod
    def parse(address: str | Path) -> HubRun | None:
        """Return the address in a text that begins with hf://; None for any other path. Raises ValueError."""
        text = str(address)
        start = PREFIX.match(text)
        if start is None:
            return None
        path, at, revision = text[start.end() :].partition("@")
        owner, *rest = path.split("/")
        text = PREFIX.sub("hf://", text)
        if (
            not rest
            or not all(WORD.fullmatch(word) and word != ".." for word in (owner, *rest))
            or (at and not revision)
        ):
            raise ValueError(f"a run on the hub is hf://OWNER/NAME[/FOLDER][@REVISION], got {text!r:.200}")
        return HubRun(f"{owner}/{rest[0]}", "/".join(rest[1:]), revision or None)


def local_run(path: str | Path) -> Path:
    """Return the folder of a run: downloaded for an address on the hub, any other path as it is.

    Raises:
        ImportError: huggingface_hub is not installed.
        FileNotFoundError: there is no such repository, revision or run, or it is neither cached nor reachable.
    """
    address = HubRun.parse(path)
    if address is None:
        return Path(path)
    hub = hub_client(str(address))
    wanted = [f"{address.folder}/{name}" if address.folder else name for name in RUN_FILES]
    with hub_errors(str(address), address.revision), _no_bars():
        found = hub.snapshot_download(address.repository, revision=address.revision, allow_patterns=wanted)
    folder = Path(found) / address.folder
    if not (folder / "config.yaml").is_file():
        raise FileNotFoundError(f"{address} is not a run: it has no config.yaml")
    return folder


def hub_client(what: str) -> Any:
    """Return the module huggingface_hub. Raises ImportError, with how to install it."""
    try:
        import huggingface_hub
    except ImportError as error:
        raise ImportError(f"{what} needs huggingface_hub: pip install 'loglik[hub]'") from error
    return huggingface_hub


@contextmanager
def hub_errors(what: str, revision: str | None = None) -> Iterator[None]:
    """Raise errors of the hub's client and of the connection as one line that names the address."""
    from huggingface_hub import errors

    try:
        yield
    except errors.RevisionNotFoundError as error:
        raise FileNotFoundError(f"{what}: there is no revision {revision!r}") from error
    except errors.RepositoryNotFoundError as error:
        raise FileNotFoundError(
            f"{what}: there is no such repository, or it is private and needs a login (hf auth login)"
        ) from error
    except errors.LocalTokenNotFoundError as error:
        raise PermissionError(f"{what} needs a login: run hf auth login, or set HF_TOKEN") from error
    except errors.HFValidationError as error:
        raise ValueError(f"{what} is not a name of the hub: {_line(error)}") from error
    except errors.LocalEntryNotFoundError as error:
        raise FileNotFoundError(
            f"{what} is not in the cache, and the hub cannot be reached: connect, and unset HF_HUB_OFFLINE"
        ) from error
    except errors.HfHubHTTPError as error:
        status = getattr(error.response, "status_code", None)
        if status in (401, 403):
            raise PermissionError(
                f"{what}: the hub refused: log in with a token that may write there (hf auth login)"
            ) from error
        raise OSError(f"{what}: {_line(error)}") from error
    except errors.OfflineModeIsEnabled as error:
        raise ConnectionError(f"{what}: HF_HUB_OFFLINE is set: unset it") from error


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:200]


@contextmanager
def _no_bars() -> Iterator[None]:
    """Draw no progress bars, which would stand among what a command prints."""
    from huggingface_hub.utils import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

    shown = not are_progress_bars_disabled()
    if shown:
        disable_progress_bars()
    try:
        yield
    finally:
        if shown:
            enable_progress_bars()
