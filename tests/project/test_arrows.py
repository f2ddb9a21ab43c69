"""The packages of src/belljar and what each may import: dependencies point one way."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from support.paths import ROOT

PACKAGE = ROOT / "src/belljar"

#: Package → the packages it may import. `control` and `node` never meet but in `link`.
ARROWS: dict[str, set[str]] = {
    "model": set(),
    "system": {"model"},
    # Where things lie in the data folder; `local_server` reads what a server leaves there for commands on its host.
    "data_dir": {"model", "system"},
    "settings": {"model", "system", "data_dir"},
    "local_server": {"system", "data_dir"},
    "images": {"model", "system", "settings", "data_dir"},
    "packages": {"model", "system", "settings", "data_dir", "images"},
    "scripts": {"model", "system", "settings", "data_dir", "images", "packages"},
    "link": {"model"},
    # Without a URL, a client finds the server as the commands do.
    "client": {"model", "system", "settings", "data_dir", "local_server"},
    "__init__": {"client"},
    "control": {"model", "system", "settings", "data_dir", "local_server", "images", "packages", "scripts", "link"},
    "node": {"model", "system", "settings", "data_dir", "images", "packages", "scripts", "link"},
    "app": {
        "model",
        "system",
        "settings",
        "data_dir",
        "local_server",
        "images",
        "packages",
        "scripts",
        "link",
        "control",
        "node",
    },
}
_BELOW_COMMANDS = {*ARROWS}
ARROWS |= {
    "doctor": _BELOW_COMMANDS,
    "bench": {*_BELOW_COMMANDS, "doctor"},
    "cli": {*_BELOW_COMMANDS, "doctor", "bench"},
    "__main__": {"cli"},
}
#: (package, imported package) → the only modules of it that may be imported.
NARROW = {
    # A machine boots an image; how it was built is nothing to it.
    ("node/machines", "images"): {"prefork_programs"},
}
NO_HOME = {"util", "utils", "helper", "helpers", "common", "base", "manager", "misc", "shared"}


def modules() -> Iterator[Path]:
    return (path for path in sorted(PACKAGE.rglob("*.py")) if "migrations" not in path.parts)


def imported(path: Path) -> Iterator[str]:
    """Yield every module of belljar's that a file names, also inside functions and for types only."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name.split(".")[0] == "belljar")
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} imports relatively"
            if node.module == "belljar":
                yield from (f"belljar.{alias.name}" for alias in node.names)
            elif node.module and node.module.startswith("belljar."):
                yield node.module


def package_of(path: Path) -> str:
    place = path.relative_to(PACKAGE).parts
    return place[0] if len(place) > 1 else path.stem


def test_every_package_has_its_arrows_written_down() -> None:
    assert {package_of(path) for path in modules()} - {"__init__"} <= set(ARROWS), (
        "a new package needs a line in ARROWS"
    )


def test_a_package_imports_only_packages_below_it() -> None:
    wrong = []
    for path in modules():
        package = package_of(path)
        for name in imported(path):
            target = name.removeprefix("belljar.").partition(".")[0]
            if target not in {package, "__version__"} | ARROWS.get(package, set()):
                wrong.append(f"{path.relative_to(PACKAGE)} imports {name}")
    assert not wrong, "\n".join(wrong)


def test_the_two_sides_never_import_each_other() -> None:
    assert "node" not in ARROWS["control"] and "control" not in ARROWS["node"]
    for package in ("model", "system", "settings", "data_dir", "images", "packages", "scripts", "link", "client"):
        assert not {"control", "node"} & ARROWS[package]


def test_machines_know_only_the_image_they_boot() -> None:
    wrong = []
    for (package, target), allowed in NARROW.items():
        for path in modules():
            if path.relative_to(PACKAGE).as_posix().startswith(f"{package}/"):
                wrong += [
                    f"{path.relative_to(PACKAGE)} imports {name}"
                    for name in imported(path)
                    if name.startswith(f"belljar.{target}.") and name.split(".")[2] not in allowed
                ]
    assert not wrong, "\n".join(wrong)


def test_the_arrows_make_no_circle() -> None:
    left = {package: below & set(ARROWS) for package, below in ARROWS.items()}
    while left:
        free = {package for package, below in left.items() if not below & left.keys()}
        assert free, f"a circle among {sorted(left)}"
        left = {package: below for package, below in left.items() if package not in free}


def test_the_api_loads_nothing_that_starts_machines() -> None:
    code = (
        "import sys; from belljar.control.api.app import create_app; "
        "print(*[name for name in sys.modules if name.startswith('belljar.')])"
    )
    run = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True, timeout=60)
    packages = {name.split(".")[1] for name in run.stdout.split()}
    assert "control" in packages
    assert "node" not in packages


def test_a_run_without_a_server_loads_no_part_of_a_server() -> None:
    """Its start is what a user waits for: a database, an object store or the networks take longer to load than it."""
    code = "import sys; import belljar.app.local_run, belljar.cli.run_here, belljar.cli.terminal; print(*sys.modules)"
    run = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True, timeout=60)
    loaded = set(run.stdout.split())
    assert "belljar.node.worker.runner" in loaded
    assert not loaded & {"sqlalchemy", "fastapi", "starlette", "uvicorn", "obstore", "pyroute2", "dns"}
    control = {name for name in loaded if name.startswith("belljar.control.")}
    assert control == {f"belljar.control.{name}" for name in ("jobs", "jobs.egress_limit", "jobs.resolve")}


def test_no_module_is_named_for_nothing() -> None:
    names = {path.stem for path in PACKAGE.rglob("*.py")} | {path.name for path in PACKAGE.rglob("*") if path.is_dir()}
    assert not names & NO_HOME


def test_sql_is_written_in_the_store_alone() -> None:
    users = {
        path.relative_to(PACKAGE).parts[:2]
        for path in modules()
        if "sqlalchemy" in path.read_text().replace("SQLAlchemy", "")
    }
    assert users == {("control", "store")}
