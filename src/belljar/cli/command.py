"""Prepares commands: groups of flags become options, every command takes --config and --debug, and no output is lost
silently at a command's end.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
import os
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any, get_type_hints

import typer

from belljar.cli.failure import CANNOT_RUN, FAILED, OUTPUT_CLOSED, Failed, exit_code_of
from belljar.cli.printing import discard_stdout, print_message
from belljar.model.errors import InvalidOption

Config = Annotated[
    Path | None, typer.Option("--config", metavar="FILE", help="Settings file to read.", show_default=False)
]
Debug = Annotated[bool, typer.Option("--debug", help="Print tracebacks of errors.")]


def prepare(app: typer.Typer) -> typer.Typer:
    """Prepare all commands of the app, and of the groups in it."""
    for info in app.registered_commands:
        assert info.callback is not None
        info.callback = _with_common_options(info.callback)
    for group in app.registered_groups:
        assert group.typer_instance is not None
        without_command = group.typer_instance.registered_callback
        if without_command is not None and without_command.callback is not None:
            without_command.callback = _with_common_options(without_command.callback)
        prepare(group.typer_instance)
    return app


def _with_common_options(function: Callable[..., None]) -> Callable[..., None]:
    failed = CANNOT_RUN if function.__name__ == "run" else FAILED
    own = list(inspect.signature(function, eval_str=True).parameters.values())
    groups = {each.name: each.annotation for each in own if dataclasses.is_dataclass(each.annotation)}

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
                function(**_grouped(given, groups))
            finally:
                sys.stdout.flush()
        except BrokenPipeError:
            discard_stdout()
            raise Failed(OUTPUT_CLOSED) from None
        except (Failed, typer.Exit):
            raise
        except Exception as error:  # noqa: BLE001 (it goes on as a code and its line)
            raise Failed(exit_code_of(error, failed)) from None

    parameters = [option for each in own for option in _options_of(each, groups)]
    parameters += [_option("config", Config, None), _option("debug", Debug, False)]
    command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    return command


def _options_of(parameter: inspect.Parameter, groups: Mapping[str, Any]) -> list[inspect.Parameter]:
    """Return the options of one parameter of a command: itself, or the fields of its group."""
    if parameter.name not in groups:
        return [parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY)]
    group = groups[parameter.name]
    annotations = get_type_hints(group, include_extras=True)
    return [_option(field.name, annotations[field.name], field.default) for field in dataclasses.fields(group)]


def _option(name: str, annotation: object, default: object) -> inspect.Parameter:
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)


def _grouped(given: dict[str, Any], groups: Mapping[str, Any]) -> dict[str, Any]:
    """Collect the values of each group's fields into the group."""
    values = dict(given)
    return {
        name: group(**{field.name: values.pop(field.name) for field in dataclasses.fields(group)})
        for name, group in groups.items()
    } | values


@functools.cache  # once, also for a command of a group that is a command itself
def _hint(data_dir: Path | None) -> None:
    """Warn that a settings file in the working folder is not read."""
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
        return  # the command itself reports it
    print_message(f"./{NAME} is ignored: anyone could have written it; use it with --config ./{NAME}")
