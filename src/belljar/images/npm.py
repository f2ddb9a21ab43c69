"""Packages of npm's registry for an image, fetched by this host's npm with its settings; none of their scripts runs."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from belljar.images.tool import call, need
from belljar.model.errors import ImageBuildError

_TIMEOUT_SECONDS = 900


async def fetch_npm(packages: Sequence[str], *, folder: Path, log: Path) -> dict[str, str]:
    """Unpack packages and what they need into `folder/node_modules`; returns all of it, name → version.

    Raises MissingTool without npm, ImageBuildError when a package cannot be found.
    """
    need("npm")
    folder.mkdir()
    (folder / "package.json").write_text("{}")
    options = ["--ignore-scripts", "--no-audit", "--no-fund", "--no-package-lock", "--omit=dev", "--loglevel=error"]
    try:
        await call(["npm", "install", *options, *packages], log=log, timeout_seconds=_TIMEOUT_SECONDS, cwd=folder)
    except ImageBuildError as error:
        raise ImageBuildError(f"npm could not install {', '.join(packages)}: {error.message}") from None
    return installed_npm(folder / "node_modules")


def installed_npm(folder: Path) -> dict[str, str]:
    """The packages at the top of a `node_modules`, name → version."""
    found = {}
    for manifest in sorted([*folder.glob("*/package.json"), *folder.glob("@*/*/package.json")]):
        try:
            fields = json.loads(manifest.read_text(errors="replace"))
        except ValueError:
            continue
        if isinstance(fields, dict) and isinstance(fields.get("name"), str):
            found[fields["name"]] = str(fields.get("version", ""))
    return found
