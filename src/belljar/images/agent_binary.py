"""Where the compiled agent lies."""

from __future__ import annotations

from pathlib import Path

from belljar.model.errors import HostError

_FOLDER = Path(__file__).parent / "bin"


def agent_binary(architecture: str) -> Path:
    """The static executable that is PID 1 in machines of `architecture` (x86_64 or aarch64).

    Raises HostError when there is none, with what to do.
    """
    path = _FOLDER / f"agent-{architecture}"
    if not path.is_file():
        raise HostError(
            f"the guest agent for {architecture} is not there; run script/bootstrap (from a clone) or reinstall belljar"
        )
    return path
