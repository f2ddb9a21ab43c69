"""A kernel's configuration as text: its options and their values."""

from __future__ import annotations


def options(text: str) -> dict[str, str]:
    """Return the options in a kernel's configuration, name → value; the value of a disabled option is n."""
    values = {}
    for line in text.splitlines():
        if line.startswith("CONFIG_"):
            name, _, value = line.partition("=")
            values[name] = value
        elif line.startswith("# CONFIG_") and line.endswith(" is not set"):
            values[line.split()[1]] = "n"
    return values


def lost_options(requested: str, resulting: str) -> list[str]:
    """Return the options of the requested configuration that differ in the resulting one, as NAME=VALUE.

    The kernel's build drops options that were renamed, and those with a dependency that is missing.
    """
    values = options(resulting)
    return [f"{name}={value}" for name, value in options(requested).items() if values.get(name, "n") != value]
