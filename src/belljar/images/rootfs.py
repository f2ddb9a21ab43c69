"""Build a root filesystem: mmdebstrap unpacks Debian packages, a hook packs the folder into erofs, without root.

The hook runs inside mmdebstrap, in its user namespace when belljar runs as an ordinary user, so owners and modes are
right. Files that the build creates get one fixed time; files of packages keep theirs, which Python's compiled modules
depend on.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from pathlib import Path

from belljar.images.apt import DebianArchive
from belljar.images.build_sandbox import sandboxed_command
from belljar.images.erofs import EPOCH, mkfs_command
from belljar.images.host_tools import require_tools, run_tool
from belljar.images.npm import fetch_npm
from belljar.images.prefork_programs import rootfs_programs
from belljar.images.recipe import Recipe
from belljar.images.rootfs_source import RootfsMetadata
from belljar.images.subordinate_ids import require_subordinate_ids
from belljar.images.wheels import fetch_wheels
from belljar.model.errors import ImageBuildError

_TIMEOUT_SECONDS = 1800
#: Incremented when the build procedure changes, so that root filesystems of older versions are not reused.
FORMAT = 4
_EXCLUDED_FILES = (
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
#: Exceptions to the excluded files: the common character sets for iconv(1) and its users.
_INCLUDED_FILES = tuple(
    f"/usr/lib/*/gconv/{name}"
    for name in (
        "gconv-modules*", "UTF-*.so", "UNICODE.so", "ISO8859-1.so", "ISO8859-15.so", "CP1252.so", "SJIS.so", "GBK.so"
    )
)  # fmt: skip
#: Packages that programs expect on every system: certificates (HTTPS), time zones, names of services and protocols.
_COMMON_PACKAGES = ("usr-is-merged", "ca-certificates", "tzdata", "netbase")
#: mmdebstrap's hook that merges /usr; apt would install all of perl for the package that does the same.
_MERGED_USR = "--hook-dir=/usr/share/mmdebstrap/hooks/merged-usr"
#: The environment of commands in the root filesystem, without this host's.
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
# Not with path-exclude of dpkg: scripts of the packages compile these.
rm -rf "$root"/usr/lib/python3*/test "$root"/usr/lib/python3*/idlelib "$root"/usr/lib/python3*/ensurepip
rm -rf "$root"/var/lib/dpkg/*-old "$root"/etc/apt "$root"/var/lib/dpkg/info
rm -rf "$root"/usr/share/perl5/Debconf "$root"/usr/share/perl5/Debian
find "$root" -xdev -type f -perm /6000 -exec chmod a-s {} +
# mmdebstrap mounts /proc, /sys and /dev there: they are excluded, and are empty folders in the image.
find "$root" -xdev \( -path "$root/proc" -o -path "$root/sys" -o -path "$root/dev" \) -prune -o \
    \( -newer "$before" -o -path "$root" \) -exec touch -h -d @EPOCH {} +
exec MKFS --exclude-regex='^(proc|sys|dev)/.*' "$out" "$root"
"""


def _pack_script() -> str:
    return _PACK.replace("EPOCH", str(EPOCH)).replace("MKFS", " ".join(mkfs_command()))


