"""Every language that belljar has a recipe for, in real machines over a real server.

Each language compiles, runs and answers once in a machine. How its programs print, crash and fail to compile is tested
without machines in test_programs.py. The server treats such an end alike in all languages: two of them show it here,
one that is compiled and one that is not. All jobs are submitted at once: while a test waits for its own, others run.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from belljar.images.recipe import recipes
from belljar.model.image import Language
from support.languages.programs import PROGRAMS
from support.paths import ROOT
from support.running import Server, serving

pytestmark = pytest.mark.vm

EXAMPLES = ROOT / "examples" / "languages"
LANGUAGES: dict[str, Language] = {
    language.name: language for recipe in recipes(Path("/nonexistent")).values() for language in recipe.languages
}
LONGEST_FIRST = sorted(PROGRAMS, key=lambda name: name not in ("rust", "java", "go", "cpp"))
#: One of each kind, for what the server does with every language alike.
INTERPRETED, COMPILED = "python", "c"
TEXT = "the cat and the dog\nand the\tbird\n"
COUNTED = "3 the\n2 and\n1 bird\n1 cat\n1 dog\n"


@pytest.fixture(scope="module")
def server(language_images: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    data_dir = tmp_path_factory.mktemp("languages") / "data"
    data_dir.mkdir()
    (data_dir / "images").symlink_to(language_images / "images")
    options = {"BELLJAR_ACCELERATOR": "tcg", "BELLJAR_WORKER_VCPUS": "2", "BELLJAR_SNAPSHOTS": "off"}
    with serving(data_dir, **options) as server:
        yield server
        server.until_no_machines()
        assert "Traceback" not in server.log.read_text()


@pytest.fixture(scope="module")
def jobs(server: Server) -> dict[tuple[str, str], str]:
    """Ids of all jobs, by language and kind; what takes longest to compile comes first."""
    found = {}
    options: dict[str, Any] = {"timeout_seconds": 600}
    for name in LONGEST_FIRST:
        found[name, "example"] = _submit_file(server, EXAMPLES / PROGRAMS[name].example, stdin=TEXT, **options)
    for name in (INTERPRETED, COMPILED):
        programs = PROGRAMS[name]
        found[name, "echo"] = server.submit(programs.echo, name, stdin="héllo\n", **options)
        found[name, "crash"] = server.submit(programs.crash, name, **options)
        if programs.broken is not None:
            found[name, "broken"] = server.submit(programs.broken, name, artifacts=["**"], **options)
    return found


def _submit_file(server: Server, path: Path, **options: Any) -> str:
    """Upload a file without a word about its language, and run it."""
    uploaded = server.http.post("/v1/scripts", files={"script": (path.name, path.read_bytes())})
    assert uploaded.status_code == 201, uploaded.text
    run = server.http.post(f"/v1/scripts/{uploaded.json()['script_id']}/run", json=options)
    assert run.status_code == 202, run.text
    return str(run.json()["job_id"])


def ended(server: Server, jobs: dict[tuple[str, str], str], language: str, kind: str) -> dict[str, Any]:
    return server.wait(jobs[language, kind], 600)


def test_every_recipes_language_has_its_programs() -> None:
    assert set(PROGRAMS) == set(LANGUAGES) - {"binary"}


@pytest.mark.parametrize("language", LONGEST_FIRST)
def test_the_same_task_gives_the_same_answer(server: Server, jobs: dict[tuple[str, str], str], language: str) -> None:
    job = ended(server, jobs, language, "example")
    assert job["language"] == language
    assert (job["status"], job["exit_code"]) == ("succeeded", 0), server.logs(job)
    assert (server.logs(job, stream="stdout").decode(), server.logs(job, stream="stderr")) == (COUNTED, b"")
    assert ("compile" in job["timings"]["phases"]) == (PROGRAMS[language].broken is not None)


@pytest.mark.parametrize("language", [INTERPRETED, COMPILED])
def test_standard_input_and_exit_code_3(server: Server, jobs: dict[tuple[str, str], str], language: str) -> None:
    job = ended(server, jobs, language, "echo")
    assert (job["status"], job["exit_code"], job["error"]) == ("failed", 3, None), server.logs(job)
    assert server.logs(job, stream="stdout").decode().rstrip("\n") == "héllo"


@pytest.mark.parametrize("language", [INTERPRETED, COMPILED])
def test_a_crash_is_the_scripts_failure(server: Server, jobs: dict[tuple[str, str], str], language: str) -> None:
    job, programs = ended(server, jobs, language, "crash"), PROGRAMS[language]
    end = job["signal"] if isinstance(programs.crash_end, str) else job["exit_code"]
    assert (job["status"], end, job["attempt"]) == ("failed", programs.crash_end, 1), server.logs(job)
    printed = server.logs(job, stream="stderr") + server.logs(job, stream="stdout")
    assert programs.crash_words in printed.decode()


def test_a_compiler_error_is_reported(server: Server, jobs: dict[tuple[str, str], str]) -> None:
    job = ended(server, jobs, COMPILED, "broken")
    assert (job["status"], job["error"]["code"]) == ("failed", "compile_error"), job
    assert job["exit_code"] not in (0, None) and job["started_at"] is None
    assert "undeclared" in server.logs(job, stream="stderr").decode()
    assert server.logs(job, stream="stdout") == b""
    assert job["kept_artifacts"] == []


def test_several_files_are_one_program_and_what_was_compiled_is_no_artifact(server: Server) -> None:
    files = {
        "main.c": '#include "greet.h"\nint main(void) { greet("you"); }\n',
        "greet.h": "void greet(const char *);\n",
        "greet.c": '#include <stdio.h>\n#include "greet.h"\nvoid greet(const char *n) { printf("hi %s\\n", n); }\n',
    }
    job = server.http.post("/v1/jobs", params={"wait": 120}, json={"files": files, "artifacts": ["**"]}).json()
    assert (job["language"], job["status"]) == ("c", "succeeded"), server.logs(job)
    assert server.logs(job) == b"hi you\n"
    assert {each["path"] for each in job["kept_artifacts"]} <= files.keys()


def test_a_compilers_time_is_limited_like_the_scripts(server: Server) -> None:
    slow = '#include <bits/stdc++.h>\n#include <regex>\nint main() { std::regex r("a"); }\n'
    job = server.run(slow, "cpp", timeout_seconds=1)
    assert (job["status"], job["error"]["code"]) == ("timed_out", "timed_out")
    assert "compiler" in job["error"]["message"] and job["started_at"] is None


def test_a_compiler_that_needs_more_memory_than_there_is(server: Server) -> None:
    grows = ['#define A0 "a string that is taken a hundred million times over"']
    grows += [f"#define A{level + 1} {' '.join([f'A{level}'] * 10)}" for level in range(8)]
    job = server.run("\n".join([*grows, "const char *text = A8;", "int main(void) {}"]), "c", memory_mb=128)
    assert (job["status"], job["error"]["code"]) == ("failed", "out_of_memory"), server.logs(job)


def test_languages_that_need_more_memory_get_it_by_default(server: Server) -> None:
    job_id = server.submit(LANGUAGES["java"].hello, "java")
    job = server.wait(job_id, 0)
    assert job["memory_mb"] == LANGUAGES["java"].memory_mb
    server.http.post(f"/v1/jobs/{job_id}/cancel")


@pytest.mark.parametrize(("alias", "name"), [("javascript", "node"), ("c++", "cpp"), ("bash", "shell")])
def test_languages_have_the_names_that_people_use(server: Server, alias: str, name: str) -> None:
    job_id = server.submit(LANGUAGES[name].hello, alias)
    assert server.http.post(f"/v1/jobs/{job_id}/cancel").json()["language"] == name


def test_an_executable_runs_as_it_is(server: Server) -> None:
    """A program that is no script, told by its first bytes; made by the c compiler in a machine."""
    code = '#include <stdio.h>\n#include <unistd.h>\nint main(void) { puts("I am a program"); return 5; }\n'
    build = {"main.sh": "cc -O1 -static -o /work/program prog.txt.c\n", "prog.txt.c": code}
    options = {"files": build, "entrypoint": "main.sh", "image": "native", "artifacts": ["program"], "memory_mb": 512}
    built = server.http.post("/v1/jobs", params={"wait": 170}, json=options).json()
    assert built["status"] == "succeeded", server.logs(built)
    program = server.http.get(f"/v1/jobs/{built['id']}/artifacts/program").content
    uploaded = server.http.post("/v1/scripts", files={"script": ("program", program)}).json()
    assert uploaded["language"] == "binary"
    run = server.http.post(f"/v1/scripts/{uploaded['script_id']}/run", json={}).json()
    job = server.wait(run["job_id"])
    assert (job["exit_code"], server.logs(job)) == (5, b"I am a program\n")
