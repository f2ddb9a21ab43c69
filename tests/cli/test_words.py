"""What is said on the command line, wrongly and rightly: help, one line of complaint, exit codes."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer

from belljar import __version__
from belljar.cli.main import app
from support.command import belljar, belljar_each, complaint, output

pytestmark = pytest.mark.process


def every_command(command: Any, words: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    yield words
    for name, below in getattr(command, "commands", {}).items():
        yield from every_command(below, (*words, name))


def test_every_command_has_a_help_that_says_what_it_does(tmp_path: Path) -> None:
    commands = list(every_command(typer.main.get_command(app)))
    assert len(commands) >= 20
    results = belljar_each(*([*words, "--help"] for words in commands), data_dir=tmp_path)
    for words, page in zip(commands, map(output, results), strict=True):
        assert page.lstrip().startswith(f"Usage: belljar {' '.join(words)}".rstrip()), words
        assert len(page.splitlines()[2].split()) > 2, words


def test_the_version_is_printed() -> None:
    assert output(belljar("version")) == f"{__version__}\n"


WRONG: list[tuple[list[str], int, str]] = [
    (["rum"], 2, "No such command 'rum'"),
    (["--json", "jobs", "ls"], 2, "options come after their command; try: belljar --help"),
    (["jobs", "get"], 2, "try: belljar jobs get --help"),
    (["run"], 125, "Missing argument"),
    (["run", "a.py", "--memroy", "5"], 125, "try: belljar run --help"),
    (["run", "a.py", "--memory", "much"], 125, "--memory"),
    (["submit"], 2, "try: belljar submit --help"),
    (["serve", "--port", "99999"], 1, "invalid setting port"),
    (["serve", "--port", "many"], 2, "--port"),
    (["serve", "--auth", "off", "--host", "0.0.0.0"], 1, "--auth off needs a loopback address"),
    (["serve", "--host", "192.0.2.1", "--port", "0"], 1, "cannot listen on 192.0.2.1"),
    (["run", "/no/such/file.py"], 125, "there is no file or folder /no/such/file.py"),
    (["run", "/dev/null", "--language", "python"], 125, ""),
    (["run", "a.py", "--language", "cobol"], 125, "cobol"),
    (["run", "a.py", "--image", "windows"], 125, "there is no image 'windows' here"),
    (["run", "a.py"], 125, "belljar image build python"),
    (["run", "a.py", "--env", "A"], 125, "--env takes NAME=VALUE, not 'A'"),
    (["run", "a.py", "--env", "A B=x"], 125, "env: 'A B' is an invalid variable name"),
    (["run", "a.py", "--memory", "-5"], 125, "memory_mb: "),
    (["run", "a.py", "--stdin", "/no/such"], 125, "--stdin: cannot read /no/such"),
    (["run", "a.py", "--server", "127.0.0.1:1"], 125, "start one with: belljar serve"),
    (["jobs", "ls", "--server", "http://127.0.0.1:1"], 1, "start one with: belljar serve"),
    (["jobs", "ls", "--server", "http://127.0.0.1:x"], 1, "127.0.0.1:x"),
    (["image", "build", "windows"], 1, "there is no recipe for 'windows'; known recipes: "),
    (["image", "rm", "windows"], 1, "there is no image 'windows' here"),
    (["key", "create", "a b"], 1, "'a b' is not a valid name"),
    (["key", "revoke", "key_x"], 1, "there is no key 'key_x'; list them with: belljar key ls"),
]


@pytest.fixture(scope="module")
def complaints(tmp_path_factory: pytest.TempPathFactory) -> dict[str, subprocess.CompletedProcess[bytes]]:
    """What each of the wrong calls came to."""
    folder = tmp_path_factory.mktemp("wrong")
    (folder / "a.py").write_text("print(1)")
    results = belljar_each(*(words for words, _, _ in WRONG), data_dir=folder / "data", cwd=folder)
    return {" ".join(words): result for (words, _, _), result in zip(WRONG, results, strict=True)}


@pytest.mark.parametrize(("words", "code", "expected"), [pytest.param(*case, id=" ".join(case[0])) for case in WRONG])
def test_what_is_wrong_is_one_line(
    complaints: dict[str, subprocess.CompletedProcess[bytes]], words: list[str], code: int, expected: str
) -> None:
    assert expected in complaint(complaints[" ".join(words)], code)


def test_a_reader_that_has_gone_is_no_error(tmp_path: Path) -> None:
    command = ["/bin/sh", "-c", '"$@" | true', "sh"]
    result = belljar("run", "--help", before=command, data_dir=tmp_path)
    assert b"Traceback" not in result.stderr
