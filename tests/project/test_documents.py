"""What the documents say is true of the code: commands, options, routes, links; generated pages are current."""

from __future__ import annotations

import ast
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer

from belljar.cli.main import app
from belljar.control.api.app import create_app
from belljar.link import errors as link_errors
from belljar.model import errors, sandbox_errors
from belljar.model.job_options import JobOptions, JobRequest
from support.paths import ROOT

DOCUMENTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
GENERATED = {"cli.md", "api.md", "settings.md", "errors.md"}
WRITTEN = [path for path in DOCUMENTS if path.name not in GENERATED]


def command_lines(text: str) -> Iterator[list[str]]:
    """The words of every line of a code block, or of a phrase in backquotes, that calls belljar."""
    blocks = re.findall(r"^```[a-z]*\n(.*?)^```", text, re.M | re.S)
    lines = [line for block in blocks for line in block.splitlines()]
    lines += re.findall(r"`(belljar [^`\n]+)`", text)
    for line in lines:
        words = line.split("  #")[0].split("<<<")[0].strip()
        if re.match(r"(\.venv/bin/)?belljar( |$)", words):
            yield shlex.split(words)[1:]


def check_call(words: list[str]) -> None:
    command: Any = typer.main.get_command(app)
    while words and hasattr(command, "commands") and not words[0].startswith("-"):
        assert words[0] in command.commands, f"there is no command {words[0]}"
        command, words = command.commands[words[0]], words[1:]
    if "--" in words:
        words = words[: words.index("--")]
    known = {"--help", "-h"} | {option for parameter in command.params for option in parameter.opts}
    for word in words:
        if word.startswith("-") and word != "-":
            assert word.split("=")[0] in known, f"{command.name} has no option {word}"


@pytest.mark.parametrize("path", WRITTEN, ids=lambda path: path.name)
def test_commands_in_documents_exist(path: Path) -> None:
    for words in command_lines(path.read_text()):
        check_call(words)


def test_the_check_of_commands_finds_what_is_wrong() -> None:
    assert len(list(command_lines((ROOT / "README.md").read_text()))) >= 7
    for wrong in (["rum", "x.py"], ["run", "x.py", "--memmory", "1"], ["image", "bild"]):
        with pytest.raises(AssertionError):
            check_call(wrong)


def test_options_that_the_readme_names_exist() -> None:
    text = (ROOT / "README.md").read_text()
    listed = re.search(r"Options are (.*?)\. ", text, re.S)
    assert listed
    names = set(re.findall(r"`(\w+)`", listed[1]))
    assert {"args", "timeout_seconds", "labels"} <= names <= set(JobOptions.model_fields)
    for body in re.findall(r"-d '(\{.*?\})'", text):
        JobRequest.model_validate_json(body)


@pytest.mark.parametrize("path", WRITTEN, ids=lambda path: path.name)
def test_routes_in_documents_exist(path: Path) -> None:
    known = {re.sub(r"\{.*?\}", "*", route) for route in create_app(None).openapi()["paths"]}
    known |= {"/openapi.json"}
    for route in re.findall(r"(/v1/[\w/{}]*|/openapi\.json|/healthz|/readyz|/metrics)", path.read_text()):
        shape = re.sub(r"\{.*?\}|[A-Z]+_ID", "*", route).rstrip("/")
        assert shape in known or not shape.strip("/v1"), f"{path.name} names {route}"


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_links_in_documents_lead_somewhere(path: Path) -> None:
    for link in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", path.read_text()):
        if "://" not in link:
            assert (path.parent / link).exists(), f"{path.name} links to {link}"


@pytest.mark.parametrize("path", WRITTEN, ids=lambda path: path.name)
def test_scripts_and_examples_in_documents_exist(path: Path) -> None:
    for name in re.findall(r"(?<![\w/.])((?:script|examples)/[\w./-]*\w)", path.read_text()):
        assert (ROOT / name).exists(), f"{path.name} names {name}"


