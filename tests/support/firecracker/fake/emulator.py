"""The machine behind the fake: QEMU's microvm under software emulation, in the same jail.

Its agent's virtio-serial port is what the fake's vsock socket leads to; there is no vsock device without vhost.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import time
from pathlib import Path
from typing import Any

from bridge import Bridge
from tsc import tsc_khz

_MEMORY = "emulator.memory"
_AGENT = "emulator.agent"
_MONITOR = "emulator.qmp"
_INCOMING = "emulator.incoming"
_HEADER = b"fake snapshot 1\n"


class Emulator:
    """One QEMU process."""

    def __init__(self, config: dict[str, Any], *, incoming: bool = False) -> None:
        self._config = config
        self._incoming = incoming
        if not incoming:
            with open(_MEMORY, "wb") as memory:
                memory.truncate(config["machine-config"]["mem_size_mib"] << 20)
        self._process = subprocess.Popen(self._command(), stdin=subprocess.DEVNULL)
        self._monitor = _Monitor(_connected(_MONITOR, self._process))
        if incoming:
            self._monitor.set_capability("x-ignore-shared")
            self._monitor.call("migrate-incoming", uri=f"exec:cat {_INCOMING}")
            self._monitor.until("query-migrate", lambda status: status.get("status") == "completed")
        agent = _connected(_AGENT, self._process)
        self._bridge = Bridge(config["vsock"]["uds_path"], agent, spoken=incoming)
        if not incoming:
            self.resume()

    @classmethod
    def of_snapshot(cls, state: str, memory: str, snapshot: dict[str, Any]) -> Emulator:
        data = Path(state).read_bytes()
        if not data.startswith(_HEADER):
            raise ValueError("not a snapshot of this program")
        line, _, stream = data[len(_HEADER) :].partition(b"\n")
        config = json.loads(line)
        for override in snapshot.get("network_overrides", ()):
            config["network-interfaces"][override["iface_id"]]["host_dev_name"] = override["host_dev_name"]
        if "vsock_override" in snapshot:
            config["vsock"]["uds_path"] = snapshot["vsock_override"]["uds_path"]
        Path(_INCOMING).write_bytes(stream)
        # QEMU opens the memory for writing even where it maps it privately.
        subprocess.run(["cp", "--sparse=always", memory, _MEMORY], check=True)
        os.chmod(_MEMORY, 0o600)
        return cls(config, incoming=True)

    def pause(self) -> None:
        self._monitor.call("stop")

    def resume(self) -> None:
        self._monitor.call("cont")

    def save(self, state: str, memory: str) -> None:
        self._monitor.set_capability("x-ignore-shared")
        self._monitor.call("migrate", uri=f"exec:cat > {_INCOMING}")
        self._monitor.until("query-migrate", lambda status: status.get("status") == "completed")
        Path(state).write_bytes(_HEADER + json.dumps(self._config).encode() + b"\n" + Path(_INCOMING).read_bytes())
        subprocess.run(["cp", "--sparse=always", _MEMORY, memory], check=True)

    def wait(self) -> int:
        return self._process.wait()

    def _command(self) -> list[str]:
        machine = self._config["machine-config"]
        argv = ["qemu-system-x86_64", "-nodefaults", "-no-user-config", "-display", "none", "-no-reboot", "-S"]
        argv += ["-machine", "microvm,acpi=on,rtc=on,usb=off,memory-backend=mem"]
        argv += ["-object", f"memory-backend-file,id=mem,size={machine['mem_size_mib']}M,mem-path={_MEMORY},share=on"]
        argv += ["-accel", "tcg,thread=multi,tb-size=32", "-cpu", "max", "-smp", str(machine["vcpu_count"])]
        argv += ["-m", f"{machine['mem_size_mib']}M"]
        if self._incoming:
            argv += ["-incoming", "defer"]
            return argv + self._devices()
        source = self._config["boot-source"]
        # This machine has no keyboard controller for a reset, and cannot measure the clock's frequency.
        line = source["boot_args"].replace("reboot=k", "reboot=t") + f" tsc_early_khz={tsc_khz()} tsc=reliable"
        argv += ["-kernel", source["kernel_image_path"], "-initrd", source["initrd_path"], "-append", line]
        return argv + self._devices()

    def _devices(self) -> list[str]:
        argv: list[str] = []
        for drive in self._config["drives"].values():
            access = "on" if drive["is_read_only"] else "off"
            argv += ["-blockdev", f"driver=raw,node-name={drive['drive_id']},read-only={access},auto-read-only=off,"
                     f"file.driver=file,file.filename={drive['path_on_host']},file.locking=off"]  # fmt: skip
            argv += ["-device", f"virtio-blk-device,drive={drive['drive_id']}"]
        for number, interface in enumerate(self._config["network-interfaces"].values()):
            argv += ["-netdev", f"tap,id=net{number},ifname={interface['host_dev_name']},script=no,downscript=no"]
            argv += ["-device", f"virtio-net-device,netdev=net{number},mac={interface['guest_mac']}"]
        argv += ["-device", "virtio-serial-device,max_ports=2"]
        argv += ["-chardev", f"socket,id=agent,path={_AGENT},server=on,wait=off"]
        argv += ["-device", "virtserialport,chardev=agent,name=belljar"]
        argv += ["-serial", "stdio", "-chardev", f"socket,id=qmp,path={_MONITOR},server=on,wait=off"]
        return [*argv, "-mon", "chardev=qmp,mode=control"]


class _Monitor:
    """The part of QMP that is needed."""

    def __init__(self, connection: socket.socket) -> None:
        self._file = connection.makefile("rw")
        self._file.readline()
        self.call("qmp_capabilities")

    def call(self, command: str, **arguments: Any) -> Any:
        self._file.write(json.dumps({"execute": command, "arguments": arguments}) + "\n")
        self._file.flush()
        while True:
            answer = json.loads(self._file.readline() or '{"error": "the emulator is gone"}')
            if "error" in answer:
                raise ValueError(f"{command}: {answer['error']}")
            if "return" in answer:
                return answer["return"]

    def set_capability(self, name: str) -> None:
        self.call("migrate-set-capabilities", capabilities=[{"capability": name, "state": True}])

    def until(self, command: str, wanted: Any) -> None:
        deadline = time.monotonic() + 60
        while not wanted(status := self.call(command)):
            if time.monotonic() > deadline or status.get("status") == "failed":
                raise ValueError(f"{command}: {status}")
            time.sleep(0.005)


def _connected(path: str, process: subprocess.Popen[bytes]) -> socket.socket:
    deadline = time.monotonic() + 30
    while True:
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            connection.connect(path)
            return connection
        except OSError:
            connection.close()
            if process.poll() is not None or time.monotonic() > deadline:
                raise ValueError("the emulator did not start") from None
            time.sleep(0.005)
