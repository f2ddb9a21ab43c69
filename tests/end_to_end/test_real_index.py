"""Packages from the real indexes, as this machine's own pip and npm are set up to reach them."""

from __future__ import annotations

import contextlib
import ipaddress
import json
import re
import shutil
import socket
import ssl
import subprocess
import sys
from pathlib import Path
from urllib.parse import urljoin, urlsplit

import httpx
import pytest

from support.command import belljar

pytestmark = [pytest.mark.vm, pytest.mark.root, pytest.mark.usefixtures("host_network")]

SCRIPT = """# /// script
# requires-python = ">=3.11"
# dependencies = ["numpy", "requests"]
# ///
import numpy, requests
print(numpy.arange(5).sum(), requests.Request("GET", "http://example.org/").prepare().url)
"""
NODE_SCRIPT = """import odd from 'is-odd';
import { createRequire } from 'node:module';
console.log(odd(3), createRequire(import.meta.url)('left-pad')('x', 3, '.'));
"""


def pip_says(name: str) -> str | None:
    """What this machine's pip has for an option."""
    command = [sys.executable, "-m", "pip", "config", "list"]
    listed = subprocess.run(command, capture_output=True, text=True, timeout=60).stdout
    found = re.search(rf"^(?:\S+\.)?{name}='(.*)'$", listed, re.M)
    return found[1] if found else None


def reached(url: str, trusted: str | None) -> httpx.Response:
    """The page at that address; a skip, with the reason, when there is none."""
    context = ssl.create_default_context(cafile=trusted)
    try:
        response = httpx.get(url, verify=context, timeout=20, follow_redirects=True)
        response.raise_for_status()
    except (httpx.HTTPError, OSError) as error:
        pytest.skip(f"the package index that this machine is set up for is not reached: {type(error).__name__}")
    return response


def environment(hosts: set[tuple[str, int]], trusted: str | None) -> dict[str, str]:
    """Settings for an index on those hosts, also where their addresses are private ones."""
    addresses = set()
    for host, port in hosts:
        with contextlib.suppress(OSError):
            found = socket.getaddrinfo(host, port, socket.AF_INET, socket.SOCK_STREAM)
            addresses |= {(str(each[4][0]), port) for each in found}
    private = [f"{address}:{port}" for address, port in addresses if not ipaddress.ip_address(address).is_global]
    return {
        "BELLJAR_PACKAGE_HOSTS": json.dumps(sorted(f"{host}:{port}" for host, port in hosts)),
        "BELLJAR_PACKAGE_PRIVATE_NETWORKS": json.dumps(sorted(private)),
        **({"BELLJAR_PACKAGE_CA_FILE": trusted} if trusted else {}),
    }


def place(url: str) -> tuple[str, int]:
    parts = urlsplit(url)
    assert parts.hostname is not None
    return parts.hostname, parts.port or {"http": 80, "https": 443}[parts.scheme]


def test_numpy_and_requests_from_the_real_index(data_dir: Path, tmp_path: Path) -> None:
    index, trusted = pip_says("index-url") or "https://pypi.org/simple", pip_says("cert")
    if urlsplit(index).username:
        pytest.skip("this machine's package index asks for a password, which builders are not given")
    project = f"{index.rstrip('/')}/numpy/"
    page = reached(project, trusted).text
    files = {place(urljoin(project, link)) for link in re.findall(r'href="([^"#]+\.whl)', page)[-5:]}
    variables = environment({place(index), *files}, trusted) | {"BELLJAR_PACKAGE_PYPI_URL": index}
    (tmp_path / "script.py").write_text(SCRIPT)
    first = belljar("run", "script.py", data_dir=data_dir, cwd=tmp_path, timeout=600, **variables)
    assert (first.stdout, first.returncode) == (b"10 http://example.org/\n", 0), first.stderr
    assert b"belljar: installing numpy, requests" in first.stderr
    unreached = variables | {"BELLJAR_PACKAGE_HOSTS": "[]", "BELLJAR_PACKAGE_PYPI_URL": "http://nowhere.example"}
    second = belljar("run", "script.py", data_dir=data_dir, cwd=tmp_path, timeout=120, **unreached)
    assert (second.stdout, second.stderr, second.returncode) == (first.stdout, b"", 0)


def test_packages_of_npm_from_the_real_registry(language_images: Path, data_dir: Path, tmp_path: Path) -> None:
    if shutil.which("npm") is None:
        pytest.skip("npm, whose settings name the registry, is not installed")

    def npm_says(name: str) -> str | None:
        value = subprocess.run(
            ["npm", "config", "get", name], capture_output=True, text=True, timeout=60
        ).stdout.strip()
        return None if value in ("", "undefined", "null") else value

    registry, trusted = npm_says("registry"), npm_says("cafile")
    if registry is None:
        pytest.skip("this machine's npm has no registry")
    about = reached(f"{registry.rstrip('/')}/is-odd", trusted).json()
    archive = next(iter(about["versions"].values()))["dist"]["tarball"]
    variables = environment({place(registry), place(archive)}, trusted) | {"BELLJAR_PACKAGE_NPM_URL": registry}
    (tmp_path / "script").mkdir()
    (tmp_path / "script/main.mjs").write_text(NODE_SCRIPT)
    (tmp_path / "script/package.json").write_text('{"dependencies": {"is-odd": "3", "left-pad": "^1.3.0"}}')
    first = belljar("run", "script", data_dir=data_dir, cwd=tmp_path, timeout=600, **variables)
    assert (first.stdout, first.returncode) == (b"true ..x\n", 0), first.stderr
    (tmp_path / "script/package.json").write_text('{"dependencies": {"is-odd": "99999"}}')
    bad = belljar("run", "script", data_dir=data_dir, cwd=tmp_path, timeout=600, **variables)
    assert bad.returncode == 125 and b"belljar: package.json: notarget No matching version" in bad.stderr, bad.stderr
