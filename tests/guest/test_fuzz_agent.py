"""The agent's parser of host frames, fuzzed under the sanitizers for a bounded number of rounds."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from guest.conversation import compile_with_agent


@pytest.fixture(scope="module")
def fuzzer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    binary = tmp_path_factory.mktemp("fuzz") / "fuzz_agent"
    compile_with_agent(binary, Path(__file__).with_name("fuzz_agent.c"), "-DBELLJAR_FUZZ_MAIN")
    return binary


@pytest.mark.parametrize("seed", [1, 2])
def test_no_bytes_from_the_host_confuse_the_agent(fuzzer: Path, seed: int) -> None:
    result = subprocess.run([fuzzer, str(seed), "400"], capture_output=True, timeout=120, check=False)
    assert result.returncode == 0, result.stderr.decode()[-2000:]
