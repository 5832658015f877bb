"""The commands, in the order in which help lists them."""

from __future__ import annotations

import typer

from loglik.cli.anomalies import anomalies
from loglik.cli.lend import export, push
from loglik.cli.look import describe, inspect, list_data, list_models, verify
from loglik.cli.report import report
from loglik.cli.train import compare, fit
from loglik.cli.use import encode, evaluate, fill, predict, sample

__all__ = ["app"]

app = typer.Typer(
    help="Deep learning by maximum likelihood: every model is a density, every number is comparable.",
    epilog="Every command accepts --debug, which shows the traceback of an error.",
    no_args_is_help=True,
    add_completion=True,
    pretty_exceptions_enable=False,
)
for command in (
    compare, fit, evaluate, report, predict, sample, encode, fill, anomalies, describe, inspect, verify, export, push,
):  # fmt: skip
    app.command()(command)

listing = typer.Typer(no_args_is_help=True, help="List the models or the named data sets.")
listing.command("models")(list_models)
listing.command("data")(list_data)
app.add_typer(listing, name="list")
