"""The synchronous half of the SDK is what script/sdk makes of the asynchronous one."""

from __future__ import annotations

import inspect
import subprocess
import sys

import pytest

import belljar
from belljar.client import AsyncClient, Client
from support.paths import ROOT


def test_the_synchronous_modules_are_current() -> None:
    command = [sys.executable, "script/sdk", "--check"]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert run.returncode == 0, run.stderr


def test_both_clients_have_the_same_methods_and_parameters() -> None:
    names = {name for name in vars(AsyncClient) if not name.startswith("_")} - {"aclose"}
    assert names == {name for name in vars(Client) if not name.startswith("_")} - {"close"}
    for name in names - {"transport"}:
        there, here = (list(inspect.signature(getattr(kind, name)).parameters) for kind in (AsyncClient, Client))
        assert there == here


def test_the_package_loads_the_sdk_only_when_it_is_used() -> None:
    code = "import belljar, sys; assert 'httpx' not in sys.modules; belljar.Client; assert 'httpx' in sys.modules"
    assert subprocess.run([sys.executable, "-c", code], timeout=60).returncode == 0


def test_every_name_of_the_package_exists() -> None:
    assert all(getattr(belljar, name) is not None for name in belljar.__all__)
    assert set(belljar.__all__) <= set(dir(belljar))
    with pytest.raises(AttributeError, match="no attribute 'Clinet'"):
        belljar.Clinet  # noqa: B018
