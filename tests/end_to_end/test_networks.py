"""Jobs with networks, end to end: real machines, a real server, and a little internet with a package index in it."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from belljar.node.machines.host.namespace import run_in_namespace
from support.internet import (
    INTERNET,
    METADATA,
    NAMESERVER,
    NETNS,
    PRIVATE_WEB,
    WEB,
    SimulatedInternet,
    host_state,
    listen,
)
from support.running import TRY, Server, serving

pytestmark = [pytest.mark.vm, pytest.mark.root]


@pytest.fixture(scope="module")
def networked(
    internet: SimulatedInternet, built_images: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Server]:
    before = host_state()
    data_dir = tmp_path_factory.mktemp("networked") / "data"
    data_dir.mkdir()
    (data_dir / "images").symlink_to(built_images / "images")
    environment = {
        "BELLJAR_ACCELERATOR": "tcg",
        "BELLJAR_NAMESERVERS": f'["{NAMESERVER}"]',
        "BELLJAR_NETWORK_SLOTS": "2",
        "BELLJAR_PACKAGE_PYPI_URL": "http://mirror.example.org:8081/simple/",
        "BELLJAR_PACKAGE_PRIVATE_NETWORKS": f'["{PRIVATE_WEB}:8081"]',
        "BELLJAR_PROJECT_MAX_EGRESS": '{"nobody": "none"}',
    }
    with serving(data_dir, **environment) as server:
        yield server
        assert "Traceback" not in server.log.read_text(), server.log.read_text()
    assert host_state() == before


def printed(server: Server, job: dict[str, Any]) -> list[str]:
    assert job["status"] == "succeeded", (job, server.logs(job, stream="all"))
    return server.logs(job, stream="stdout").decode().splitlines()


def test_without_egress_a_job_has_no_device(networked: Server) -> None:
    job = networked.run("import os\nprint(sorted(os.listdir('/sys/class/net')))\n")
    assert printed(networked, job) == ["['lo']"]
    assert (job["egress"], job["usage"]["rx_bytes"], job["network"]["refused_count"]) == ("none", 0, 0)


def test_open_reaches_names_on_the_internet_and_nothing_private(networked: Server) -> None:
    places = ["www.example.org:80", f"{WEB}:443", f"{METADATA}:80", f"{PRIVATE_WEB}:80", "rebound.example.org:80"]
    job = networked.run(TRY, args=places, egress="open")
    assert printed(networked, job) == [
        "www.example.org:80 web",
        f"{WEB}:443 tls",
        f"{METADATA}:80 ConnectionRefusedError",
        f"{PRIVATE_WEB}:80 ConnectionRefusedError",
        "rebound.example.org:80 gaierror",
    ]
    assert job["usage"]["rx_bytes"] > 300 and job["usage"]["tx_bytes"] > 300
    refused = {(each["name"], each["address"], each["port"]) for each in job["network"]["refused"]}
    assert {(None, METADATA, 80), (None, PRIVATE_WEB, 80), ("rebound.example.org", METADATA, None)} == refused
    console = networked.logs(job, stream="console").decode()
    assert f"[belljar: refused a connection to {METADATA}:80 by tcp: no job may reach" in console


def test_a_list_reaches_exactly_what_is_listed_and_the_log_says_what_was_refused(networked: Server) -> None:
    places = ["www.example.org:80", "www.example.org:443", "pypi.org:443", "198.51.100.20:80"]
    job = networked.run(TRY, args=places, egress=["WWW.Example.Org.:80"])
    assert job["egress"] == ["www.example.org:80"]
    assert printed(networked, job) == [
        "www.example.org:80 web",
        "www.example.org:443 ConnectionRefusedError",
        "pypi.org:443 gaierror",
        "198.51.100.20:80 ConnectionRefusedError",
    ]
    refused = {(each["name"], each["address"], each["port"]) for each in job["network"]["refused"]}
    assert refused == {
        ("pypi.org", None, None),
        ("www.example.org", WEB, 443),
        (None, "198.51.100.20", 80),
    }
    console = networked.logs(job, stream="console").decode()
    assert "[belljar: refused the name 'pypi.org'" in console and "egress is www.example.org:80]" in console


def test_a_jobs_flows_are_what_the_server_counted(networked: Server) -> None:
    """Through a real machine, its hypervisor and the whole way to the API."""
    sizes, counted = (10, 100_000), []
    with run_in_namespace(NETNS / INTERNET, lambda: listen(WEB, 8100)) as listener:

        def serve() -> None:
            listener.settimeout(100)
            for _ in sizes:
                connection, _ = listener.accept()
                with connection:
                    received = 0
                    while data := connection.recv(65536):
                        received += len(data)
                    connection.sendall(b"r" * (received // 2))
                    counted.append(received)

        server = threading.Thread(target=serve)
        server.start()
        code = f"""
