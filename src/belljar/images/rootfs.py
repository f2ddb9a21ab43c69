"""The root filesystem: mmdebstrap unpacks Debian packages, a hook packs the folder into erofs. No root, no loop mount.

The hook runs where mmdebstrap works, in its user namespace when belljar runs as an ordinary user, so owners and modes
come out right. What was made at build time gets one fixed time; files from packages keep theirs, which Python's
compiled modules depend on.
"""

from __future__ import annotations

import shlex
from pathlib import Path

from belljar.errors import ImageBuildError
from belljar.images.apt import Archive
from belljar.images.recipe import Recipe
from belljar.images.tool import call, need

_TIMEOUT_SECONDS = 1800
#: Changes when the way a root filesystem is made does, so that older ones are not reused.
FORMAT = 1
#: One time for everything that is made at build time: 2023-06-10, when Debian 12 came out.
_EPOCH = 1686355200
_UUID = "62656c6c-6a61-7200-0000-000000000001"
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
)
#: Without it dpkg's essential packages pull in all of perl to merge /usr, which mmdebstrap has done already.
_ALWAYS = ("usr-is-merged",)

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
rm -rf "$root"/var/lib/apt "$root"/var/cache/* "$root"/var/log/* "$root"/tmp/* "$root"/run/* "$root"/boot
# Not by dpkg's path-exclude: a package's own scripts compile these.
rm -rf "$root"/usr/lib/python3*/test "$root"/usr/lib/python3*/idlelib "$root"/usr/lib/python3*/ensurepip
rm -rf "$root"/var/lib/dpkg/*-old "$root"/etc/apt "$root"/var/lib/dpkg/info "$root"/usr/share/perl5
find "$root" -xdev -type f -perm /6000 -exec chmod a-s {} +
# mmdebstrap has /proc, /sys and /dev mounted there meanwhile: they are left out, and are empty folders in the image.
find "$root" -xdev \( -path "$root/proc" -o -path "$root/sys" -o -path "$root/dev" \) -prune -o \
    \( -newer "$before" -o -path "$root" \) -exec touch -h -d @EPOCH {} +
exec mkfs.erofs --quiet -x-1 -UUUID -TEPOCH --preserve-mtime --exclude-regex='^(proc|sys|dev)/.*' "$out" "$root"
"""


def _pack_script() -> str:
    return _PACK.replace("EPOCH", str(_EPOCH)).replace("-UUUID", f"-U{_UUID}")


async def build_root(recipe: Recipe, archive: Archive, out: Path, work: Path) -> dict[str, str]:
    """Build the recipe's root filesystem into the file `out`; returns its packages, name → version.

    `work` is an empty folder for what lies around meanwhile. Raises MissingTool, DiskFull, ImageBuildError.
    """
    need("mmdebstrap", "mkfs.erofs")
    before, packages, script = work / "before", work / "packages", work / "pack.sh"
    before.touch()
    script.write_text(_pack_script())
    debs, listing, pack = shlex.quote(str(archive.debs)), shlex.quote(str(packages)), shlex.join(["sh", str(script)])
    arguments = shlex.join([str(out), str(before)])
    hooks = [
        f'--setup-hook=mkdir -p "$1"/var/cache/apt/archives && cp -a {debs}/. "$1"/var/cache/apt/archives/',
        f'--customize-hook=cp -n "$1"/var/cache/apt/archives/*.deb {debs}/',
        f"--customize-hook=dpkg-query --admindir=\"$1\"/var/lib/dpkg -W -f '${{Package}} ${{Version}}\\n' >{listing}",
        f'--customize-hook={pack} "$1" {arguments}',
    ]
    (work / "sources.list").write_text(archive.sources)
    await call(
        [
            "mmdebstrap",
            "--quiet",
            "--variant=essential",
            "--format=null",
            f"--architectures={archive.architecture}",
            f"--include={','.join((*_ALWAYS, *recipe.packages))}",
            "--skip=essential/unlink,cleanup",
            '--aptopt=Acquire::Languages "none"',
            *(f"--dpkgopt=path-exclude={pattern}" for pattern in _NO_FILES),
            *hooks,
            archive.suite,
            "-",
            str(work / "sources.list"),
        ],
        log=archive.log,
        timeout_seconds=_TIMEOUT_SECONDS,
        cwd=work,
        env={"SOURCE_DATE_EPOCH": str(_EPOCH), "TMPDIR": str(work)},
    )
    if not out.exists():
        raise ImageBuildError(f"mmdebstrap ended well and made no root filesystem; see {archive.log}")
    return dict(line.split(" ", 1) for line in packages.read_text().splitlines())