@pytest.mark.parametrize("path", WRITTEN, ids=lambda path: path.name)
def test_files_of_the_repository_in_documents_exist(path: Path) -> None:
    places = [ROOT, ROOT / "src/belljar"]
    names = re.findall(r"`((?:[\w-]+/)+[\w-]+\.(?:py|c|h|config))`", path.read_text())
    names += re.findall(r"`((?:src/belljar|tests|bench|docs)/[\w./-]+)`", path.read_text())
    assert [name for name in names if not any((place / name).exists() for place in places)] == []


def test_folders_of_the_code_guide_exist() -> None:
    tree = (ROOT / "docs/changing.md").read_text().partition("## The tree")[2].partition("\n## ")[0]
    named = set(re.findall(r"`([a-z]+)/`", tree)) - {
        "api",
        "jobs",
        "projects",
        "queue",
        "store",
        "blobs",
        "logs",
        "maintenance",
    }
    packages = {each.name for each in (ROOT / "src/belljar").iterdir() if (each / "__init__.py").exists()}
    assert packages <= named


def test_generated_pages_are_current() -> None:
    command = [sys.executable, "script/reference", "--check"]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert run.returncode == 0, run.stderr


def error_rows() -> dict[str, list[str]]:
    """Return the rows of the tables in docs/errors.md by their code."""
    rows = re.findall(r"^\| `(\w+)` \| (.*) \|$", (ROOT / "docs/errors.md").read_text(), re.M)
    assert len(rows) == len(dict(rows)), "a code is documented twice"
    return {code: cells.split(" | ") for code, cells in rows}


def job_error_codes() -> set[str]:
    """Return the codes that the code gives to jobs as literals: of JobError, and of lost attempts."""
    codes = set()
    for path in (ROOT / "src/belljar").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if not isinstance(node, ast.Call):
                continue
            name = getattr(node.func, "attr", getattr(node.func, "id", ""))
            arguments = [*node.args, *(keyword.value for keyword in node.keywords if keyword.arg == "code")]
            if name == "JobError" or re.search(r"(?:^|_)(?:requeue|lose|give_back)", name):
                texts = [each.value for each in arguments if isinstance(each, ast.Constant)]
                codes |= {text for text in texts if isinstance(text, str) and re.fullmatch(r"[a-z_]+", text)}
    return codes


def test_every_error_code_is_documented_with_cause_and_action_and_no_other() -> None:
    rows = error_rows()
    classes = [*errors.classes(), *sandbox_errors.classes(), *link_errors.classes()]
    assert set(rows) == {each.code for each in classes} | set(errors.JOB_ERRORS)
    for code, cells in rows.items():
        assert all(re.fullmatch(r"[A-Z`].{8,}\.", cell) for cell in cells[-2:]), code
    for each in classes:
        assert rows[each.code][0] == str(each.status)


def test_jobs_have_only_codes_that_are_documented() -> None:
    codes = job_error_codes()
    assert codes and codes - set(errors.JOB_ERRORS) <= {each.code for each in errors.classes()}
    sources = [path for path in (ROOT / "src/belljar").rglob("*.py") if path.name != "errors.py"]
    text = "".join(path.read_text() for path in sources)
    assert [code for code in errors.JOB_ERRORS if f'"{code}"' not in text] == []


def test_every_class_of_errors_with_a_code_is_documented() -> None:
    known = {each.__name__ for each in (*errors.classes(), *sandbox_errors.classes(), *link_errors.classes())}
    for path in (ROOT / "src/belljar").rglob("*.py"):
        for name, bases in re.findall(r"^class (\w+)\((.*)\):\n(?:.*\n)*?    code = ", path.read_text(), re.M):
            assert name in known or not set(re.findall(r"\w+", bases)) & known, f"{path.name}: {name}"


def test_every_error_class_has_a_code_of_its_own() -> None:
    codes = [each.code for each in (*errors.classes(), *sandbox_errors.classes(), *link_errors.classes())]
    assert len(codes) == len(set(codes))