import socket
for size in {sizes}:
    with socket.create_connection(("www.example.org", 8100), 20) as connection:
        connection.sendall(b"s" * size)
        connection.shutdown(socket.SHUT_WR)
        while connection.recv(65536):
            pass
try:
    socket.create_connection(("{METADATA}", 80), 5)
except ConnectionRefusedError:
    print("refused")
"""
        job = networked.run(code, egress=["www.example.org:8100"])
        server.join(10)
    assert printed(networked, job) == ["refused"] and counted == list(sizes)
    report = networked.http.get(f"/v1/jobs/{job['id']}/flows").json()
    assert (report["source"], report["is_final"], report["source_reason"]) == ("ebpf", True, None)
    allowed = sorted((flow["bytes_out"], flow["bytes_in"]) for flow in report["flows"] if flow["port"] == 8100)
    assert [out for out, _ in allowed] == counted or allowed[-1][0] > 100_000  # or some were sent again
    assert allowed[0][1] == 5
    flow = next(flow for flow in report["flows"] if flow["port"] == 8100)
    assert (flow["name"], flow["name_source"], flow["rule"]) == ("www.example.org", "dns", "www.example.org:8100")
    refused = [flow for flow in report["flows"] if flow["verdict"] == "refused"]
    assert [(flow["address"], flow["port"], flow["rule"]) for flow in refused] == [(METADATA, 80, "private")]


def test_the_machine_has_no_ipv6_and_its_resolver_is_the_gateway(networked: Server) -> None:
    code = """
cat /etc/resolv.conf
ls /sys/class/net
cat /proc/net/if_inet6 2>/dev/null | wc -l
cat /sys/class/net/eth0/address /sys/class/net/eth0/mtu
"""
    lines = printed(networked, networked.run(code, "shell", egress="open"))
    assert lines[:4] == ["nameserver 172.30.0.1", "eth0", "lo", "0"]
    assert lines[4] == "02:62:6a:00:00:02" and 576 <= int(lines[5]) <= 1500


def test_clones_of_a_snapshot_have_networks_of_their_own(networked: Server) -> None:
    """The template's led nowhere; each clone is plugged into a slot and told so when it wakes."""
    for _ in range(60):  # the snapshot is made beside the first jobs
        job = networked.run(TRY, args=["www.example.org:80", f"{WEB}:443"], egress="www.example.org:80")
        assert printed(networked, job) == ["www.example.org:80 web", f"{WEB}:443 ConnectionRefusedError"]
        if job["machine"]["source"] != "boot":
            break
        time.sleep(1)
    assert job["machine"]["source"] != "boot"
    ids = [networked.submit(TRY, args=["www.example.org:80"], egress="open") for _ in range(4)]
    for each in ids:
        assert printed(networked, networked.wait(each)) == ["www.example.org:80 web"]


