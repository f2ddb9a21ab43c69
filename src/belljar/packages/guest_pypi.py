"""Resolve, lock, install and pack a script's Python packages; runs in a builder machine, never on a host.

It reads uv and requirements.in in its folder, and writes layer.tar and report.json there. Packages may run code while
they are installed, which is why a machine is used. The user can read all output.
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
#: Modules that Python runs only when it starts.
STARTUP_MODULES = ("sitecustomize.py", "usercustomize.py")


def main() -> int:
    prefix = os.path.dirname(sysconfig.get_path("scripts"))
    relative = os.path.relpath(sysconfig.get_path("purelib"), prefix)
    if relative.startswith(".."):
        return fail(f"Python's packages are not below {prefix}")
    for step in (resolve, install):
        code = step()
        if code != 0:
            return code
    site = f"{TREE}/{relative}"
    move_modules(site)
    size = tree_bytes()
    max_bytes = int(os.environ["MAX_LAYER_BYTES"])
    if size > max_bytes:
        return fail(f"the packages take {size >> 20} MB, over the limit of {max_bytes >> 20} MB (setting max_layer_mb)")
    print("compiling", flush=True)
    compile_all(site)
    report(prefix, site)
    pack()
    return 0


def uv(*args: str) -> int:
    """Run `uv pip` and return its exit code."""
    certificates = f"{FOLDER}/certificates.pem"
    environment = {**os.environ, "UV_CACHE_DIR": f"{FOLDER}/cache"}
    if os.path.exists(certificates):
        environment["SSL_CERT_FILE"] = certificates
    try:
        return subprocess.run([f"{FOLDER}/uv", "pip", *args], env=environment, check=False).returncode
    except OSError as error:
        return fail(f"this image cannot run uv, a program for Linux with glibc: {error.strerror}")


def resolve() -> int:
    """Write the lock file: versions and the digests of their files. Return uv's exit code."""
    options = ("--quiet", "--generate-hashes", "--no-header", "--no-annotate", "--python", sys.executable)
    return uv("compile", *options, f"{FOLDER}/requirements.in", "--output-file", LOCK)


def install() -> int:
    """Install the locked packages into the tree. Return uv's exit code."""
    return uv("install", "--require-hashes", "--prefix", TREE, "--python", sys.executable, "-r", LOCK)


def move_modules(site: str) -> None:
    """Move modules to the folder that this image's Python searches."""
    version = f"python{sys.version_info[0]}.{sys.version_info[1]}"
    os.makedirs(TREE, exist_ok=True)
    os.makedirs(os.path.dirname(site), exist_ok=True)
    for name in ("site-packages", "dist-packages"):
        installed = f"{TREE}/lib/{version}/{name}"
        if installed != site and os.path.isdir(installed):
            os.rename(installed, site)
    os.makedirs(site, exist_ok=True)


def tree_bytes() -> int:
    """Return the size of all files in the tree."""
    return sum(os.lstat(f"{folder}/{name}").st_size for folder, _, names in os.walk(TREE) for name in names)


def compile_all(site: str) -> None:
    """Compile all modules but packages' tests, so that jobs need not. Checked by hash, since times are not kept."""
    command = [sys.executable, "-m", "compileall", "-q", "-j", str(os.cpu_count() or 1), "-x", "/tests?/"]
    # Files that this Python cannot parse stay uncompiled.
    subprocess.run([*command, "--invalidation-mode", "unchecked-hash", site], check=False, stdout=subprocess.DEVNULL)


def report(prefix: str, site: str) -> None:
    """Write report.json: see `belljar.packages.layers.InstallReport`."""
    distributions = importlib.metadata.distributions(path=[site])
    packages = sorted((each.metadata["Name"], each.version) for each in distributions)
    names = os.listdir(site)
    with open(LOCK) as lock, open(f"{FOLDER}/report.json", "w") as out:
        fields = {
            "path": prefix,
            "at_start": any(name.endswith(".pth") or name in STARTUP_MODULES for name in names),
            "packages": [{"name": name, "version": version} for name, version in packages],
            "text": lock.read(),
        }
        json.dump(fields, out)


def pack() -> None:
    """Write layer.tar with the tree's files; the same files give the same bytes."""
    with tarfile.open(f"{FOLDER}/layer.tar", "w", format=tarfile.PAX_FORMAT) as archive:
        for name in sorted(name for name in os.listdir(TREE) if not name.startswith(".")):
            archive.add(f"{TREE}/{name}", name, filter=without_owner_and_time)


def without_owner_and_time(member: tarfile.TarInfo) -> tarfile.TarInfo:
    member.uid = member.gid = member.mtime = 0
    member.uname = member.gname = ""
    return member


def fail(message: str) -> int:
    """Print an error and return the exit code 1."""
    print(f"error: {message}", flush=True)
    return 1


if __name__ == "__main__":
    sys.exit(main())
