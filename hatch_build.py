"""Build hook: compiles the guest agent and the BPF program into the package, for wheels and for editable installs."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface


class AgentBuildHook(BuildHookInterface):
    """What it compiles becomes package data, none of which needs this Python: the wheel stays py3-none-any."""

    PLUGIN_NAME = "custom"

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        package = Path(self.root) / "src" / "belljar"
        if self.target_name != "wheel":
            return
        sources, report = package / "node" / "guest" / "agent", self.app.display_info
        agents = _load(package / "node" / "guest" / "compile.py").compile_all(
            sources, package / "images" / "bin", report
        )
        bpf = package / "node" / "network" / "bpf"
        program = _load(bpf / "compile.py").compile_if_stale(bpf, report)
        if version != "editable":
            built = [*agents, program]
            build_data["force_include"].update({str(path): f"belljar/{path.relative_to(package)}" for path in built})


def _load(path: Path) -> ModuleType:
    """Import a file of belljar, which is not installed yet."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
