"""Runs in a builder machine, never on a host: installs what a script needs and packs it.

Its folder holds pip, requirements.txt and pip.conf; it leaves layer.tar and report.json beside them. Packages may run
code of theirs while they are installed: that is what the machine is for.
"""

import os
import subprocess
import sys
import tarfile

FOLDER = os.path.dirname(os.path.abspath(__file__))  # noqa: PTH100, PTH120 (as small as can be)


def plain(member: tarfile.TarInfo) -> tarfile.TarInfo:
    member.uid = member.gid = member.mtime = 0
    member.uname = member.gname = ""
    return member


def main() -> int:
    target, report = f"{FOLDER}/layer", f"{FOLDER}/report.json"
    environment = {**os.environ, "PYTHONPATH": f"{FOLDER}/tools", "PIP_CONFIG_FILE": f"{FOLDER}/pip.conf"}
    command = [sys.executable, "-m", "pip", "install", "--no-cache-dir", "--no-compile", "--no-input", "--quiet"]
    command += ["--disable-pip-version-check", f"--target={target}", f"--report={report}"]
    code = subprocess.run([*command, "-r", f"{FOLDER}/requirements.txt"], env=environment, check=False).returncode
    if code != 0:
        return code
    with tarfile.open(f"{FOLDER}/layer.tar", "w", format=tarfile.PAX_FORMAT) as archive:
        for name in sorted(os.listdir(target)):  # noqa: PTH208
            archive.add(f"{target}/{name}", name, filter=plain)
    return 0


if __name__ == "__main__":
    sys.exit(main())
