"""What every command has: the options --config and --debug, a hint, and an end that loses no output silently."""

from __future__ import annotations

import functools
import inspect
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from belljar.cli.failure import CANNOT_RUN, FAILED, OUTPUT_CLOSED, Failed, exit_code_of
from belljar.cli.printing import complain, discard_stdout
from belljar.model.errors import InvalidOption

Config = Annotated[
    Path | None, typer.Option("--config", metavar="FILE", help="Settings file to read.", show_default=False)
]
Debug = Annotated[bool, typer.Option("--debug", help="Print tracebacks of errors.")]


def prepare(app: typer.Typer) -> typer.Typer:
    """Give all commands of the app, and of the groups in it, what every command has."""
    for info in app.registered_commands:
        assert info.callback is not None
        info.callback = _with_common_options(info.callback)
    for group in app.registered_groups:
        assert group.typer_instance is not None
        prepare(group.typer_instance)
    return app


def _with_common_options(function: Callable[..., None]) -> Callable[..., None]:
    failed = CANNOT_RUN if function.__name__ == "run" else FAILED

    @functools.wraps(function)
    def command(*, config: Path | None = None, debug: bool = False, **given: Any) -> None:
        if debug:
            os.environ["BELLJAR_DEBUG"] = "1"
        try:
            if config is not None:
                # For the processes that it starts, too.
                os.environ["BELLJAR_CONFIG"] = str(config.expanduser().absolute())
            _hint(given.get("data_dir"))
            try:
                function(**given)
            finally:
                sys.stdout.flush()
        except BrokenPipeError:
            discard_stdout()
            raise Failed(OUTPUT_CLOSED) from None
        except (Failed, typer.Exit):
            raise
        except Exception as error:  # noqa: BLE001 (it goes on as a code and its line)
            raise Failed(exit_code_of(error, failed)) from None

    added = [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)
        for name, default, annotation in (("config", None, Config), ("debug", False, Debug))
    ]
    own = inspect.signature(function, eval_str=True)
    parameters = [each.replace(kind=inspect.Parameter.KEYWORD_ONLY) for each in own.parameters.values()]
    command.__signature__ = own.replace(parameters=[*parameters, *added])  # type: ignore[attr-defined]
    return command


def _hint(data_dir: Path | None) -> None:
    """Tell whoever relied on it that a settings file in the working folder is not read."""
    from belljar.settings.file import NAME

    here = Path(NAME)
    try:
        if not here.is_file():
            return
        from belljar.settings import settings_file

        used = settings_file(data_dir=data_dir)
        if used is not None and used.exists() and used.samefile(here):
            return
    except (OSError, InvalidOption):
        return  # told by the command itself
    complain(f"./{NAME} is not read, since anybody may have put it there; to use it: --config ./{NAME}")
