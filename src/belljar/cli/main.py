"""The `belljar` command. Commands load what they need when they run, so that `--help` is quick."""

from __future__ import annotations

import os
import sys

import typer

from belljar import __version__
from belljar.cli import gc, host, image, jobs, key, run
from belljar.cli.failure import exit_code_of

app = typer.Typer(
    name="belljar",
    help="Runs code that you don't trust, each job sealed in its own microVM.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command("run")(run.run)
app.command("serve")(host.serve)
app.command("worker")(host.worker)
app.command("submit")(jobs.submit)
app.add_typer(jobs.app, name="jobs")
app.command("logs")(jobs.logs)
app.add_typer(image.app, name="image")
app.add_typer(key.app, name="key")
app.command("gc")(gc.gc)
app.command("doctor")(host.doctor)
app.command("bench")(host.bench)


@app.command()
def version() -> None:
    """Print belljar's version."""
    print(__version__)


def main() -> None:
    """Run the command; every expected failure is one line on stderr."""
    command = typer.main.get_command(app)
    try:
        code = command.main(standalone_mode=False)
        sys.stdout.flush()
    except BrokenPipeError:
        # Whoever read our output has gone; nothing more is to be said to it.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 141
    except Exception as error:  # noqa: BLE001 (the last place: what is unexpected is raised again there)
        code = exit_code_of(error)
    except KeyboardInterrupt:
        code = 130
    sys.exit(code if isinstance(code, int) else 0)
