"""The rooms of src/belljar and what each may know of: dependencies point one way."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "src/belljar"

#: What every room may use.
FOUNDATION = {
    "addresses",
    "background",
    "counters",
    "data_dir",
    "disk_space",
    "errors",
    "executables",
    "local",
    "owned",
    "ownership",
    "settings",
    "settings_file",
    "turns",
    "__version__",
}
#: Room → the rooms it may know of. `store` and `blobs` implement what `jobs` and `scripts` ask for, in their values.
ARROWS = {
    "blobs": set[str](),
    "guest": set[str](),
    "client": set[str](),
    "network": {"machines"},
    "images": {"guest"},
    "scripts": {"blobs", "images"},
    "jobs": {"blobs", "images", "scripts"},
    "store": {"jobs", "scripts"},
    "machines": {"guest", "images"},
    "maintenance": {"blobs", "images", "jobs", "machines", "scripts", "store"},
    "worker": {"blobs", "guest", "images", "jobs", "machines", "network", "scripts", "store"},
    "web": {"jobs", "scripts", "store"},
    "api": {"blobs", "images", "jobs", "scripts", "store", "web"},
    "cli": {
        "api",
        "blobs",
        "client",
        "guest",
        "images",
        "jobs",
        "machines",
        "maintenance",
        "network",
        "scripts",
        "store",
        "worker",
    },
    "__main__": {"cli"},
}
#: Room → of another room, only these modules.
NARROW = {
    # Records, not services: who keeps jobs does nothing with them.
    ("store", "jobs"): {"model", "states", "outcome", "ids", "resolve"},
    ("store", "scripts"): {"model"},
    # An image carries the agent and the prefork programs; what they say is nothing to it.
    ("images", "guest"): {"binary", "programs"},
    # A job's defaults are its image's; the image itself is nothing to it.
    ("jobs", "images"): {"manifest"},
    # A network is a place for a machine to be plugged into, owned as machines are.
    ("network", "machines"): {"faults", "holding", "namespace", "owner", "protocol", "tap", "threads"},
    # A machine boots an image; how it was built and what its languages are is nothing to it.
    ("machines", "images"): {"manifest"},
}
NO_HOME = {"util", "utils", "helper", "helpers", "common", "base", "manager", "misc", "shared"}


def modules() -> Iterator[Path]:
    return (path for path in sorted(PACKAGE.rglob("*.py")) if "migrations" not in path.parts)


def imported(path: Path) -> Iterator[str]:
    """Every module of belljar's that a file names, also inside functions and for types only."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name.split(".")[0] == "belljar")
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} imports relatively"
            if node.module == "belljar":
                yield from (f"belljar.{alias.name}" for alias in node.names)
            elif node.module and node.module.startswith("belljar."):
                yield node.module


def room_of(path: Path) -> str:
    place = path.relative_to(PACKAGE).parts
    return place[0] if len(place) > 1 else path.stem


def test_every_room_has_its_arrows_written_down() -> None:
    rooms = {room_of(path) for path in modules()} - FOUNDATION - {"__init__"}
    assert rooms <= set(ARROWS), "a new room needs a line in ARROWS"


@pytest.mark.parametrize("path", [pytest.param(path, id=str(path.relative_to(PACKAGE))) for path in modules()])
def test_a_room_knows_only_of_rooms_below_it(path: Path) -> None:
    room = room_of(path)
    for name in imported(path):
        target, _, module = name.removeprefix("belljar.").partition(".")
        if target == room or target in FOUNDATION:
            continue
        assert target in ARROWS.get(room, set()), f"{path.relative_to(PACKAGE)} imports {name}"
        narrow = NARROW.get((room, target))
        assert narrow is None or module in narrow, f"{path.relative_to(PACKAGE)} imports {name}"


def test_the_arrows_make_no_circle() -> None:
    left = {room: set(below) for room, below in ARROWS.items()}
    while left:
        free = {room for room, below in left.items() if not below & left.keys()}
        assert free, f"a circle among {sorted(left)}"
        left = {room: below for room, below in left.items() if room not in free}


def test_the_api_loads_nothing_that_starts_machines() -> None:
    code = "import sys; from belljar.control.api.app import create_app; print(*[m for m in sys.modules if m[:8] == 'belljar.'])"
    run = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True, timeout=60)
    rooms = {name.split(".")[1] for name in run.stdout.split()}
    assert "jobs" in rooms
    assert not rooms & {"worker", "machines", "network"}


def test_no_module_is_named_for_nothing() -> None:
    names = {path.stem for path in PACKAGE.rglob("*.py")} | {path.name for path in PACKAGE.rglob("*") if path.is_dir()}
    assert not names & NO_HOME


def test_sql_is_written_in_the_store_alone() -> None:
    users = {room_of(path) for path in modules() if "sqlalchemy" in path.read_text().replace("SQLAlchemy", "")}
    assert users == {"store"}
