"""The command line in this process."""

import io
import sys
from contextlib import redirect_stderr, redirect_stdout
from typing import NamedTuple
from unittest import mock

from loglik import cli


class Done(NamedTuple):
    status: int
    out: str
    err: str


def run(*words: object) -> Done:
    """The command line in this process."""
    out, err, status = io.StringIO(), io.StringIO(), 0
    with mock.patch.object(sys, "argv", ["loglik", *map(str, words)]), redirect_stdout(out), redirect_stderr(err):
        try:
            cli.main()
        except SystemExit as end:
            status = end.code if isinstance(end.code, int) else int(bool(end.code))
    return Done(status, out.getvalue(), err.getvalue())


def well(*words: object) -> str:
    """What a command prints that ends well."""
    done = run(*words)
    assert (done.status, done.err) == (0, "")
    return done.out


def refused(*words: object) -> str:
    """The one line of a command that ends in a user's mistake."""
    done = run(*words)
    assert done.status == 2
    assert done.err.startswith("error: ")
    assert done.err.count("\n") == 1 and done.err.endswith("\n")
    assert "Traceback" not in done.err + done.out
    return done.err
