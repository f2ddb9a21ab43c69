"""The prefork programs: interpreters' own scripts that wait in a machine to become the job's.

Data for the initramfs, where the agent finds them by name; a language in an image's manifest names one.
"""

from __future__ import annotations

from importlib.resources import files


def prefork_programs() -> dict[str, bytes]:
    """Every program's text by its name, sorted."""
    folder = files("belljar.guest") / "prefork"
    return {entry.name: entry.read_bytes() for entry in sorted(folder.iterdir(), key=lambda each: each.name)}
