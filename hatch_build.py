"""Build hook: compiles the guest agent into the package, for wheels and for editable installs."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface


class AgentBuildHook(BuildHookInterface):
    """The agent's executables become package data. They are static and need no Python: the wheel stays py3-none-any."""

    PLUGIN_NAME = "custom"

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        package = Path(self.root) / "src" / "belljar"
        if self.target_name != "wheel":
            return
        spec = importlib.util.spec_from_file_location("compile", package / "node" / "guest" / "compile.py")
        assert spec is not None and spec.loader is not None
        compiler = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(compiler)
        sources = package / "node" / "guest" / "agent"
        binaries = compiler.compile_all(sources, package / "images" / "bin", self.app.display_info)
        if version != "editable":
            build_data["force_include"].update({str(path): f"belljar/images/bin/{path.name}" for path in binaries})
