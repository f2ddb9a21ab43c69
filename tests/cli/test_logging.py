"""The log on stderr: what an error says steers no terminal, and no traceback shows what variables hold."""

from __future__ import annotations

import subprocess
import sys

import pytest

pytestmark = pytest.mark.process

EVIL = "\\x1b[2J\\x9b31m\\u202e"
PROGRAM = """
import logging, sys
from pathlib import Path
import structlog
from belljar.cli.logging import start_logging
from belljar.settings import Settings
start_logging(Settings(data_dir=Path("/nowhere"), log_format=sys.argv[1]))
log = structlog.get_logger()
log.warning("told", error="EVIL")
try:
    secret = "hid" + "den"
    raise ValueError("foreseen EVIL")
except ValueError:
    log.exception("failed")
    logging.getLogger("library").exception("failed EVIL")
"""


@pytest.mark.parametrize("form", ["text", "json"])
def test_no_error_steers_a_terminal_and_no_traceback_shows_variables(form: str) -> None:
    command = [sys.executable, "-c", PROGRAM.replace("EVIL", EVIL), form]
    stderr = subprocess.run(command, capture_output=True, check=True, timeout=60).stderr.decode()
    assert stderr.count("foreseen") == 2 and stderr.count("told") == 1
    assert not {"\x1b", "\x9b", "\u202e"} & set(stderr)
    assert "hidden" not in stderr
