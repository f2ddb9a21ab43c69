"""What is said on the command line, wrongly and rightly: help, one line of complaint, exit codes."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import typer

from belljar import __version__
from belljar.cli.main import app
from belljar.settings import Settings
from cli.command import belljar, complaint, output


def every_command(command: Any, words: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    yield words
    for name, below in getattr(command, "commands", {}).items():
        yield from every_command(below, (*words, name))


def test_every_command_has_a_help_that_says_what_it_does() -> None:
    commands = list(every_command(typer.main.get_command(app)))
    assert len(commands) >= 20
    with ThreadPoolExecutor(4) as threads:
        pages = list(threads.map(lambda words: output(belljar(*words, "--help")), commands))
    for words, page in zip(commands, pages, strict=True):
        assert page.lstrip().startswith(f"Usage: python -m belljar {' '.join(words)}".rstrip()), words
        assert len(page.splitlines()[2].split()) > 2, words


def test_the_version_is_printed() -> None:
    assert output(belljar("version")) == f"{__version__}\n"


@pytest.mark.parametrize(
    ("words", "code", "expected"),
    [
        (["rum"], 2, "No such command 'rum'"),
        (["run"], 2, "Missing argument"),
        (["serve", "--port", "99999"], 1, "the setting port is wrong"),
        (["serve", "--port", "many"], 2, "--port"),
        (["serve", "--auth", "off", "--host", "0.0.0.0"], 1, "--auth off is for this machine only"),
        (["serve", "--host", "192.0.2.1", "--port", "0"], 1, "cannot listen on 192.0.2.1"),
        (["run", "/no/such/file.py"], 125, "there is no file or folder /no/such/file.py"),
        (["run", "/dev/null", "--language", "python"], 125, ""),
        (["run", "{script}", "--language", "cobol"], 125, "cobol"),
        (["run", "{script}", "--image", "windows"], 125, "there is no image 'windows' here"),
        (["run", "{script}"], 125, "belljar image build python"),
        (["run", "{script}", "--env", "A"], 125, "--env takes NAME=VALUE, not 'A'"),
        (["run", "{script}", "--env", "A B=x"], 125, "env: 'A B' is no name"),
        (["run", "{script}", "--memory", "-5"], 125, "memory_mb: "),
        (["run", "{script}", "--memory", "1000000000"], 125, "max_memory_mb"),
        (["run", "{script}", "--stdin", "/no/such"], 125, "--stdin: cannot read /no/such"),
        (["run", "{script}", "--server", "127.0.0.1:1"], 125, "start one with: belljar serve"),
        (["jobs", "ls", "--server", "http://127.0.0.1:1"], 1, "start one with: belljar serve"),
        (["jobs", "ls", "--server", "http://127.0.0.1:x"], 1, "127.0.0.1:x"),
        (["image", "build", "windows"], 1, "there is no recipe for 'windows'; there are "),
        (["image", "rm", "windows"], 1, "there is no image 'windows' here"),
        (["key", "create", "a b"], 1, "'a b' is no name"),
        (["key", "revoke", "key_x"], 1, "there is no key 'key_x'; list them with: belljar key ls"),
    ],
    ids=lambda words: " ".join(words) if isinstance(words, list) else "",
)
def test_what_is_wrong_is_one_line(tmp_path: Path, words: list[str], code: int, expected: str) -> None:
    script = tmp_path / "a.py"
    script.write_text("print(1)")
    given = [word.format(script=script) for word in words]
    assert expected in complaint(belljar(*given, data_dir=tmp_path / "data"), code)


def test_a_setting_that_does_not_exist_is_named(tmp_path: Path) -> None:
    (tmp_path / "belljar.toml").write_text("memroy = 5\n")
    assert "the setting memroy is wrong" in complaint(belljar("image", "ls", cwd=tmp_path), 1)
    (tmp_path / "belljar.toml").write_text("memory = = 5\n")
    assert "belljar.toml" in complaint(belljar("image", "ls", cwd=tmp_path), 1)


def test_the_sources_of_a_setting_are_in_their_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").mkdir()
    (tmp_path / "data/belljar.toml").write_text("port = 1\nhost = '::1'\n")
    assert Settings(data_dir=tmp_path / "data").port == 1
    (tmp_path / "belljar.toml").write_text("port = 2\n")
    assert Settings(data_dir=tmp_path / "data").port == 2
    assert Settings(data_dir=tmp_path / "data").host == "127.0.0.1"  # one file alone is read
    monkeypatch.setenv("BELLJAR_PORT", "3")
    assert Settings(data_dir=tmp_path / "data").port == 3
    assert Settings(data_dir=tmp_path / "data", port=4).port == 4


def test_a_reader_that_has_gone_is_no_error(tmp_path: Path) -> None:
    command = ["/bin/sh", "-c", '"$@" | true', "sh"]
    result = belljar("run", "--help", before=command, data_dir=tmp_path)
    assert b"Traceback" not in result.stderr
