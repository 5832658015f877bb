"""The command line: `commands` lists the commands, `options` what they share, `main` turns errors into one line.

Only this package writes messages in the words of the command line.
"""

from __future__ import annotations

import os
import sys

import typer

from loglik.cli.commands import app
from loglik.cli.options import as_options
from loglik.data.limits import shorten
from loglik.ranks import is_first_rank

__all__ = ["app", "main"]

UsageError: type[Exception] = typer.BadParameter.__bases__[0]  # of typer's own click, or of the package
USER_ERRORS = (ValueError, OSError, FloatingPointError, ImportError)
SHARED_ERRORS = (ValueError, FileExistsError, FloatingPointError, ImportError)  # of all ranks: the first prints them


def main() -> None:
    """Run the command line; a user's error prints one line and exits with 2, or raises with `--debug`."""
    # idle threads spin for a few microseconds, then sleep: docs/decisions/networks.md
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ["OMP_WAIT_POLICY"] = "PASSIVE"
        os.environ.setdefault("GOMP_SPINCOUNT", "500")
    debug = "--debug" in sys.argv
    sys.argv = [word for word in sys.argv if word != "--debug"]
    first = True
    try:
        first = is_first_rank()
        if not first:
            sys.stdout = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115
        sys.exit(app(standalone_mode=False))
    except UsageError as error:
        message, context = error.format_message(), error.ctx  # type: ignore[attr-defined]
        if message and first:  # empty without a command, which shows the help
            _print_error(f"{message.rstrip('.')}: see {context.command_path if context else 'loglik'} --help")
    except typer.Abort:
        sys.exit(130)
    except Exception as error:
        if debug or not isinstance(error, (*USER_ERRORS, MemoryError, RuntimeError)):
            raise
        if isinstance(error, (MemoryError, RuntimeError)):
            _print_error(_out_of_memory(error))
            sys.exit(2)
        system = isinstance(error, OSError) and error.filename is not None and error.strerror
        message = f"{shorten(str(error.filename), 200)}: {error.strerror.lower()}" if system else as_options(str(error))  # type: ignore[union-attr]
        if first or not isinstance(error, SHARED_ERRORS):
            _print_error(message)
        if isinstance(error, ConnectionError):  # a rank was lost: the end of its process group may wait for it
            sys.stderr.flush()
            os._exit(2)
    sys.exit(2)


def _out_of_memory(error: MemoryError | RuntimeError) -> str:
    """Return one line about memory that ran out; raise any other error."""
    from loglik.memory import OutOfMemory, is_out_of_memory

    if not is_out_of_memory(error):
        raise error
    if isinstance(error, OutOfMemory):
        return as_options(str(error))
    first = next(iter(str(error).splitlines()), "")
    return f"out of memory{f' ({first[:200]})' if first else ''}: free memory, or use a smaller model or less data"


def _print_error(message: str) -> None:
    print(f"error: {shorten(' '.join(message.split()), 1000)}", file=sys.stderr)
