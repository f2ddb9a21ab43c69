"""A fake for the firecracker executable: the same command line, the same API, and QEMU's emulation behind it.

Made into one executable file by `building.py`; it uses nothing but Python's own library, so that it runs in a jail that
shows it /usr. What it refuses, the real one refuses: every body is held against the official description where that is
packed in, and calls out of order are turned away with Firecracker's own words.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import socket
import sys
import threading
import time
import zipfile
from pathlib import Path

from api import serve
from behaviour import Refused, Vmm

VERSION = "1.16.1"


def main() -> int:
    packed = zipfile.ZipFile(sys.argv[0])
    faults = json.loads(packed.read("faults.json"))
    description = json.loads(packed.read("description.json"))
    options = _options()
    if options.version:
        print(f"Firecracker v{faults.get('version', VERSION)}\n")
        return 0
    if faults.get("never_listen"):
        time.sleep(600)
    vmm = Vmm(options.id, faults.get("version", VERSION), description, faults, _logger(options))
    try:
        if options.config_file:
            vmm.configure(json.loads(Path(options.config_file).read_text()))
        if not options.no_api:
            _listen(options.api_sock, vmm)
    except Refused as refused:
        vmm.log("ERROR", f"RunWithoutApiError error: Failed to build MicroVM from Json: {refused}")
        print("Error: RunWithoutApiError(BuildMicroVMFromJson(Refused))", file=sys.stderr)
        return 1
    except OSError as error:
        print(f"Error: Failed to open the API socket: {error}", file=sys.stderr)
        return 1
    return vmm.wait()


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(allow_abbrev=False)
    parser.add_argument("--version", action="store_true")
    parser.add_argument("--id", default="anonymous-instance")
    parser.add_argument("--api-sock", default="/run/firecracker.socket")
    parser.add_argument("--config-file")
    parser.add_argument("--no-api", action="store_true")
    parser.add_argument("--log-path")
    parser.add_argument("--level", default="Info", choices=["Error", "Warning", "Info", "Debug", "Trace", "Off"])
    parser.add_argument("--show-level", action="store_true")
    for given_by_the_jailer in ("--start-time-us", "--start-time-cpu-us", "--parent-cpu-time-us"):
        parser.add_argument(given_by_the_jailer)
    try:
        options = parser.parse_args()
    except SystemExit:
        sys.exit(153)
    if options.no_api and not options.config_file:
        print("Error: Argument 'no-api' requires 'config-file'", file=sys.stderr)
        sys.exit(153)
    return options


def _logger(options: argparse.Namespace):
    if not options.log_path:
        return lambda level, text: print(f"[{options.id}:main:{level}] {text}", flush=True)
    # Without waiting, as the real one does: a full pipe blocks nothing.
    log = os.open(options.log_path, os.O_WRONLY | os.O_NONBLOCK | os.O_APPEND)

    def write(level: str, text: str) -> None:
        if level in ("ERROR", "WARN") or options.level == "Info":
            with contextlib.suppress(BlockingIOError):
                os.write(log, f"{time.time():.6f} [{options.id}:main:{level}] {text}\n".encode())

    return write


def _listen(path: str, vmm: Vmm) -> None:
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    listener.bind(path)
    listener.listen(10)
    threading.Thread(target=serve, args=(listener, vmm), daemon=True).start()


if __name__ == "__main__":
    sys.stdout.flush()
    code = main()
    sys.stdout.flush()
    os._exit(code)
