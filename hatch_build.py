"""Build hook: compiles the guest agent and the BPF program, and bundles the dashboard's scripts, into the package."""

from __future__ import annotations

import importlib.util
import tempfile
from pathlib import Path
from types import ModuleType
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface


class BelljarBuildHook(BuildHookInterface):
    """What it builds becomes package data, none of which needs this Python: the wheel stays py3-none-any.

    A clone that is installed in place has its scripts by `script/dashboard`.
    """

    PLUGIN_NAME = "custom"

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        if self.target_name != "wheel":
            return
        package = Path(self.root) / "src" / "belljar"
        sources = package / "node" / "guest" / "agent"
        compiler = _module(package / "node" / "guest" / "compile.py")
        binaries = compiler.compile_all(sources, package / "images" / "bin", self.app.display_info)
        bpf = package / "node" / "network" / "bpf"
        program = _module(bpf / "compile.py").compile_if_stale(bpf, self.app.display_info)
        if version == "editable":
            return
        included = {path: f"belljar/{path.relative_to(package)}" for path in (*binaries, program)}
        bundle = package / "control" / "web" / "bundle"
        with tempfile.TemporaryDirectory(prefix="belljar-dashboard-") as work:
            _module(package / "control" / "web" / "bundle.py").build(Path(work), bundle, self.app.display_info)
        included |= {path: f"belljar/control/web/bundle/{path.name}" for path in bundle.iterdir()}
        build_data["force_include"].update({str(path): target for path, target in included.items()})


def _module(path: Path) -> ModuleType:
    """Return a module of the package, which is not installed yet."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
