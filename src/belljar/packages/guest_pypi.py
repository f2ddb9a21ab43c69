"""Runs in a builder machine, never on a host: resolves, locks and installs what a script needs, and packs it.

Its folder holds uv and requirements.in; it leaves layer.tar and report.json beside them. Packages may run code of
theirs while they are installed: that is what the machine is for. All that it prints is the user's to read.
"""

import importlib.metadata
import json
import os
import subprocess
import sys
import sysconfig
import tarfile

FOLDER = os.path.dirname(os.path.abspath(__file__))
TREE = f"{FOLDER}/layer"
LOCK = f"{FOLDER}/requirements.txt"
#: Python adds what these say, or runs them, only while it starts.
AT_START = ("sitecustomize.py", "usercustomize.py")


def main() -> int:
    prefix = os.path.dirname(sysconfig.get_path("scripts"))
    place = os.path.relpath(sysconfig.get_path("purelib"), prefix)
    if place.startswith(".."):
        return complain(f"Python's packages are not below {prefix}")
    for step in (resolve, install):
        code = step()
        if code != 0:
            return code
    site = f"{TREE}/{place}"
    settle(site)
    size = tree_bytes()
    most = int(os.environ["MAX_LAYER_BYTES"])
    if size > most:
        return complain(
            f"the packages take {size >> 20} MB, and {most >> 20} MB is the most (the setting max_layer_mb)"
        )
    print("compiling", flush=True)
    compile_all(site)
    report(prefix, site)
    pack()
    return 0


def uv(*words: str) -> int:
    trusted = f"{FOLDER}/certificates.pem"
    environment = {**os.environ, "UV_CACHE_DIR": f"{FOLDER}/cache"}
    if os.path.exists(trusted):
        environment["SSL_CERT_FILE"] = trusted
    try:
        return subprocess.run([f"{FOLDER}/uv", "pip", *words], env=environment, check=False).returncode
    except OSError as error:
        return complain(f"this image cannot run uv, a program for Linux with glibc: {error.strerror}")


def resolve() -> int:
    """Which versions, and the digests that what is downloaded must have."""
    options = ("--quiet", "--generate-hashes", "--no-header", "--no-annotate", "--python", sys.executable)
    return uv("compile", *options, f"{FOLDER}/requirements.in", "--output-file", LOCK)


def install() -> int:
    return uv("install", "--require-hashes", "--prefix", TREE, "--python", sys.executable, "-r", LOCK)


def settle(site: str) -> None:
    """Move modules to where this image's Python looks for them."""
    version = f"python{sys.version_info[0]}.{sys.version_info[1]}"
    os.makedirs(TREE, exist_ok=True)
    os.makedirs(os.path.dirname(site), exist_ok=True)
    for name in ("site-packages", "dist-packages"):
        found = f"{TREE}/lib/{version}/{name}"
        if found != site and os.path.isdir(found):
            os.rename(found, site)
    os.makedirs(site, exist_ok=True)


def tree_bytes() -> int:
    return sum(os.lstat(f"{at}/{name}").st_size for at, _, names in os.walk(TREE) for name in names)


def compile_all(site: str) -> None:
    """Once here, not at the start of each job. By hash, since times are not kept; packages' own tests are left out."""
    command = [sys.executable, "-m", "compileall", "-q", "-j", str(os.cpu_count() or 1), "-x", "/tests?/"]
    # A file that is no Python of this version stays as it is.
    subprocess.run([*command, "--invalidation-mode", "unchecked-hash", site], check=False, stdout=subprocess.DEVNULL)


def report(prefix: str, site: str) -> None:
    found = importlib.metadata.distributions(path=[site])
    packages = sorted((each.metadata["Name"], each.version) for each in found)
    names = os.listdir(site)
    with open(LOCK) as lock, open(f"{FOLDER}/report.json", "w") as out:
        words = {
            "path": prefix,
            "at_start": any(name.endswith(".pth") or name in AT_START for name in names),
            "packages": [{"name": name, "version": version} for name, version in packages],
            "text": lock.read(),
        }
        json.dump(words, out)


def pack() -> None:
    with tarfile.open(f"{FOLDER}/layer.tar", "w", format=tarfile.PAX_FORMAT) as archive:
        for name in sorted(name for name in os.listdir(TREE) if not name.startswith(".")):
            archive.add(f"{TREE}/{name}", name, filter=plain)


def plain(member: tarfile.TarInfo) -> tarfile.TarInfo:
    member.uid = member.gid = member.mtime = 0
    member.uname = member.gname = ""
    return member


def complain(words: str) -> int:
    print(f"error: {words}", flush=True)
    return 1


if __name__ == "__main__":
    sys.exit(main())
