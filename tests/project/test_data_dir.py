"""DataDir alone knows where things lie in the data folder, and docs/operating.md lists all of it."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

from belljar.data_dir import DataDir
from belljar.settings import Settings
from project.test_arrows import PACKAGE, modules
from support.paths import ROOT

#: Expressions for the data folder, and for folders of it whose content DataDir names too.
_FOLDERS = re.compile(r"(\w+\.)*_?data_dir|(\w+\.)*_?paths\.(root|run|cache)|DataDir\(.*\)\.(root|run|cache)")


def places() -> dict[str, str]:
    """Return the paths that DataDir names, relative to the data folder, by property."""
    data_dir = DataDir(Path("/data"))
    names = [name for name, value in vars(DataDir).items() if isinstance(value, property)]
    return {name: str(getattr(data_dir, name).relative_to("/data")) for name in names}


def joins(path: Path) -> Iterator[str]:
    """Yield the expressions of a module that join a name to the data folder."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Div):
            folder, name = node.left, node.right
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.args:
            if node.func.attr not in ("joinpath", "glob", "rglob"):
                continue
            folder, name = node.func.value, node.args[0]
        else:
            continue
        if _FOLDERS.fullmatch(ast.unparse(folder)) and not ast.unparse(name).startswith("'build-"):
            yield f"{path.relative_to(PACKAGE)}:{node.lineno}: {ast.unparse(node)}"


def test_only_data_dir_joins_names_to_the_data_folder() -> None:
    wrong = [join for path in modules() if path.name != "data_dir.py" for join in joins(path)]
    assert not wrong, "use a property of DataDir:\n" + "\n".join(wrong)


def test_every_place_has_a_description_and_a_path_of_its_own() -> None:
    assert len(set(places().values())) == len(places())
    assert all(vars(DataDir)[name].__doc__ for name in places())


def test_settings_give_the_places_in_their_data_folder(tmp_path: Path) -> None:
    assert Settings(data_dir=tmp_path).paths == DataDir(tmp_path)


def test_the_documentation_lists_every_place() -> None:
    page = (ROOT / "docs/operating.md").read_text()
    section = page.partition("## The data folder")[2].partition("\n## ")[0]
    listed = {name.rstrip("/") for name in re.findall(r"^\| `([^`]+)` \|", section, re.M)}
    assert listed == {*places().values(), "cache/hypervisor-*.json"}
