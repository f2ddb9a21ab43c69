"""The agent's parser of host frames, fuzzed under the sanitizers for a bounded number of rounds."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from guest.conversation import AGENT_C, SANITIZERS, WARNINGS


@pytest.fixture(scope="module")
def fuzzer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    compiler = shutil.which("gcc")
    if not compiler:
        pytest.skip("gcc is not installed")
    binary = tmp_path_factory.mktemp("fuzz") / "fuzz_agent"
    source = Path(__file__).with_name("fuzz_agent.c")
    # The fuzz target leaves the agent's boot and loop unused.
    flags = [*WARNINGS, *SANITIZERS, "-Wno-unused-function", "-DBELLJAR_FUZZ_MAIN", f"-I{AGENT_C.parent}"]
    subprocess.run([compiler, *flags, "-o", str(binary), str(source)], check=True, timeout=120)
    return binary


@pytest.mark.parametrize("seed", [1, 2])
def test_no_bytes_from_the_host_confuse_the_agent(fuzzer: Path, seed: int) -> None:
    result = subprocess.run([fuzzer, str(seed), "400"], capture_output=True, timeout=120, check=False)
    assert result.returncode == 0, result.stderr.decode()[-2000:]
