"""Programs in every language, run in its image's root file system without a machine: input, output and their ends."""

from __future__ import annotations

import signal
import subprocess
from pathlib import Path

import pytest

from belljar.images.recipe import default_image, recipes
from belljar.model.image import Language
from support.languages.programs import PROGRAMS
from support.languages.unpacked import UnpackedImages
from support.paths import ROOT

LANGUAGES: dict[str, Language] = {
    language.name: language for recipe in recipes(Path("/nonexistent")).values() for language in recipe.languages
}
COMPILED = [name for name, programs in PROGRAMS.items() if programs.broken is not None]
SIGNALLED = 128


def run(
    unpacked: UnpackedImages, tmp_path: Path, language: str, code: str, stdin: bytes = b""
) -> subprocess.CompletedProcess[bytes]:
    image = default_image(language, tmp_path)
    assert image is not None
    name = f"{'Main' if language == 'java' else 'main'}{LANGUAGES[language].extensions[0]}"
    work = tmp_path / "work"
    work.mkdir()
    return unpacked[image].run({name: code}, language, name, work, stdin=stdin)


@pytest.mark.parametrize("language", PROGRAMS)
def test_hello(unpacked: UnpackedImages, tmp_path: Path, language: str) -> None:
    done = run(unpacked, tmp_path, language, LANGUAGES[language].hello)
    assert (done.returncode, done.stdout.decode(), done.stderr) == (0, f"Hello from {language}!\n", b"")


@pytest.mark.parametrize("language", PROGRAMS)
def test_standard_input_and_exit_code_3(unpacked: UnpackedImages, tmp_path: Path, language: str) -> None:
    done = run(unpacked, tmp_path, language, PROGRAMS[language].echo, "héllo\n".encode())
    assert (done.returncode, done.stdout.decode().rstrip("\n")) == (3, "héllo"), done.stderr


@pytest.mark.parametrize("language", PROGRAMS)
def test_a_crash_ends_with_its_code_or_signal_and_its_message(
    unpacked: UnpackedImages, tmp_path: Path, language: str
) -> None:
    programs = PROGRAMS[language]
    done = run(unpacked, tmp_path, language, programs.crash)
    end = programs.crash_end
    assert done.returncode == (SIGNALLED + signal.Signals[end] if isinstance(end, str) else end), done.stderr
    assert programs.crash_words in (done.stderr + done.stdout).decode()


@pytest.mark.parametrize("language", COMPILED)
def test_a_compiler_names_its_error_on_stderr(unpacked: UnpackedImages, tmp_path: Path, language: str) -> None:
    broken = PROGRAMS[language].broken
    assert broken is not None
    done = run(unpacked, tmp_path, language, broken)
    assert done.returncode != 0 and done.stdout == b""
    assert "undeclared" in done.stderr.decode()


def test_every_example_is_one_of_the_programs() -> None:
    examples = {path.name for path in (ROOT / "examples/languages").iterdir() if path.is_file()}
    assert examples >= {programs.example for programs in PROGRAMS.values()}
