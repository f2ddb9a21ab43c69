"""The package registries in this machine's settings of pip and npm."""

from __future__ import annotations

import json
import os
import shutil
import socket
import ssl
import subprocess
import sys
import urllib.error
import urllib.request
from dataclasses import dataclass
from ipaddress import IPv4Address
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from belljar.model.egress import BLOCKED_NETWORKS


@dataclass(frozen=True)
class Registry:
    url: str
    #: Certificates that the machine trusts it by; None: those of its system.
    ca_file: Path | None

    @property
    def certificates(self) -> str:
        """The certificates that a job must trust, as PEM."""
        return Path(
            self.ca_file or ssl.get_default_verify_paths().cafile or "/etc/ssl/certs/ca-certificates.crt"
        ).read_text()

    def private(self) -> list[str]:
        """Return its private addresses for the setting package_private_networks."""
        parts = urlsplit(self.url)
        port = parts.port or {"http": 80, "https": 443}[parts.scheme]
        found = {info[4][0] for info in socket.getaddrinfo(parts.hostname, port, socket.AF_INET)}
        return [f"{each}:{port}" for each in found if any(IPv4Address(each) in network for network in BLOCKED_NETWORKS)]


def pypi() -> Registry:
    """Return the index of this machine's pip; skip the test when it is unreachable."""
    command = [sys.executable, "-m", "pip", "config", "list"]
    listed = subprocess.run(command, capture_output=True, text=True, timeout=60).stdout
    settings = dict(line.split("=", 1) for line in listed.splitlines() if "=" in line)
    found = {name.rpartition(".")[2]: value.strip("'\"") for name, value in settings.items()}
    return _reached(found.get("index-url", "https://pypi.org/simple/"), found.get("cert"), "six/")


def npm() -> Registry:
    """Return the registry of this machine's npm; skip the test without npm or when it is unreachable."""
    if shutil.which("npm") is None:
        pytest.skip("npm is not installed on this machine")
    command = ["npm", "config", "list", "--json"]
    settings = json.loads(subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout)
    cafile = settings.get("cafile") or os.environ.get("NODE_EXTRA_CA_CERTS")
    return _reached(settings["registry"], cafile, "is-number")


def _reached(url: str, ca_file: str | None, path: str) -> Registry:
    if urlsplit(url).username is not None:
        pytest.skip("this machine's registry needs a password, which no job may have")
    if urllib.request.getproxies().get(urlsplit(url).scheme):
        pytest.skip("this machine reaches its registry through a proxy, which jobs lack")
    registry = Registry(url.rstrip("/") + "/", Path(ca_file) if ca_file else None)
    try:
        context = ssl.create_default_context(cafile=ca_file)
        urllib.request.urlopen(registry.url + path, timeout=20, context=context).close()
    except (urllib.error.URLError, OSError) as error:
        pytest.skip(f"this machine's own registry does not answer: {error}")
    return registry
