"""What a container image's config wishes for the programs that run in it: user, folder, environment, command.

Source: the OCI image specification, config.md.
"""

from __future__ import annotations

import re
from typing import Any

from pydantic import Field

from belljar.model.errors import InvalidImage
from belljar.model.value import Value

_ENV_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*\Z")
_MAX_BYTES = 64 * 1024
DEFAULT_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


class ImageConfig(Value):
    user: str = ""
    working_folder: str | None = None
    env: dict[str, str] = Field(default_factory=dict)
    entrypoint: tuple[str, ...] = ()
    command: tuple[str, ...] = ()

    @property
    def search_path(self) -> list[str]:
        return [folder for folder in self.env.get("PATH", DEFAULT_PATH).split(":") if folder.startswith("/")]


def read_wishes(config: dict[str, Any]) -> ImageConfig:
    """The wishes in an image's config. Raises InvalidImage for what is of another type, or endless."""
    wanted = config.get("config") or {}
    if not isinstance(wanted, dict):
        raise InvalidImage("the image's config is no object")
    folder = _text(wanted, "WorkingDir")
    wishes = ImageConfig(
        user=_text(wanted, "User"),
        working_folder=_folder(folder) if folder.strip("/") else None,
        env=_env(_texts(wanted, "Env")),
        entrypoint=_texts(wanted, "Entrypoint"),
        command=_texts(wanted, "Cmd"),
    )
    if len(wishes.model_dump_json()) > _MAX_BYTES:
        raise InvalidImage(f"the image's config wishes for more than {_MAX_BYTES} bytes of environment and arguments")
    return wishes


def _folder(folder: str) -> str:
    parts = [part for part in folder.split("/") if part not in ("", ".")]
    if not folder.startswith("/") or ".." in parts or len(folder.encode()) > 1000:
        raise InvalidImage(f"the image's WORKDIR {folder[:80]!r} is no absolute path")
    return "/" + "/".join(parts)


def _env(pairs: tuple[str, ...]) -> dict[str, str]:
    found = dict(pair.partition("=")[::2] for pair in pairs)
    return {name: text for name, text in found.items() if _ENV_NAME.match(name)}


def _text(wanted: dict[str, Any], name: str) -> str:
    value = wanted.get(name) or ""
    if not isinstance(value, str) or "\0" in value:
        raise InvalidImage(f"the image's {name} is no text")
    return value


def _texts(wanted: dict[str, Any], name: str) -> tuple[str, ...]:
    values = wanted.get(name) or []
    if not isinstance(values, list) or any(not isinstance(each, str) or "\0" in each for each in values):
        raise InvalidImage(f"the image's {name} is no list of texts")
    return tuple(values)
