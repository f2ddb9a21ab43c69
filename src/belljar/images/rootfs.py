"""The root filesystem: mmdebstrap unpacks Debian packages, a hook packs the folder into erofs. No root, no loop mount.

The hook runs where mmdebstrap works, in its user namespace when belljar runs as an ordinary user, so owners and modes
come out right. What was made at build time gets one fixed time; files from packages keep theirs, which Python's
compiled modules depend on.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from pathlib import Path

from belljar.images.apt import Archive
from belljar.images.contained import contained
from belljar.images.npm import fetch_npm
from belljar.images.prefork_programs import programs_in_root
from belljar.images.recipe import Recipe
from belljar.images.rootfs_metadata import RootfsMetadata
from belljar.images.subordinate import need_subordinate_ids
from belljar.images.tool import call, need
from belljar.images.wheels import fetch_wheels
from belljar.model.errors import ImageBuildError

_TIMEOUT_SECONDS = 1800
#: Changes when the way a root filesystem is made does, so that older ones are not reused.
FORMAT = 4
#: One time for everything that is made at build time: 2023-06-10, when Debian 12 came out.
EPOCH = 1686355200
UUID = "62656c6c-6a61-7200-0000-000000000001"
MKFS = ("mkfs.erofs", "--quiet", "-x-1", f"-U{UUID}", f"-T{EPOCH}", "--preserve-mtime")
_NO_FILES = (
    "/usr/share/doc/*",
    "/usr/share/man/*",
    "/usr/share/info/*",
    "/usr/share/locale/*",
    "/usr/share/lintian/*",
    "/usr/share/bash-completion/*",
    "/usr/share/zoneinfo/right/*",
    "/usr/share/zoneinfo/posix/*",
    "/usr/lib/*/gconv/*",
    "/usr/lib/*/perl/*/CORE/*.h",
)
#: Kept of what is left out: the character sets that files still come in, for iconv(1) and what uses it.
_FILES = tuple(
    f"/usr/lib/*/gconv/{name}"
    for name in (
        "gconv-modules*", "UTF-*.so", "UNICODE.so", "ISO8859-1.so", "ISO8859-15.so", "CP1252.so", "SJIS.so", "GBK.so"
    )
)  # fmt: skip
#: What programs expect of every system: certificates (HTTPS), time zones, names of services and protocols.
_ALWAYS = ("usr-is-merged", "ca-certificates", "tzdata", "netbase")
#: mmdebstrap's own hook merges /usr. The essential packages want the package for that, and apt would take all of perl.
_MERGED_USR = "--hook-dir=/usr/share/mmdebstrap/hooks/merged-usr"


#: In the root filesystem nothing of this host's environment matters.
_ENV = "env -i PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin HOME=/root LANG=C.UTF-8"

#: Run with the root folder as $1, the erofs file to write as $2, a file older than the build as $3.
_PACK = r"""
set -eu
root=$1 out=$2 before=$3
mkdir -p "$root/job" "$root/work"
grep -q '^job:' "$root/etc/passwd" || {
    echo 'job:x:1000:1000::/work:/bin/bash' >>"$root/etc/passwd"
    echo 'job:x:1000:' >>"$root/etc/group"
}
echo belljar >"$root/etc/hostname"
printf '127.0.0.1 localhost belljar\n::1 localhost\n' >"$root/etc/hosts"
: >"$root/etc/machine-id"
rm -f "$root/etc/resolv.conf" "$root/etc/passwd-" "$root/etc/group-" "$root/etc/shadow-" "$root/etc/gshadow-"
rm -rf "$root"/usr/share/man "$root"/var/lib/apt "$root"/var/cache/* "$root"/var/log/* "$root"/tmp/* "$root"/run/*
rm -rf "$root"/boot
# Not by dpkg's path-exclude: a package's own scripts compile these.
rm -rf "$root"/usr/lib/python3*/test "$root"/usr/lib/python3*/idlelib "$root"/usr/lib/python3*/ensurepip
rm -rf "$root"/var/lib/dpkg/*-old "$root"/etc/apt "$root"/var/lib/dpkg/info
rm -rf "$root"/usr/share/perl5/Debconf "$root"/usr/share/perl5/Debian
find "$root" -xdev -type f -perm /6000 -exec chmod a-s {} +
# mmdebstrap has /proc, /sys and /dev mounted there meanwhile: they are left out, and are empty folders in the image.
find "$root" -xdev \( -path "$root/proc" -o -path "$root/sys" -o -path "$root/dev" \) -prune -o \
    \( -newer "$before" -o -path "$root" \) -exec touch -h -d @EPOCH {} +
exec MKFS --exclude-regex='^(proc|sys|dev)/.*' "$out" "$root"
"""


def _pack_script() -> str:
    return _PACK.replace("EPOCH", str(EPOCH)).replace("MKFS", " ".join(MKFS))


async def build_root(recipe: Recipe, archive: Archive, out: Path, work: Path) -> RootfsMetadata:
    """Build the recipe's root filesystem into the file `out`; returns what is in it.

    `work` is an empty folder for what lies around meanwhile. Raises MissingTool, DiskFull, ImageBuildError.
    """
    need("mmdebstrap", "mkfs.erofs")
    need_subordinate_ids()
    before, listing, script = work / "before", work / "packages", work / "pack.sh"
    before.touch()
    script.write_text(_pack_script())
    added = await _Additions(recipe, archive, work).fetch()
    debs = shlex.quote(str(archive.debs))
    lists = shlex.quote(str(archive.lists))
    hooks = [
        # update-alternatives of some packages insists on the folder of the pages that are left out.
        '--setup-hook=mkdir -p "$1"/usr/share/man/man1 "$1"/var/cache/apt/archives "$1"/var/lib/apt/lists/partial',
        f'--setup-hook=cp -a {debs}/. "$1"/var/cache/apt/archives/',
        f'--setup-hook=cp -a {lists}/*_* "$1"/var/lib/apt/lists/',
        f'--customize-hook=cp -n "$1"/var/cache/apt/archives/*.deb {debs}/',
        '--customize-hook=dpkg-query --admindir="$1"/var/lib/dpkg -W '
        f"-f '${{Package}} ${{Version}}\\n' >{shlex.quote(str(listing))}",
        *(f"--customize-hook={command}" for command in added.commands),
        *(f'--customize-hook=chroot "$1" {_ENV} {shlex.join(command)}' for command in recipe.prepare),
        *(f"--customize-hook={command}" for command in _ask_versions(recipe, work)),
        f'--customize-hook=sh {shlex.quote(str(script))} "$1" {shlex.join([str(out), str(before)])}',
    ]
    (work / "sources.list").write_text(archive.sources)
    command = contained(
        [
            "mmdebstrap",
            "--verbose",
            # In a user namespace too: mmdebstrap's own would not let it into a folder that only this user may enter.
            "--mode=root",
            "--variant=essential",
            "--format=null",
            f"--architectures={archive.architecture}",
            f"--include={','.join((*_ALWAYS, *recipe.packages))}",
            "--skip=update,essential/unlink,cleanup",
            '--aptopt=Acquire::Languages "none"',
            # Another user could not enter the data folder.
            '--aptopt=APT::Sandbox::User "root"',
            # The disk need not have every file before the next: what a crash leaves of a build is thrown away.
            "--dpkgopt=force-unsafe-io",
            *(f"--dpkgopt=path-exclude={pattern}" for pattern in (*_NO_FILES, *recipe.exclude)),
            *(f"--dpkgopt=path-include={pattern}" for pattern in _FILES),
            _MERGED_USR,
            *hooks,
            archive.suite,
            "-",
            str(work / "sources.list"),
        ]
    )
    await call(
        command,
        name="mmdebstrap",
        log=archive.log,
        timeout_seconds=_TIMEOUT_SECONDS,
        cwd=work,
        env={"SOURCE_DATE_EPOCH": str(EPOCH), "TMPDIR": str(work)},
    )
    if not out.exists():
        raise ImageBuildError(f"mmdebstrap ended well and made no root filesystem; see {archive.log}")
    return RootfsMetadata(
        packages=dict(line.split(" ", 1) for line in listing.read_text().splitlines()),
        other_packages=added.packages,
        versions={language.name: _said(work / f"version-{language.name}") for language in recipe.languages},
    )


class _Additions:
    """What a recipe lays into the root filesystem besides Debian packages, and the hooks that do it."""

    def __init__(self, recipe: Recipe, archive: Archive, work: Path) -> None:
        self._recipe = recipe
        self._archive = archive
        self._work = work
        self.commands: list[str] = []
        self.packages: dict[str, dict[str, str]] = {}

    async def fetch(self) -> _Additions:
        self._files()
        if self._recipe.pip:
            await self._wheels()
        if self._recipe.npm:
            folder = self._work / "npm"
            self.packages["npm"] = await fetch_npm(self._recipe.npm, folder=folder, log=self._archive.log)
            # At the root, where a script of any folder finds them, by import as by require.
            self._copy(folder / "node_modules", "/node_modules")
        return self

    def _files(self) -> None:
        for number, file in enumerate(self._recipe.files):
            source = self._work / f"file-{number}"
            source.write_text(file.text)
            mode = "755" if file.executable else "644"
            self.commands.append(f'install -D -m {mode} {shlex.quote(str(source))} "$1"{file.path}')
        preforks = programs_in_root(language.prefork for language in self._recipe.languages)
        for number, (path, text) in enumerate(preforks.items()):
            source = self._work / f"prefork-{number}"
            source.write_bytes(text)
            self.commands.append(f'install -D -m 644 {shlex.quote(str(source))} "$1"{path}')

    async def _wheels(self) -> None:
        version = await self._archive.version("python3")
        minor = ".".join(version.split(".")[:2])
        folder, target = self._work / "wheels", f"/usr/local/lib/python{minor}/dist-packages"
        self.packages["pypi"] = await fetch_wheels(
            self._recipe.pip,
            python_version=minor,
            architecture=self._archive.machine,
            folder=folder,
            log=self._archive.log,
        )
        if (folder / "bin").is_dir():
            self._copy(folder / "bin", "/usr/local/bin")
            self.commands.append(f"rm -r {shlex.quote(str(folder / 'bin'))}")
        self._copy(folder, target)
        # By hash: a file's time is changed later. A file that is no Python of this version stays uncompiled.
        compile_all = f"python3 -m compileall -q --invalidation-mode unchecked-hash {target} >/dev/null"
        self.commands.append(f'chroot "$1" {_ENV} {compile_all} || true')

    def _copy(self, source: Path, target: str) -> None:
        self.commands.append(
            f'mkdir -p "$1"{target} && cp -r --preserve=mode,links {shlex.quote(str(source))}/. "$1"{target}/'
        )


def _ask_versions(recipe: Recipe, work: Path) -> Iterator[str]:
    for language in recipe.languages:
        if language.version:
            said = shlex.quote(str(work / f"version-{language.name}"))
            yield f'chroot "$1" {_ENV} {shlex.join(language.version)} >{said} 2>&1 </dev/null'


def _said(path: Path) -> str:
    lines = path.read_text(errors="replace").splitlines() if path.exists() else []
    return lines[0][:200].strip() if lines else ""
