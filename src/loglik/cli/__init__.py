"""The command line: `options` are read, `commands` run, and a user's mistake becomes one line here, in the command
line's own words, and nowhere else."""

from __future__ import annotations

import os
import sys

import typer

from loglik.cli.commands import app
from loglik.cli.options import as_options, follower

__all__ = ["app", "main"]

# a mistake in the words themselves, of the click that typer holds: its own, or the package
UsageError: type[Exception] = typer.BadParameter.__bases__[0]
MISTAKES = (ValueError, OSError, FloatingPointError, ImportError)


def main() -> None:
    """Run the command line: a user's mistake is one line and exit status 2, with `--debug` a traceback."""
    # waiting threads spin for a few microseconds, then sleep: docs/decisions/networks.md
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ["OMP_WAIT_POLICY"] = "PASSIVE"
        os.environ.setdefault("GOMP_SPINCOUNT", "500")
    if follower():
        sys.stdout = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115
    debug = "--debug" in sys.argv
    sys.argv = [word for word in sys.argv if word != "--debug"]
    try:
        sys.exit(app(standalone_mode=False))
    except UsageError as error:
        words, asked = error.format_message(), error.ctx  # type: ignore[attr-defined]
        if words:  # it is empty where no command was given, which shows the help
            _complain(f"{words.rstrip('.')}: see {asked.command_path if asked else 'loglik'} --help")
    except typer.Abort:
        sys.exit(130)
    except MISTAKES as error:
        if debug:
            raise
        system = isinstance(error, OSError) and error.filename is not None and error.strerror
        words = f"{error.filename}: {error.strerror.lower()}" if system else as_options(str(error))  # type: ignore[union-attr]
        _complain(words)
    sys.exit(2)


def _complain(words: str) -> None:
    print(f"error: {' '.join(words.split())}", file=sys.stderr)
