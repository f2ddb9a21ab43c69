"""Opens what a command is to run: a path, or standard input."""

from __future__ import annotations

import contextlib
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from belljar.model.errors import InvalidOption, InvalidScript, TooLarge

_CHUNK_BYTES = 64 * 1024


@contextlib.contextmanager
def open_source(name: str, stdin: str | None, max_bytes: int) -> Iterator[tuple[Path, str]]:
    """Yield the path of the script and its file name; `-` reads this command's standard input into a temporary file.

    `stdin` is the value of --stdin. Raises InvalidScript when there is no such file, TooLarge, InvalidOption.
    """
    if name != "-":
        path = Path(name)
        try:
            path.stat()
        except FileNotFoundError:
            raise InvalidScript(f"there is no file or folder {name}") from None
        except OSError as error:
            raise InvalidScript(f"cannot read {name}: {error.strerror}") from None
        yield path, path.resolve().name
        return
    if stdin == "-":
        raise InvalidOption(
            "standard input cannot be both the script and its input; give one of them as a file", option="stdin"
        )
    if sys.stdin.isatty():
        raise InvalidOption("- reads the script from standard input, which is a terminal; pipe a file into it")
    with tempfile.NamedTemporaryFile(prefix="belljar-") as file:
        size = 0
        while chunk := sys.stdin.buffer.read(_CHUNK_BYTES):
            size += len(chunk)
            if size > max_bytes:
                raise TooLarge(f"the script is over {max_bytes >> 20} MB; make it smaller, or raise max_upload_mb")
            file.write(chunk)
        file.flush()
        yield Path(file.name), ""
