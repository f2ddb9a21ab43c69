"""Languages for tests of scripts."""

from __future__ import annotations

import pytest

from belljar.model.image import Language
from support.script_languages import BINARY, CPP, PYTHON, SHELL, C


@pytest.fixture(scope="session")
def languages() -> list[Language]:
    return [PYTHON, SHELL, BINARY]


@pytest.fixture(scope="session")
def compiled() -> list[Language]:
    return [C, CPP]
