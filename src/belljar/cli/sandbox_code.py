"""`belljar sandbox run` and `contexts`: code whose variables live from one call to the next."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from belljar.cli import options
from belljar.cli.failure import Failed
from belljar.cli.flags import ServerFlags
from belljar.cli.printing import print_json, print_message, print_table
from belljar.cli.sandbox_commands import SandboxId
from belljar.cli.server import connect
from belljar.model.errors import InvalidOption, host_error

if TYPE_CHECKING:
    from belljar.client import CodeEvent, CodeResult, RichResult, Sandbox

_TIMED_OUT = 124
_MAX_OUTPUT_BYTES = 64 << 20
#: What --save writes, with the suffix of its files.
_SAVED = {"image/png": "png", "image/jpeg": "jpg", "image/svg+xml": "svg", "text/html": "html"}


def run_code(
    sandbox_id: SandboxId,
    code: Annotated[str, typer.Argument(metavar="CODE|-", help="The code; '-' reads it from stdin.")],
    server: ServerFlags,
    language: Annotated[
        str | None, typer.Option("--language", "-l", metavar="NAME", help="python (default) or javascript.")
    ] = None,
    context: Annotated[
        str | None, typer.Option(metavar="ID", help="Context to run it in. Default: that of the language.")
    ] = None,
    timeout: Annotated[float | None, typer.Option(metavar="S", help="Seconds until it is interrupted.")] = None,
    save: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Folder for the images and HTML that it shows.")
    ] = None,
    as_json: options.Json = False,
) -> None:
    """Run code in a context of a sandbox; its variables stay for the next call.

    Its output goes to stdout and stderr, the values that it shows to stdout, an exception's traceback to stderr.

    1: it raised something; 124: it timed out.
    """
    if context is not None and language is not None:
        raise InvalidOption("--context has a language already; leave out --language", option="language")
    text = _code(code)
    with connect(server) as client:
        box = client.get_sandbox(sandbox_id)
        on_event = None if as_json else _print
        result = _run(box, text, language or "python", context, timeout_seconds=timeout, on_event=on_event)
    if save is not None:
        _save(result.results, save)
    if as_json:
        print_json(_public(result))
    raise Failed(_TIMED_OUT if result.timed_out else 1 if result.error is not None else 0)


def contexts(sandbox_id: SandboxId, server: ServerFlags, as_json: options.Json = False) -> None:
    """List the contexts of a sandbox."""
    with connect(server) as client:
        found = client.get_sandbox(sandbox_id).contexts()
    if as_json:
        print_json(found)
    else:
        rows = [(each.id, each.language, each.status, each["cwd"], each["started_at"][:19]) for each in found]
        print_table(("ID", "LANGUAGE", "STATUS", "CWD", "STARTED"), rows)


def _code(argument: str) -> str:
    if argument != "-":
        return argument
    data = options.stdin_bytes("-") or b""
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        raise InvalidOption(f"the code on stdin is no UTF-8 (byte {error.start})", option="code") from None


def _run(box: Sandbox, code: str, language: str, context: str | None, **given: Any) -> CodeResult:
    if context is None:
        return box.run_code(code, language, max_output_bytes=_MAX_OUTPUT_BYTES, **given)
    return box.get_context(context).run(code, max_output_bytes=_MAX_OUTPUT_BYTES, **given)


def _print(event: CodeEvent) -> None:
    from belljar.cli.passthrough import write_all, write_error

    text, file = event.text or "", 2 if event.kind in ("stderr", "error") else 1
    if event.result is not None:
        text = _shown(event.result)
    elif event.error is not None:
        text = event.error.traceback or f"{event.error.name}: {event.error.message}"
        text = text if text.endswith("\n") else f"{text}\n"
    sys.stdout.flush()
    try:
        write_all(file, text.encode(errors="replace"), lambda: False)
    except BrokenPipeError:
        raise
    except OSError as error:
        raise write_error(error) from None


def _shown(result: RichResult) -> str:
    others = [mime for mime in result.data if mime in _SAVED]
    note = f" [{', '.join(others)}: --save writes it into a file]" if others else ""
    return f"{result.text or ''}{note}\n"


def _save(results: list[RichResult], folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for number, (mime, data) in enumerate(_files(results), 1):
            path = folder / f"{number}.{_SAVED[mime]}"
            path.write_bytes(data)
            print_message(f"wrote {path}")
    except OSError as error:
        raise host_error(error, "write what the code shows") from error


def _files(results: list[RichResult]) -> Iterator[tuple[str, bytes]]:
    for each in results:
        pieces = (each.png, each.jpeg, (each.svg or "").encode(), (each.html or "").encode())
        yield from ((mime, data) for mime, data in zip(_SAVED, pieces, strict=True) if data)


def _public(result: CodeResult) -> dict[str, Any]:
    error = result.error
    return {
        "stdout": result.stdout,
        "stderr": result.stderr,
        "results": [{"is_main": each.is_main, "data": each.data} for each in result.results],
        "error": error and {"name": error.name, "message": error.message, "traceback": error.traceback},
        **result.fields,
    }
