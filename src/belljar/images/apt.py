"""Debian's archive, read through apt in a folder of its own: its lists, its cache and its keys, never the host's state.

It needs no root, and does not depend on the release that the host runs. apt checks the archive's signatures against
Debian's keyring; nothing here can turn that off.
"""

from __future__ import annotations

import hashlib
import re
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from belljar.images.tool import call, need
from belljar.model.errors import HostError, ImageBuildError

KEYRING = Path("/usr/share/keyrings/debian-archive-keyring.gpg")
DEFAULT_MIRROR = "http://deb.debian.org/debian"
DEFAULT_SECURITY_MIRROR = "http://deb.debian.org/debian-security"
DEBIAN_ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64"}
_TIMEOUT_SECONDS = 600
#: Images that are built one after the other read the archive once, and see the same packages.
_RECENT_SECONDS = 900


@dataclass(frozen=True, kw_only=True, slots=True)
class Archive:
    """One Debian release for one architecture, as apt sees it from `folder`."""

    folder: Path
    suite: str
    #: Debian's name of it: amd64, arm64.
    architecture: str
    sources: str
    log: Path

    @property
    def machine(self) -> str:
        """The kernel's name of the architecture."""
        return next(name for name, debian in DEBIAN_ARCHITECTURES.items() if debian == self.architecture)

    @property
    def debs(self) -> Path:
        """Where downloaded packages are kept between builds."""
        return self.folder / "debs"

    async def _apt(self, *argv: str, cwd: Path | None = None) -> str:
        config = str(self.folder / "apt.conf")
        return await call(argv, log=self.log, timeout_seconds=_TIMEOUT_SECONDS, cwd=cwd, env={"APT_CONFIG": config})

    @property
    def lists(self) -> Path:
        """The archive's indexes, as apt has fetched and checked them."""
        return self.folder / "lists"

    async def update(self, *, even_if_recent: bool) -> None:
        """Fetch the archive's lists, unless that was done a moment ago.

        Raises ImageBuildError when a signature or the network fails.
        """
        stamp = self.folder / "updated"
        recent = stamp.exists() and time.time() - stamp.stat().st_mtime < _RECENT_SECONDS
        if recent and stamp.read_text() == self.sources and not even_if_recent:
            return
        # A mirror that does not answer is a warning to apt, which goes on with older lists; where there are none, what
        # comes next would complain of something else.
        first = not any(self.lists.glob("*InRelease"))
        await self._apt("apt-get", "update", "-q", *(["--error-on=any"] if first else []))
        stamp.write_text(self.sources)

    async def dependency(self, package: str, pattern: str) -> str:
        """The package that `package` depends on whose name matches. Raises ImageBuildError when there is none."""
        for line in (await self._apt("apt-cache", "depends", package)).splitlines():
            name = line.strip().removeprefix("Depends: ")
            if line.strip().startswith("Depends: ") and re.fullmatch(pattern, name):
                return name
        raise ImageBuildError(f"{package} in {self.suite} depends on nothing like {pattern}")

    async def version(self, package: str) -> str:
        """The version of a package that would be installed. Raises ImageBuildError when there is none."""
        found = re.search(r"^Version: (.+)$", await self._apt("apt-cache", "show", "--no-all-versions", package), re.M)
        if not found:
            raise ImageBuildError(f"there is no package {package} in {self.suite}")
        return found[1].strip()

    async def versions(self, packages: Iterable[str]) -> dict[str, str]:
        """The versions that would be installed of those packages that the archive still has."""
        said = await self._apt("apt-cache", "show", "--no-all-versions", *packages)
        return dict(re.findall(r"^Package: (\S+)$.*?^Version: (\S+)$", said, re.M | re.S))

    async def check(self, packages: Iterable[str]) -> None:
        """Raises ImageBuildError, with apt's reason, when these packages cannot be installed: before anything is."""
        await self._apt("apt-get", "install", "--simulate", "--no-install-recommends", "-qq", "--", *packages)

    async def download(self, package: str) -> Path:
        """The package's file, from the cache when it is there whole. apt has checked what it is against the lists."""
        listing = await self._apt("apt-get", "download", "--print-uris", package)
        found = re.search(r"^'\S+' (\S+) \d+ SHA256:([0-9a-f]{64})$", listing, re.M)
        if not found:
            raise ImageBuildError(f"apt names no SHA256 for {package}; see {self.log}")
        name, sha256 = found.groups()
        path = self.debs / Path(name).name
        if not (path.exists() and hashlib.sha256(path.read_bytes()).hexdigest() == sha256):
            await self._apt("apt-get", "download", "-q", package, cwd=self.debs)
        return path


def open_archive(
    cache: Path, suite: str, architecture: str, mirror: str | None, security_mirror: str | None, log: Path
) -> Archive:
    """Prepare a folder below `cache` for apt, one for each suite and architecture.

    Raises HostError without Debian's keyring, MissingTool without apt.
    """
    need("apt-get", "apt-cache", "dpkg-deb")
    if not KEYRING.exists():
        raise HostError(f"{KEYRING} is missing; install with: apt-get install debian-archive-keyring")
    folder = cache / f"{suite}-{architecture}"
    for part in ("lists/partial", "archives/partial", "debs", "etc"):
        (folder / part).mkdir(parents=True, exist_ok=True)
    (folder / "status").touch()
    sources = _sources(suite, mirror, security_mirror)
    (folder / "sources.list").write_text(sources)
    (folder / "apt.conf").write_text(_config(folder, architecture))
    return Archive(folder=folder, suite=suite, architecture=architecture, sources=sources, log=log)


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
    host = host_mirrors(suite)
    main = mirror or host.get(suite, DEFAULT_MIRROR)
    security = security_mirror or host.get(f"{suite}-security", DEFAULT_SECURITY_MIRROR)
    return (
        f"deb {signed} {main} {suite} main\n"
        f"deb {signed} {main} {suite}-updates main\n"
        f"deb {signed} {security} {suite}-security main\n"
    )


def host_mirrors(suite: str, etc: Path = Path("/etc/apt")) -> dict[str, str]:
    """Which mirror this host's apt uses for a release and its security updates: suite → address."""
    wanted, found = (suite, f"{suite}-security"), dict[str, str]()
    for path in [etc / "sources.list", *sorted((etc / "sources.list.d").glob("*"))]:
        text = path.read_text(errors="replace") if path.is_file() else ""
        for kinds, addresses, suites in _entries(text, deb822=path.suffix == ".sources"):
            debian = [address for address in addresses if "debian" in address]
            if "deb" in kinds and debian:
                found |= {each: debian[0] for each in wanted if each in suites and each not in found}
    return found


def _entries(text: str, *, deb822: bool) -> list[tuple[list[str], list[str], list[str]]]:
    """Types, addresses and suites of every source in a file, sources.list(5)."""
    if not deb822:
        lines = (re.sub(r"\[.*?\]", "", line).split("#")[0].split() for line in text.splitlines())
        return [([line[0]], [line[1]], [line[2]]) for line in lines if len(line) >= 3]
    entries = []
    for stanza in re.split(r"\n\s*\n", text):
        fields = dict(re.findall(r"^(Types|URIs|Suites):\s*(.*)$", stanza, re.M))
        entries.append(tuple(fields.get(name, "").split() for name in ("Types", "URIs", "Suites")))
    return [(kinds, addresses, suites) for kinds, addresses, suites in entries]