def test_packages_come_from_the_mirror_and_only_from_there(
    networked: Server, internet: SimulatedInternet, tmp_path: Path
) -> None:
    package = tmp_path / "bellpackage"
    package.mkdir()
    (package / "pyproject.toml").write_text('[project]\nname = "bellpackage"\nversion = "1.0"\n')
    wheel = make_wheel(tmp_path)
    folder = tmp_path / "simple" / "bellpackage"
    folder.mkdir(parents=True)
    (folder / wheel.name).write_bytes(wheel.read_bytes())
    (folder / "index.html").write_text(f'<a href="{wheel.name}">{wheel.name}</a>')
    internet.nameserver.zone["mirror.example.org"] = [PRIVATE_WEB]
    with index_server(tmp_path):
        code = """
import os, subprocess, sys, urllib.request
url = os.environ["PIP_INDEX_URL"] + "bellpackage/"
page = urllib.request.urlopen(url, timeout=20).read().decode()
name = page.split('"')[1]
open("/tmp/" + name, "wb").write(urllib.request.urlopen(url + name, timeout=20).read())
sys.path.insert(0, "/tmp/" + name)
import bellpackage
print(bellpackage.WORDS, os.environ["PIP_TRUSTED_HOST"])
"""
        job = networked.run(code, egress="packages")
        assert printed(networked, job) == ["packed and fetched mirror.example.org:8081"]
        other = networked.run(TRY, args=["www.example.org:80", f"{PRIVATE_WEB}:80"], egress="packages")
        assert printed(networked, other) == ["www.example.org:80 gaierror", f"{PRIVATE_WEB}:80 ConnectionRefusedError"]
        unprivileged = networked.run(TRY, args=["mirror.example.org:8081"], egress="mirror.example.org")
        assert printed(networked, unprivileged) == ["mirror.example.org:8081 gaierror"]


def make_wheel(folder: Path) -> Path:
    import zipfile

    path = folder / "bellpackage-1.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("bellpackage/__init__.py", 'WORDS = "packed and fetched"\n')
        archive.writestr(
            "bellpackage-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: bellpackage\nVersion: 1.0\n"
        )
        archive.writestr("bellpackage-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n")
        archive.writestr("bellpackage-1.0.dist-info/RECORD", "")
    return path


class index_server:  # noqa: N801 (used as a context)
    """A package index in the internet's namespace, on a private address."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def __enter__(self) -> None:
        def handler(*arguments: Any) -> SimpleHTTPRequestHandler:
            return SimpleHTTPRequestHandler(*arguments, directory=str(self._folder))

        self._socket = run_in_namespace(NETNS / INTERNET, lambda: listen(PRIVATE_WEB, 8081))
        self._server = ThreadingHTTPServer((PRIVATE_WEB, 8081), handler, bind_and_activate=False)
        self._server.socket.close()
        self._server.socket = self._socket
        self._thread = threading.Thread(target=self._server.serve_forever)
        self._thread.start()

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._thread.join(10)
        self._server.server_close()


@pytest.mark.parametrize(
    ("egress", "words"),
    [
        ("none,open", "not both"),
        (["10.0.0.0/8"], "no job may reach"),
        ([f"h{number}.example" for number in range(10_000)], "at most 256"),
        ("a..b", "invalid host name"),
    ],
)
def test_malformed_policies_are_refused_at_the_door(networked: Server, egress: object, words: str) -> None:
    body = {"code": "print(1)", "language": "python", "egress": egress}
    response = networked.http.post("/v1/jobs", json=body)
    assert response.status_code == 422, response.text
    assert words in response.json()["detail"] and "egress" in response.text


def test_machines_side_by_side_do_not_see_one_another(networked: Server) -> None:
    serve = """
import socket, time
server = socket.create_server(("0.0.0.0", 8000))
server.settimeout(8)
print("up", flush=True)
try:
    print("visited by", server.accept()[1])
except TimeoutError:
    print("nobody came")
"""
    visit = """
import socket
for number in range(24):
    try:
        socket.create_connection((f"198.19.0.{number}", 8000), 1)
        print("reached", number)
    except OSError:
        pass
print("done")
"""
    listening = networked.submit(serve, egress="open", timeout_seconds=50)
    networked.until(listening, "running")
    assert printed(networked, networked.run(visit, egress="open", timeout_seconds=50)) == ["done"]
    job = networked.wait(listening)
    assert printed(networked, job) == ["up", "nobody came"]


def test_nobody_listens_for_jobs_on_the_host(networked: Server) -> None:
    """The resolvers' sockets are in the slots' namespaces."""
    networked.run("print(1)", egress="open")
    with socket.socket() as probe:
        probe.settimeout(1)
        assert probe.connect_ex(("127.0.0.1", 53)) != 0
