"""Read Debian's archive through apt, with lists and cache in a separate folder and never the host's state.

It needs no root and does not depend on the host's release. apt always checks the archive's signatures against Debian's
keyring.
"""

from __future__ import annotations

import hashlib
import re
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from belljar.images.host_tools import require_tools, run_tool
from belljar.model.errors import HostError, ImageBuildError

KEYRING = Path("/usr/share/keyrings/debian-archive-keyring.gpg")
DEFAULT_MIRROR = "http://deb.debian.org/debian"
DEFAULT_SECURITY_MIRROR = "http://deb.debian.org/debian-security"
DEBIAN_ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64"}
_TIMEOUT_SECONDS = 600
#: Consecutive builds within this time read the archive once and get the same packages.
_RECENT_SECONDS = 900


@dataclass(frozen=True, kw_only=True, slots=True)
class DebianArchive:
    """One Debian release for one architecture; `folder` has apt's state."""

    folder: Path
    suite: str
    #: Debian's name of the architecture: amd64, arm64.
    architecture: str
    sources: str
    log: Path

    @property
    def machine(self) -> str:
        """The kernel's name of the architecture: x86_64, aarch64."""
        return next(name for name, debian in DEBIAN_ARCHITECTURES.items() if debian == self.architecture)

    @property
    def debs(self) -> Path:
        """The folder with downloaded packages, kept between builds."""
        return self.folder / "debs"

    async def _apt(self, *argv: str, cwd: Path | None = None) -> str:
        config = str(self.folder / "apt.conf")
        return await run_tool(argv, log=self.log, timeout_seconds=_TIMEOUT_SECONDS, cwd=cwd, env={"APT_CONFIG": config})

    @property
    def lists(self) -> Path:
        """The folder with the archive's indexes, fetched and checked by apt."""
        return self.folder / "lists"

    async def update(self, *, force: bool) -> None:
        """Fetch the archive's lists unless they are recent; with `force`, always.

        Raises ImageBuildError when a signature or the network fails.
        """
        stamp = self.folder / "updated"
        recent = stamp.exists() and time.time() - stamp.stat().st_mtime < _RECENT_SECONDS
        if recent and stamp.read_text() == self.sources and not force:
            return
        # apt only warns about a mirror that does not answer, and uses older lists. Without any it must fail here,
        # because the next command would report another error.
        first = not any(self.lists.glob("*InRelease"))
        await self._apt("apt-get", "update", "-q", *(["--error-on=any"] if first else []))
        stamp.write_text(self.sources)

    async def dependency(self, package: str, pattern: str) -> str:
        """Return the dependency of `package` whose name matches. Raises ImageBuildError when there is none."""
        for line in (await self._apt("apt-cache", "depends", package)).splitlines():
            name = line.strip().removeprefix("Depends: ")
            if line.strip().startswith("Depends: ") and re.fullmatch(pattern, name):
                return name
        raise ImageBuildError(f"{package} in {self.suite} has no dependency that matches {pattern}")

    async def version(self, package: str) -> str:
        """Return the candidate version of a package. Raises ImageBuildError when there is none."""
        match = re.search(r"^Version: (.+)$", await self._apt("apt-cache", "show", "--no-all-versions", package), re.M)
        if not match:
            raise ImageBuildError(f"there is no package {package} in {self.suite}")
        return match[1].strip()

    async def versions(self, packages: Iterable[str]) -> dict[str, str]:
        """Return the candidate versions of those packages that the archive has, by name. Raises ImageBuildError."""
        output = await self._apt("apt-cache", "show", "--no-all-versions", *packages)
        return dict(re.findall(r"^Package: (\S+)$.*?^Version: (\S+)$", output, re.M | re.S))

    async def check(self, packages: Iterable[str]) -> None:
        """Raise ImageBuildError with apt's reason when these packages cannot be installed."""
        await self._apt("apt-get", "install", "--simulate", "--no-install-recommends", "-qq", "--", *packages)

    async def download(self, package: str) -> Path:
        """Return the package's file, from the cache when its digest is right. Raises ImageBuildError."""
        listing = await self._apt("apt-get", "download", "--print-uris", package)
        match = re.search(r"^'\S+' (\S+) \d+ SHA256:([0-9a-f]{64})$", listing, re.M)
        if not match:
            raise ImageBuildError(f"apt has no SHA256 for {package}; see {self.log}")
        name, sha256 = match.groups()
        path = self.debs / Path(name).name
        if not (path.exists() and hashlib.sha256(path.read_bytes()).hexdigest() == sha256):
            await self._apt("apt-get", "download", "-q", package, cwd=self.debs)
        return path


