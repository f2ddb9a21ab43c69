"""Inspecting an unpacked image: its user, languages and packages, without running its programs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from belljar.images.oci.config import ImageConfig, read_image_config
from belljar.images.oci.inspect import alpine_packages, debian_packages, languages_of, python_packages, user_of
from belljar.images.oci.tree import RootTree
from belljar.images.recipe import recipes
from belljar.model.errors import InvalidImage
from belljar.model.image import Language, User

KNOWN = tuple(language for recipe in recipes(Path("/nonexistent")).values() for language in recipe.languages)


def program(tree: Path, path: str) -> None:
    file = tree / path.lstrip("/")
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(b"\x7fELF")
    file.chmod(0o755)


def runs(tree: Path, **config: Any) -> dict[str, Language]:
    languages = languages_of(RootTree(tree), read_image_config({"config": config}), KNOWN)
    return {language.name: language for language in languages}


def test_an_empty_image_runs_executables(tree: Path) -> None:
    assert list(runs(tree)) == ["binary"]


def test_languages_are_those_whose_tools_are_on_its_path(tree: Path) -> None:
    program(tree, "/opt/bin/python3")
    assert "python" not in runs(tree)
    assert runs(tree, Env=["PATH=/opt/bin"])["python"].run == ("python3", "{entrypoint}")


def test_a_busybox_shell_behind_absolute_links_is_a_shell(tree: Path) -> None:
    program(tree, "/bin/busybox")
    (tree / "bin/sh").symlink_to("/bin/busybox")
    assert runs(tree)["shell"].run == ("sh", "{entrypoint}")


def test_a_link_out_of_the_image_is_not_a_tool(tree: Path) -> None:
    (tree / "bin").mkdir()
    (tree / "bin/python3").symlink_to("/../../../../../usr/bin/env")
    assert "python" not in runs(tree)


def test_compiled_languages_need_their_compiler(tree: Path) -> None:
    program(tree, "/bin/sh")
    assert "c" not in runs(tree)
    program(tree, "/usr/bin/gcc")
    assert runs(tree)["c"].compile[0] == "sh"


def test_imported_images_need_no_files_of_belljar(tree: Path) -> None:
    for name in ("sh", "bash", "gcc", "g++", "rustc", "go", "java", "javac", "sqlite3", "python3", "node", "ruby"):
        program(tree, f"/usr/bin/{name}")
    languages = runs(tree)
    assert {"c", "cpp", "rust", "go", "java", "sqlite", "python", "node", "ruby"} <= set(languages)
    assert "/usr/lib/belljar" not in repr(languages)


def test_an_entrypoint_precedes_the_interpreter(tree: Path) -> None:
    program(tree, "/usr/bin/python3")
    assert runs(tree, Entrypoint=["/tini", "--"])["python"].run == ("/tini", "--", "python3", "{entrypoint}")


@pytest.mark.parametrize("entrypoint", ["/usr/bin/python3", "/usr/bin/python3.11", "python"])
def test_an_entrypoint_that_is_the_interpreter_replaces_it(tree: Path, entrypoint: str) -> None:
    program(tree, "/usr/bin/python3")
    assert runs(tree, Entrypoint=[entrypoint])["python"].run == (entrypoint, "{entrypoint}")


def test_the_images_own_command_is_a_language(tree: Path) -> None:
    own = runs(tree, Entrypoint=["/app"], Cmd=["serve"])["command"]
    assert (own.run, own.default_args) == (("/app",), ("serve",))
    assert runs(tree, Cmd=["/app", "serve"])["command"].run == ("/app", "serve")


@pytest.mark.parametrize(
    ("declared", "user"),
    [
        ("", User()),
        ("0", User(uid=0, gid=0)),
        ("app", User(uid=7, gid=8)),
        ("7", User(uid=7, gid=8)),
        ("99", User(uid=99, gid=0)),
        ("app:staff", User(uid=7, gid=50)),
        ("99:98", User(uid=99, gid=98)),
    ],
)
def test_users_by_name_and_number(tree: Path, declared: str, user: User) -> None:
    (tree / "etc").mkdir()
    (tree / "etc/passwd").write_text("root:x:0:0::/:/bin/sh\napp:x:7:8::/:/bin/sh\n")
    (tree / "etc/group").write_text("staff:x:50:\n")
    assert user_of(RootTree(tree), declared) == user


@pytest.mark.parametrize("declared", ["nobody-here", "-1", "4294967296", "app:nobody", "１", "99:x"])
def test_an_unknown_user_is_refused(tree: Path, declared: str) -> None:
    with pytest.raises(InvalidImage, match="USER"):
        user_of(RootTree(tree), declared)


def test_packages_of_debian_distroless_alpine_and_python(tree: Path) -> None:
    (tree / "var/lib/dpkg/status.d").mkdir(parents=True)
    stanza = "Package: {}\nStatus: {}\nVersion: 1.2\n\n"
    (tree / "var/lib/dpkg/status").write_text(
        stanza.format("bash", "install ok installed") + stanza.format("gone", "deinstall ok config-files")
    )
    (tree / "var/lib/dpkg/status.d/base").write_text("Package: base-files\nVersion: 12\n")
    (tree / "lib/apk/db").mkdir(parents=True)
    (tree / "lib/apk/db/installed").write_text("C:x\nP:musl\nV:1.2.4-r2\n\nP:busybox\nV:1.36\n")
    (tree / "usr/local/lib/python3.12/site-packages/typing_extensions-4.9.0.dist-info").mkdir(parents=True)
    root = RootTree(tree)
    assert debian_packages(root) == {"bash": "1.2", "base-files": "12"}
    assert alpine_packages(root) == {"musl": "1.2.4-r2", "busybox": "1.36"}
    assert python_packages(root) == {"typing-extensions": "4.9.0"}


@pytest.mark.parametrize(
    "config",
    [
        {"Env": "A=1"},
        {"Env": [1]},
        {"Entrypoint": {"a": 1}},
        {"User": 5},
        {"WorkingDir": "relative"},
        {"WorkingDir": "/a/../../b"},
        {"Cmd": ["a\0b"]},
        {"Env": ["A=" + "x" * 100_000]},
    ],
)
def test_configs_of_other_types_and_large_ones_are_refused(config: dict[str, Any]) -> None:
    with pytest.raises(InvalidImage):
        read_image_config({"config": config})


def test_invalid_names_of_environment_variables_are_dropped() -> None:
    assert read_image_config({"config": {"Env": ["GOOD=a=b", "BAD NAME=1", "=1", "ALONE"]}}) == ImageConfig(
        env={"GOOD": "a=b", "ALONE": ""}
    )
