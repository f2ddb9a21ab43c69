"""Declarations of packages: every format, one meaning, and nothing but names and versions."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from belljar.model.errors import InvalidDependencies
from belljar.model.image import Image, Manifest, Part
from belljar.model.script import Dependencies
from belljar.packages.requirements import (
    _blocks,
    check_runtime,
    inline_dependencies,
    package_file,
    project_file,
    read_dependencies,
    requirements_file,
)

PART = Part(sha256="0" * 64, size_bytes=0, origin="nowhere")
INLINE = """#!/usr/bin/env python3
# /// script
# requires-python = ">=3.11"
# dependencies = [
#   "requests<3",
#   "NumPy==2.1.0",
# ]
# ///
print("hi")
"""


@dataclass
class Some:
    files: dict[str, str]

    def is_file(self, path: str) -> bool:
        return path in self.files

    def is_folder(self, path: str) -> bool:
        return any(each.startswith(f"{path}/") for each in self.files)

    def head(self, path: str, count: int) -> bytes:
        return self.files[path].encode()[:count]


def test_inline_metadata() -> None:
    dependencies = inline_dependencies(INLINE, "main.py")
    assert dependencies is not None
    assert (dependencies.kind, dependencies.requirements, dependencies.runtime) == (
        "pypi",
        ("numpy==2.1.0", "requests<3"),
        ">=3.11",
    )
    assert inline_dependencies(INLINE.replace("\n", "\r\n"), "main.py") == dependencies


def test_equal_requirements_have_the_same_key_in_any_spelling() -> None:
    one = requirements_file("Requests < 3  # for http\n\nnumpy == 2.1.0 --hash=sha256:abc \\\n  --hash=sha256:def\n")
    two = project_file('[project]\nname = "x"\ndependencies = ["numpy==2.1.0", "requests<3"]\n')
    assert one is not None and two is not None
    assert one.key == two.key and one.origin != two.origin
    other = requirements_file("requests<4\nnumpy==2.1.0")
    assert other is not None and other.key != one.key


def test_inline_metadata_precedes_files() -> None:
    files = {"main.py": INLINE, "requirements.txt": "flask", "pyproject.toml": "[project]\ndependencies = ['django']"}
    dependencies = read_dependencies(Some(files), "python", "main.py")
    assert dependencies is not None and "numpy==2.1.0" in dependencies.requirements
    del files["main.py"]
    files["main.py"] = "print()"
    dependencies = read_dependencies(Some(files), "python", "main.py")
    assert dependencies is not None and dependencies.requirements == ("flask",)
    del files["requirements.txt"]
    dependencies = read_dependencies(Some(files), "python", "main.py")
    assert dependencies is not None and dependencies.requirements == ("django",)


@pytest.mark.parametrize("language", ["c", "node", "ruby"])
def test_other_languages_ignore_pythons_files(language: str) -> None:
    assert read_dependencies(Some({"main.x": INLINE, "requirements.txt": "flask"}), language, "main.x") is None


def test_a_script_without_declarations_needs_nothing() -> None:
    assert inline_dependencies("print('# /// script')\n", "main.py") is None
    assert inline_dependencies("# /// other\n# x = 1\n# ///\n", "main.py") is None
    assert requirements_file("# only a comment\n\n") is None
    assert project_file("[tool.x]\na = 1\n") is None
    assert package_file('{"name": "x"}') is None


def test_packages_in_the_archive_are_not_installed() -> None:
    files = {"main.js": "", "package.json": '{"dependencies": {"left-pad": "1"}}'}
    dependencies = read_dependencies(Some(files), "node", "main.js")
    assert dependencies is not None and dependencies.requirements == ("left-pad@1",)
    assert read_dependencies(Some(files | {"node_modules/left-pad/index.js": ""}), "node", "main.js") is None


def test_package_json() -> None:
    dependencies = package_file('{"dependencies": {"left-pad": "^1.3.0", "@a/b": "~2"}, "engines": {"node": ">=18"}}')
    assert dependencies == Dependencies(
        kind="npm", requirements=("@a/b@~2", "left-pad@^1.3.0"), runtime=">=18", origin="package.json"
    )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (INLINE + INLINE, "2 script blocks"),
        ("# /// script\n# dependencies = []\nprint()\n", "unclosed script block"),
        ("# /// script\n# dependencies = [\n# ///\n", "not TOML"),
        ('# /// script\n# dependencies = "requests"\n# ///\n', "not a list"),
        ("# /// script\n# dependencies = [1]\n# ///\n", "not a list"),
        ('# /// script\n# dependencies = ["not a requirement"]\n# ///\n', "not a valid requirement"),
        ('# /// script\n# requires-python = "three"\n# ///\n', "requires-python"),
        ('# /// script\n# dependencies = ["x @ https://example.com/x.whl"]\n# ///\n', "has a URL"),
        ('# /// script\n# dependencies = ["x @ file:///etc/passwd"]\n# ///\n', "has a URL"),
    ],
)
def test_malformed_inline_metadata_is_refused(text: str, message: str) -> None:
    with pytest.raises(InvalidDependencies, match=message):
        inline_dependencies(text, "main.py")


@pytest.mark.parametrize(
    "line",
    [
        "--index-url http://evil.example",
        "-r /etc/passwd",
        "-e .",
        "./local.whl",
        "git+https://example.com/x",
        "https://example.com/x.whl",
        "x" * 400,
    ],
)
def test_requirements_that_are_more_than_names_and_versions_are_refused(line: str) -> None:
    with pytest.raises(InvalidDependencies, match="line 2"):
        requirements_file(f"requests\n{line}\n")


@pytest.mark.parametrize(
    "text",
    [
        "{",
        "[]",
        '{"dependencies": []}',
        '{"dependencies": {"x": "file:../../etc"}}',
        '{"dependencies": {"x": "git+ssh://example.com/x"}}',
        '{"dependencies": {"../x": "1"}}',
        '{"dependencies": {"x": 1}}',
    ],
)
def test_package_json_with_more_than_names_and_versions_is_refused(text: str) -> None:
    with pytest.raises(InvalidDependencies):
        package_file(text)


def image_with(version: str) -> Image:
    manifest = Manifest(
        name="python",
        architecture="x86_64",
        digest="0" * 64,
        kernel=PART,
        initramfs=PART,
        root=PART,
        languages=(),
        versions={"python": version},
    )
    return Image(manifest=manifest, kernel=Path("k"), initramfs=Path("i"), root=Path("r"))


def test_a_missing_python_version_is_refused() -> None:
    dependencies = inline_dependencies(INLINE.replace(">=3.11", ">=3.13"), "main.py")
    assert dependencies is not None
    check_runtime(dependencies, image_with("Python 3.13.1"))
    with pytest.raises(InvalidDependencies, match=r"requires Python >=3.13, but the image python has 3.11.2"):
        check_runtime(dependencies, image_with("Python 3.11.2"))
    check_runtime(dependencies, image_with(""))  # nobody knows: the installer will


def test_too_many_requirements_are_refused() -> None:
    with pytest.raises(InvalidDependencies, match="over 500 requirements"):
        requirements_file("\n".join(f"package{number}" for number in range(600)))


@dataclass
class Raw(Some):
    """Files of any encoding."""

    raw: dict[str, bytes]

    def head(self, path: str, count: int) -> bytes:
        return self.raw[path][:count]


def raw(**content: bytes) -> Raw:
    named = {name.replace("_", "."): data for name, data in content.items()}
    return Raw(files=dict.fromkeys(named, ""), raw=named)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
def test_declarations_are_read_in_the_encodings_that_editors_write(encoding: str) -> None:
    wanted = raw(main_py=b"", requirements_txt="six # é\r\n".encode(encoding))
    dependencies = read_dependencies(wanted, "python", "main.py")
    assert dependencies is not None and dependencies.requirements == ("six",)
    project = raw(main_py=b"", pyproject_toml='[project]\ndependencies = ["six"]\n'.encode(encoding))
    dependencies = read_dependencies(project, "python", "main.py")
    assert dependencies is not None and dependencies.requirements == ("six",)
    package = raw(main_js=b"", package_json='{"dependencies": {"left-pad": "1"}}'.encode(encoding))
    dependencies = read_dependencies(package, "node", "main.js")
    assert dependencies is not None and dependencies.requirements == ("left-pad@1",)


@pytest.mark.parametrize("text", ["six\n".encode("utf-16-le"), b"\xff\xfes", b"\xfe\xff\xd8\x00"])
def test_an_encoding_that_cannot_be_read_is_refused(text: bytes) -> None:
    with pytest.raises(InvalidDependencies, match=r"requirements\.txt .*save it as UTF-8"):
        read_dependencies(raw(main_py=b"", requirements_txt=text), "python", "main.py")


@pytest.mark.parametrize(
    "text",
    [
        b'\xef\xbb\xbf# /// script\n# dependencies = ["six"]\n# ///\n',
        b'# /// script  \n# dependencies = ["six"] \n# /// \t\n',
        b'#!/usr/bin/python3\r\n# /// script\r\n# \r\n# dependencies = ["six"]\r\n# ///',
    ],
)
def test_a_script_block_may_follow_a_byte_order_mark_and_have_trailing_spaces(text: bytes) -> None:
    dependencies = read_dependencies(raw(main_py=text), "python", "main.py")
    assert dependencies is not None and dependencies.requirements == ("six",)


@pytest.mark.parametrize("value", ["[1]", "1", "{ a = 1 }", "true", "2020-01-01", '["3"]'])
def test_a_requires_python_of_another_type_is_refused(value: str) -> None:
    with pytest.raises(InvalidDependencies, match="invalid requires-python"):
        inline_dependencies(f"# /// script\n# requires-python = {value}\n# ///\n", "main.py")
    with pytest.raises(InvalidDependencies, match="invalid requires-python"):
        project_file(f"[project]\nrequires-python = {value}\n")


@pytest.mark.parametrize("text", ["project = 1\n", '[project]\nname = "x"\ndynamic = ["version", "dependencies"]\n'])
def test_a_project_whose_dependencies_cannot_be_read_is_refused(text: str) -> None:
    with pytest.raises(InvalidDependencies, match=r"pyproject\.toml"):
        project_file(text)


def test_a_shell_script_gets_the_packages_of_its_interpreters() -> None:
    files = {"run.sh": "python3 -m pytest", "requirements.txt": "pytest>=8", "pyproject.toml": '[project]\nname="x"'}
    dependencies = read_dependencies(Some(files), "shell", "run.sh")
    assert dependencies is not None and (dependencies.kind, dependencies.requirements) == ("pypi", ("pytest>=8",))
    dependencies = read_dependencies(
        Some({"run.sh": "", "package.json": '{"dependencies": {"six": "1"}}'}), "shell", "run.sh"
    )
    assert dependencies is not None and dependencies.kind == "npm"
    assert read_dependencies(Some({"run.sh": "", "package.json": '{"name": "x"}'}), "shell", "run.sh") is None
    both = {"run.sh": "", "requirements.txt": "six", "package.json": '{"dependencies": {"six": "1"}}'}
    with pytest.raises(InvalidDependencies, match=r"requirements\.txt and package\.json both"):
        read_dependencies(Some(both), "shell", "run.sh")


def test_packages_without_an_interpreter_in_the_image_are_refused() -> None:
    python, node = requirements_file("six"), package_file('{"dependencies": {"six": "1"}}')
    assert python is not None and node is not None
    manifest = image_with("").manifest
    shell, runs_both = (
        image_with("").model_copy(update={"manifest": manifest.model_copy(update={"packages": packages})})
        for packages in ({"bash": "5"}, {"python3": "3.11", "nodejs": "18"})
    )
    for needs, runtime in ((python, "Python"), (node, r"Node\.js")):
        check_runtime(needs, runs_both)
        message = f"requires {runtime} packages, but the image python has no {runtime}"
        with pytest.raises(InvalidDependencies, match=message):
            check_runtime(needs, shell)


@pytest.mark.parametrize(
    "text",
    [
        "# /// script\n" * 40_000,  # blocks that do not end
        "# /// script\n# " + "a." * 250_000 + "a = 1\n# ///\n",
        "# /// script\n# [" + "a." * 250_000 + "a]\n# ///\n",
        "# /// script\n# requires-python = '" + ">=3," * 200 + "'\n# ///\n",
        "# /// script\n# dependencies = [\n" + "# 'a',\n" * 250_000 + "# ]\n# ///\n",
    ],
)
def test_texts_of_quadratic_parsing_time_are_refused_at_once(text: str) -> None:
    with pytest.raises(InvalidDependencies):
        inline_dependencies(text, "main.py")


REFERENCE = r"(?m)^# /// (?P<type>[a-zA-Z0-9-]+)$\s(?P<content>(^#(| .*)$\s)+)^# ///$"
LINES = st.sampled_from(["# /// script", "# ///", "# /// other", "#", "# x = 1", "#x", "", "y = 2", "# /// script "])


@given(st.lists(LINES, max_size=12))
def test_blocks_are_those_that_the_reference_implementation_finds(lines: list[str]) -> None:
    dependencies = [(each["type"], each["content"]) for each in re.finditer(REFERENCE, "\n".join(lines))]
    ours = [(kind, "".join(f"{line}\n" for line in content)) for kind, content in _blocks(lines) if content]
    assert ours == dependencies


@given(st.text(max_size=300))
def test_any_text_is_read_or_refused(text: str) -> None:
    for read in (requirements_file, project_file, package_file, lambda each: inline_dependencies(each, "x")):
        try:
            read(text)
            read(f"# /// script\n# {text}\n# ///\n")
        except InvalidDependencies:
            continue
