"""Packs the fakes into executables, each one file: Python's own archive format with a first line for the kernel."""

from __future__ import annotations

import json
import os
import zipfile
from importlib.resources import files
from pathlib import Path
from typing import Any

import yaml

_SOURCES = Path(__file__).parent / "fake"
_TSC = Path(str(files("belljar.node.machines.qemu") / "tsc.py"))
_INTERPRETER = b"#!/usr/bin/python3 -ISs\n"
_MODULES = ("api.py", "behaviour.py", "bridge.py", "description.py", "emulator.py")


def official_description() -> Path | None:
    """Return Firecracker's API description, if available: BELLJAR_FIRECRACKER_DESCRIPTION, or beside the clone."""
    named = os.environ.get("BELLJAR_FIRECRACKER_DESCRIPTION")
    beside = Path(__file__).parents[4] / "shared" / "firecracker" / "firecracker.yaml"
    return next((path for path in (Path(named) if named else beside,) if path.is_file()), None)


def build_fakes(folder: Path, **faults: Any) -> tuple[Path, Path]:
    """Make executables `firecracker` and `jailer` in `folder`, with the given faults; return their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    path = official_description()
    description = yaml.safe_load(path.read_text()) if path is not None else None
    if description is not None:  # keys of responses are numbers in YAML
        description = {"paths": description["paths"], "definitions": description["definitions"]}
    common = {"faults.json": json.dumps(faults), "description.json": json.dumps(description)}
    modules = {name: (_SOURCES / name).read_text() for name in (*_MODULES, "__main__.py")}
    firecracker = _pack(folder / "firecracker", {**common, **modules, "tsc.py": _TSC.read_text()})
    jailer = _pack(folder / "jailer", {**common, "__main__.py": (_SOURCES / "jailer.py").read_text()})
    return firecracker, jailer


def _pack(path: Path, entries: dict[str, str]) -> Path:
    with path.open("wb") as file:
        file.write(_INTERPRETER)
        with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
            for name, text in entries.items():
                archive.writestr(name, text)
    path.chmod(0o755)
    return path