async def build_rootfs(recipe: Recipe, archive: DebianArchive, out: Path, work: Path) -> RootfsMetadata:
    """Build the recipe's root filesystem into the file `out` and return its metadata.

    `work` is an empty folder for temporary files. Raises MissingTool, DiskFull, HostError, ImageBuildError.
    """
    require_tools("mmdebstrap", "mkfs.erofs")
    require_subordinate_ids()
    before, listing, script = work / "before", work / "packages", work / "pack.sh"
    before.touch()
    script.write_text(_pack_script())
    extra = await _ExtraContent(recipe, archive, work).fetch()
    debs = shlex.quote(str(archive.debs))
    lists = shlex.quote(str(archive.lists))
    hooks = [
        # update-alternatives of some packages needs the folder of the excluded man pages.
        '--setup-hook=mkdir -p "$1"/usr/share/man/man1 "$1"/var/cache/apt/archives "$1"/var/lib/apt/lists/partial',
        f'--setup-hook=cp -a {debs}/. "$1"/var/cache/apt/archives/',
        f'--setup-hook=cp -a {lists}/*_* "$1"/var/lib/apt/lists/',
        f'--customize-hook=cp -n "$1"/var/cache/apt/archives/*.deb {debs}/',
        '--customize-hook=dpkg-query --admindir="$1"/var/lib/dpkg -W '
        f"-f '${{Package}} ${{Version}}\\n' >{shlex.quote(str(listing))}",
        *(f"--customize-hook={command}" for command in extra.commands),
        *(f'--customize-hook=chroot "$1" {_ENV} {shlex.join(command)}' for command in recipe.prepare),
        *(f"--customize-hook={command}" for command in _version_commands(recipe, work)),
        f'--customize-hook=sh {shlex.quote(str(script))} "$1" {shlex.join([str(out), str(before)])}',
    ]
    (work / "sources.list").write_text(archive.sources)
    command = sandboxed_command(
        [
            "mmdebstrap",
            "--verbose",
            # Also in a user namespace: one of mmdebstrap's own could not enter a folder of this user.
            "--mode=root",
            "--variant=essential",
            "--format=null",
            f"--architectures={archive.architecture}",
            f"--include={','.join((*_COMMON_PACKAGES, *recipe.packages))}",
            "--skip=update,essential/unlink,cleanup",
            '--aptopt=Acquire::Languages "none"',
            # apt's sandbox user could not enter the data folder.
            '--aptopt=APT::Sandbox::User "root"',
            # Without fsync for each file, because an interrupted build is discarded anyway.
            "--dpkgopt=force-unsafe-io",
            *(f"--dpkgopt=path-exclude={pattern}" for pattern in (*_EXCLUDED_FILES, *recipe.exclude)),
            *(f"--dpkgopt=path-include={pattern}" for pattern in _INCLUDED_FILES),
            _MERGED_USR,
            *hooks,
            archive.suite,
            "-",
            str(work / "sources.list"),
        ]
    )
    await run_tool(
        command,
        name="mmdebstrap",
        log=archive.log,
        timeout_seconds=_TIMEOUT_SECONDS,
        cwd=work,
        env={"SOURCE_DATE_EPOCH": str(EPOCH), "TMPDIR": str(work)},
    )
    if not out.exists():
        raise ImageBuildError(f"mmdebstrap succeeded without a root filesystem; see {archive.log}")
    return RootfsMetadata(
        packages=dict(line.split(" ", 1) for line in listing.read_text().splitlines()),
        other_packages=extra.packages,
        versions={language.name: _first_line(work / f"version-{language.name}") for language in recipe.languages},
    )


class _ExtraContent:
    """The content of a recipe besides Debian packages: fetches it, and collects the hook commands that add it."""

    def __init__(self, recipe: Recipe, archive: DebianArchive, work: Path) -> None:
        self._recipe = recipe
        self._archive = archive
        self._work = work
        self.commands: list[str] = []
        self.packages: dict[str, dict[str, str]] = {}

    async def fetch(self) -> _ExtraContent:
        self._add_files()
        if self._recipe.pip:
            await self._add_wheels()
        if self._recipe.npm:
            folder = self._work / "npm"
            self.packages["npm"] = await fetch_npm(self._recipe.npm, folder=folder, log=self._archive.log)
            # At the root, because import and require search it from every folder.
            self._add_copy(folder / "node_modules", "/node_modules")
        return self

    def _add_files(self) -> None:
        for number, file in enumerate(self._recipe.files):
            source = self._work / f"file-{number}"
            source.write_text(file.text)
            mode = "755" if file.executable else "644"
            self.commands.append(f'install -D -m {mode} {shlex.quote(str(source))} "$1"{file.path}')
        preforks = rootfs_programs(language.prefork for language in self._recipe.languages)
        for number, (path, text) in enumerate(preforks.items()):
            source = self._work / f"prefork-{number}"
            source.write_bytes(text)
            self.commands.append(f'install -D -m 644 {shlex.quote(str(source))} "$1"{path}')

    async def _add_wheels(self) -> None:
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
            self._add_copy(folder / "bin", "/usr/local/bin")
            self.commands.append(f"rm -r {shlex.quote(str(folder / 'bin'))}")
        self._add_copy(folder, target)
        # Checked by hash, because files' times change later. Files that this Python cannot parse stay uncompiled.
        compile_all = f"python3 -m compileall -q --invalidation-mode unchecked-hash {target} >/dev/null"
        self.commands.append(f'chroot "$1" {_ENV} {compile_all} || true')

    def _add_copy(self, source: Path, target: str) -> None:
        self.commands.append(
            f'mkdir -p "$1"{target} && cp -r --preserve=mode,links {shlex.quote(str(source))}/. "$1"{target}/'
        )


def _version_commands(recipe: Recipe, work: Path) -> Iterator[str]:
    for language in recipe.languages:
        if language.version:
            output = shlex.quote(str(work / f"version-{language.name}"))
            yield f'chroot "$1" {_ENV} {shlex.join(language.version)} >{output} 2>&1 </dev/null'


def _first_line(path: Path) -> str:
    lines = path.read_text(errors="replace").splitlines() if path.exists() else []
    return lines[0][:200].strip() if lines else ""
