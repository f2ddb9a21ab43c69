"""Parse the config of a container image: user, working folder, environment, entrypoint, command.

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
    """The fields of an image's config that belljar uses."""

    user: str = ""
    working_folder: str | None = None
    env: dict[str, str] = Field(default_factory=dict)
    entrypoint: tuple[str, ...] = ()
    command: tuple[str, ...] = ()

    @property
    def search_path(self) -> list[str]:
        """The absolute folders of PATH."""
        return [folder for folder in self.env.get("PATH", DEFAULT_PATH).split(":") if folder.startswith("/")]


def read_image_config(config: dict[str, Any]) -> ImageConfig:
    """Parse the `config` object of an image's config. Raises InvalidImage for a wrong type, or over 64 KiB."""
    fields = config.get("config") or {}
    if not isinstance(fields, dict):
        raise InvalidImage("the image's config is not a JSON object")
    folder = _text(fields, "WorkingDir")
    parsed = ImageConfig(
        user=_text(fields, "User"),
        working_folder=_folder(folder) if folder.strip("/") else None,
        env=_env(_texts(fields, "Env")),
        entrypoint=_texts(fields, "Entrypoint"),
        command=_texts(fields, "Cmd"),
    )
    if len(parsed.model_dump_json()) > _MAX_BYTES:
        raise InvalidImage(f"image config exceeds {_MAX_BYTES // 1024} KiB; shorten its environment and arguments")
    return parsed


def _folder(folder: str) -> str:
    parts = [part for part in folder.split("/") if part not in ("", ".")]
    if not folder.startswith("/") or ".." in parts or len(folder.encode()) > 1000:
        raise InvalidImage(f"the image's WORKDIR {folder[:80]!r} is not a valid absolute path")
    return "/" + "/".join(parts)


def _env(pairs: tuple[str, ...]) -> dict[str, str]:
    variables = dict(pair.partition("=")[::2] for pair in pairs)
    return {name: text for name, text in variables.items() if _ENV_NAME.match(name)}


def _text(fields: dict[str, Any], name: str) -> str:
    value = fields.get(name) or ""
    if not isinstance(value, str) or "\0" in value:
        raise InvalidImage(f"the image's {name} is not a string")
    return value


def _texts(fields: dict[str, Any], name: str) -> tuple[str, ...]:
    values = fields.get(name) or []
    if not isinstance(values, list) or any(not isinstance(each, str) or "\0" in each for each in values):
        raise InvalidImage(f"the image's {name} is not a list of strings")
    return tuple(values)
