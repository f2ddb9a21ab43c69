"""Find the compiled guest agent."""

from __future__ import annotations

from pathlib import Path

from belljar.model.errors import HostError

_FOLDER = Path(__file__).parent / "bin"


def agent_binary(architecture: str) -> Path:
    """Return the static executable that is PID 1 in machines of `architecture` (x86_64 or aarch64).

    Raises HostError when it is missing.
    """
    path = _FOLDER / f"agent-{architecture}"
    if not path.is_file():
        raise HostError(
            f"the guest agent for {architecture} is missing; run script/bootstrap (from a clone) or reinstall belljar"
        )
    return path
