"""From the options of a command line to a job's options, and to the file that is to be run."""

from __future__ import annotations

import base64
import contextlib
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from belljar.cli.options import given, pairs, stdin_bytes
from belljar.model.errors import InvalidOption, InvalidScript, TooLarge

_CHUNK_BYTES = 64 * 1024


def job_options(
    *,
    args: list[str] | None,
    image: str | None,
    vcpus: int | None,
    memory: int | None,
    disk: int | None,
    disk_mb_per_second: float | None,
    disk_iops: int | None,
    network_mbit_per_second: float | None,
    timeout: float | None,
    env: list[str] | None,
    stdin: str | None,
    egress: str,
    artifacts: list[str] | None,
    label: list[str] | None,
) -> dict[str, Any]:
    """The options of the HTTP API that were given. Raises InvalidOption."""
    data = stdin_bytes(stdin)
    return given(
        args=args or None,
        image=image,
        vcpus=vcpus,
        memory_mb=memory,
        disk_mb=disk,
        disk_mb_per_second=disk_mb_per_second,
        disk_iops=disk_iops,
        network_mbit_per_second=network_mbit_per_second,
        timeout_seconds=timeout,
        env=pairs(env, "--env") or None,
        stdin_base64=base64.b64encode(data).decode() if data is not None else None,
        egress=egress,
        artifacts=artifacts,
        labels=pairs(label, "--label") or None,
    )


#: What a job wrote, less what its tools keep for their next run.
_ALL_BUT_CACHES = ("**", "!**/__pycache__", "!**/.pytest_cache", "!**/.mypy_cache", "!**/.ruff_cache", "!**/.cache")


def chosen_globs(globs: list[str] | None, *, wanted: bool) -> list[str] | None:
    """Return the artifacts to ask for: the globs, or, without one that takes files in, all but caches if `wanted`."""
    if globs and not all(glob.startswith("!") for glob in globs):
        return globs
    return [*_ALL_BUT_CACHES, *(globs or ())] if wanted or globs else None


@contextlib.contextmanager
def source_of(name: str, stdin: str | None, max_bytes: int) -> Iterator[tuple[Path, str]]:
    """The path of what is to be run and what it is called; `-` is belljar's own standard input, kept in a file.

    `stdin` is what the job's standard input is to be. Raises InvalidScript when there is nothing there, TooLarge,
    InvalidOption.
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
