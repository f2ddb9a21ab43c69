"""Fetch npm packages for an image with this host's npm and its settings; no script of a package runs."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from belljar.images.host_tools import require_tools, run_tool
from belljar.model.errors import ImageBuildError

_TIMEOUT_SECONDS = 900


async def fetch_npm(packages: Sequence[str], *, folder: Path, log: Path) -> dict[str, str]:
    """Install packages and their dependencies into `folder/node_modules`, and return name → version of all.

    Raises MissingTool without npm, ImageBuildError when a package cannot be found.
    """
    require_tools("npm")
    folder.mkdir()
    (folder / "package.json").write_text("{}")
    options = ["--ignore-scripts", "--no-audit", "--no-fund", "--no-package-lock", "--omit=dev", "--loglevel=error"]
    try:
        await run_tool(["npm", "install", *options, *packages], log=log, timeout_seconds=_TIMEOUT_SECONDS, cwd=folder)
    except ImageBuildError as error:
        raise ImageBuildError(f"npm could not install {', '.join(packages)}: {error.message}") from None
    return installed_npm(folder / "node_modules")


def installed_npm(folder: Path) -> dict[str, str]:
    """Return the packages at the top of a `node_modules`, name → version."""
    packages = {}
    for manifest in sorted([*folder.glob("*/package.json"), *folder.glob("@*/*/package.json")]):
        try:
            fields = json.loads(manifest.read_text(errors="replace"))
        except ValueError:
            continue
        if isinstance(fields, dict) and isinstance(fields.get("name"), str):
            packages[fields["name"]] = str(fields.get("version", ""))
    return packages
