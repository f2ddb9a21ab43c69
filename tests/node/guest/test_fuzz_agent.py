"""What the agent does with its host's frames, fuzzed under the sanitizers for a bounded number of rounds."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from support.conversation import compile_with_agent

pytestmark = pytest.mark.process


@pytest.fixture(scope="module")
def fuzzer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    binary = tmp_path_factory.mktemp("fuzz") / "fuzz_agent"
    source = Path(__file__).with_name("fuzz_agent.c")
    compile_with_agent(binary, source, "-DBELLJAR_FUZZ_MAIN", "-Wl,--wrap=execvpe,--wrap=connect")
    return binary


@pytest.mark.parametrize("seed", [1, 2])
def test_no_bytes_from_the_host_confuse_the_agent(fuzzer: Path, seed: int, tmp_path: Path) -> None:
    folder, reports = tmp_path / "folder", tmp_path / "report"
    (folder / "deep/er").mkdir(parents=True)
    for name in ("p", "deep/x", "deep/er/x"):
        (folder / name).write_bytes(b"x" * 20_000)
    # The agent's processes have no standard error: what the sanitizers find goes into files.
    log = f"log_path={reports}"
    env = os.environ | {"ASAN_OPTIONS": log, "UBSAN_OPTIONS": log}
    rounds = os.environ.get("BELLJAR_FUZZ_ROUNDS", "100")
    result = subprocess.run([fuzzer, str(seed), rounds, folder], capture_output=True, env=env, check=False)
    found = [path.read_text()[:2000] for path in tmp_path.glob("report*")]
    assert (result.returncode, found) == (0, []), result.stderr.decode()[-2000:]