def open_debian_archive(
    cache: Path, suite: str, architecture: str, mirror: str | None, security_mirror: str | None, log: Path
) -> DebianArchive:
    """Prepare a folder below `cache` for apt, one for each suite and architecture.

    Raises HostError without Debian's keyring, MissingTool without apt.
    """
    require_tools("apt-get", "apt-cache", "dpkg-deb")
    if not KEYRING.exists():
        raise HostError(f"{KEYRING} is missing; install with: apt-get install debian-archive-keyring")
    folder = cache / f"{suite}-{architecture}"
    for part in ("lists/partial", "archives/partial", "debs", "etc"):
        (folder / part).mkdir(parents=True, exist_ok=True)
    (folder / "status").touch()
    sources = _sources(suite, mirror, security_mirror)
    (folder / "sources.list").write_text(sources)
    (folder / "apt.conf").write_text(_config(folder, architecture))
    return DebianArchive(folder=folder, suite=suite, architecture=architecture, sources=sources, log=log)


def _config(folder: Path, architecture: str) -> str:
    settings = {
        "Dir::State": folder,
        "Dir::State::lists": folder / "lists",
        "Dir::State::status": folder / "status",
        "Dir::Cache": folder,
        "Dir::Cache::archives": folder / "archives",
        "Dir::Etc::sourcelist": folder / "sources.list",
        "Dir::Etc::sourceparts": "/dev/null",
        "Dir::Etc::preferences": "/dev/null",
        "Dir::Etc::preferencesparts": "/dev/null",
        "APT::Architecture": architecture,
        "APT::Architectures": architecture,
        "APT::Sandbox::User": "",
        "Acquire::Languages": "none",
        "Acquire::Retries": "2",
    }
    return "".join(f'{name} "{value}";\n' for name, value in settings.items())


def _sources(suite: str, mirror: str | None, security_mirror: str | None) -> str:
    signed = f"[signed-by={KEYRING}]"
    release, backports, _ = suite.partition("-backports")
    host = configured_mirrors(release)
    if backports:
        source = mirror or host.get(suite) or host.get(release, DEFAULT_MIRROR)
        return f"deb {signed} {source} {suite} main\n"
    main = mirror or host.get(suite, DEFAULT_MIRROR)
    security = security_mirror or host.get(f"{suite}-security", DEFAULT_SECURITY_MIRROR)
    return (
        f"deb {signed} {main} {suite} main\n"
        f"deb {signed} {main} {suite}-updates main\n"
        f"deb {signed} {security} {suite}-security main\n"
    )


def configured_mirrors(suite: str, etc: Path = Path("/etc/apt")) -> dict[str, str]:
    """Return the mirrors that this host's apt uses for a release, its updates and backports, suite → address."""
    names, mirrors = (suite, f"{suite}-security", f"{suite}-backports"), dict[str, str]()
    for path in [etc / "sources.list", *sorted((etc / "sources.list.d").glob("*"))]:
        text = path.read_text(errors="replace") if path.is_file() else ""
        for kinds, addresses, suites in _entries(text, deb822=path.suffix == ".sources"):
            debian = [address for address in addresses if "debian" in address]
            if "deb" in kinds and debian:
                mirrors |= {name: debian[0] for name in names if name in suites and name not in mirrors}
    return mirrors


def _entries(text: str, *, deb822: bool) -> list[tuple[list[str], list[str], list[str]]]:
    """Return the types, addresses and suites of every source in a file, sources.list(5)."""
    if not deb822:
        lines = (re.sub(r"\[.*?\]", "", line).split("#")[0].split() for line in text.splitlines())
        return [([line[0]], [line[1]], [line[2]]) for line in lines if len(line) >= 3]
    entries = []
    for stanza in re.split(r"\n\s*\n", text):
        fields = dict(re.findall(r"^(Types|URIs|Suites):\s*(.*)$", stanza, re.M))
        entries.append(tuple(fields.get(name, "").split() for name in ("Types", "URIs", "Suites")))
    return [(kinds, addresses, suites) for kinds, addresses, suites in entries]
