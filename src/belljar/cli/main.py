"""The `belljar` command. Each command imports what it needs when it runs, so that `--help` is fast."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from belljar import __version__
from belljar.cli import audit, bench, doctor, gc, image, jobs, key, project, run, sandbox, secret, serve, usage
from belljar.cli.command import prepare
from belljar.cli.failure import OUTPUT_CLOSED, exit_code_of
from belljar.cli.printing import discard_stdout, open_missing_streams
from belljar.cli.signals import Stopped, raise_on_signals
from belljar.system.executables import use_safe_search_path

app = typer.Typer(
    name="belljar",
    help="Run untrusted code, each job in its own microVM.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command("run")(run.run)
app.command("serve")(serve.serve)
app.command("worker")(serve.worker)
app.command("submit")(jobs.submit)
app.add_typer(jobs.app, name="jobs")
app.command("logs")(jobs.logs)
app.add_typer(sandbox.app, name="sandbox")
app.add_typer(image.app, name="image")
app.add_typer(project.app, name="project")
app.command("usage")(usage.usage)
app.add_typer(key.app, name="key")
app.add_typer(secret.app, name="secret")
app.add_typer(audit.app, name="audit")
app.command("gc")(gc.gc)
app.command("doctor")(doctor.doctor)
app.command("bench")(bench.bench)


def _print_version(wanted: bool) -> None:
    if wanted:
        print(__version__)
        raise typer.Exit


@app.callback()
def root(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print belljar's version.")
    ] = False,
) -> None:
    """Run untrusted code, each job in its own microVM."""


@app.command()
def version() -> None:
    """Print belljar's version."""
    print(__version__)


prepare(app)


def main() -> None:
    """Run the command. Every failure is one line on stderr."""
    open_missing_streams()
    sys.exit(_code())


def _code() -> int:
    use_safe_search_path()
    try:
        raise_on_signals()
        code = typer.main.get_command(app).main(prog_name="belljar", standalone_mode=False)
        sys.stdout.flush()  # a help page
    except Stopped as stopped:
        return stopped.exit_code
    except BrokenPipeError:
        discard_stdout()
        return OUTPUT_CLOSED
    except SystemExit:  # typer, when the reader of a help page has gone
        return OUTPUT_CLOSED
    except Exception as error:  # noqa: BLE001 (the last resort)
        return exit_code_of(error)
    return code if isinstance(code, int) else 0
