"""The requests that the fake accepts and their order, with Firecracker's own messages."""

from __future__ import annotations

import os
import re
import threading
from collections.abc import Callable
from typing import Any

from description import complaint
from emulator import Emulator

#: Order in which a configuration file's parts are applied; they are the same as the requests.
_PARTS = ("machine-config", "boot-source", "drives", "network-interfaces", "vsock", "entropy")
_LISTS = {"drives": "drive_id", "network-interfaces": "iface_id"}
_AFTER = "The requested operation is not supported after starting the microVM."
_BEFORE = "The requested operation is not supported before starting the microVM."


class Refused(Exception):
    """Status 400, with a fault message."""


class Vmm:
    """One microVM of the fake."""

    def __init__(
        self,
        instance: str,
        version: str,
        description: dict[str, Any] | None,
        faults: dict[str, Any],
        log: Callable[[str, str], None],
    ) -> None:
        self.instance = instance
        self.version = version
        self.faults = faults
        self._description = description
        self.log = log
        self._config: dict[str, Any] = {"drives": {}, "network-interfaces": {}}
        self._emulator: Emulator | None = None
        self._paused = False
        self._begun = threading.Event()

    def configure(self, config: dict[str, Any]) -> None:
        """Apply `--config-file`, and start."""
        unknown = set(config) - set(_PARTS)
        if unknown:
            raise Refused(f"unknown field `{unknown.pop()}`")
        for part in _PARTS:
            if part in _LISTS:
                for each in config.get(part, ()):
                    self.request("PUT", f"/{part}/{each[_LISTS[part]]}", each)
            elif part in config:
                self.request("PUT", f"/{part}", config[part])
        self.request("PUT", "/actions", {"action_type": "InstanceStart"})

    def wait(self) -> int:
        """Wait until the machine has ended, and return Firecracker's exit code."""
        self._begun.wait()
        assert self._emulator is not None
        code = self._emulator.wait()
        if code != 0:
            self.log("ERROR", f"VCPU Faulted: the emulator behind this machine ended with {code}")
            return 1
        self.log("INFO", "Firecracker exiting successfully. exit_code=0")
        return 0

    def request(self, method: str, path: str, body: Any) -> dict[str, Any] | None:
        """Handle one call of the API. Raises Refused."""
        self.log("INFO", f'The API server received a {method.capitalize()} request on "{path}".')
        if self._description is not None:
            wrong = complaint(self._description, method, path, body)
            if wrong is not None:
                raise Refused(wrong)
        first = path.split("/")[1]
        handlers = {
            ("GET", ""): self._describe,
            ("GET", "version"): lambda _: {"firecracker_version": self.version},
            ("GET", "machine-config"): lambda _: self._config.get("machine-config", {}),
            ("PUT", "machine-config"): self._machine,
            ("PUT", "boot-source"): self._boot_source,
            ("PUT", "drives"): self._drive,
            ("PUT", "network-interfaces"): self._interface,
            ("PUT", "vsock"): lambda each: self._part("vsock", each),
            ("PUT", "entropy"): lambda each: self._part("entropy", each),
            ("PUT", "serial"): lambda each: self._part("serial", each),
            ("PUT", "actions"): self._action,
            ("PATCH", "vm"): self._state,
            ("PATCH", "drives"): self._change_drive,
            ("PUT", "snapshot"): self._create if path.endswith("create") else self._load,
        }
        handler = handlers.get((method, first))
        if handler is None:
            raise Refused(f"Invalid request method and/or path: {method} {path}.")
        return handler(body)

    def _describe(self, _: Any) -> dict[str, Any]:
        state = "Not started" if self._emulator is None else "Paused" if self._paused else "Running"
        return {"id": self.instance, "state": state, "vmm_version": self.version, "app_name": "Firecracker"}

    def _part(self, name: str, value: Any) -> None:
        if self._emulator is not None:
            raise Refused(_AFTER)
        self._config[name] = value

    def _machine(self, machine: dict[str, Any]) -> None:
        if machine["vcpu_count"] > 32 or machine["mem_size_mib"] < 1:
            raise Refused(
                "The vCPU number is invalid! The vCPU number can only be 1 or an even number when SMT is enabled."
            )
        self._part("machine-config", machine)

    def _boot_source(self, source: dict[str, Any]) -> None:
        for key, what in (("kernel_image_path", "kernel image"), ("initrd_path", "initrd")):
            if key in source and not _readable(source[key]):
                raise Refused(f"The {what} file cannot be opened due to invalid path or permissions: {source[key]}")
        self._part("boot-source", source)

    def _drive(self, drive: dict[str, Any]) -> None:
        if not _readable(drive["path_on_host"], writable=not drive.get("is_read_only", False)):
            raise Refused(f"Unable to create the virtio block device: backing file: {drive['path_on_host']}")
        self._part("drives", self._config["drives"] | {drive["drive_id"]: drive})

    def _interface(self, interface: dict[str, Any]) -> None:
        if not re.fullmatch(r"([0-9a-fA-F]{2}:){5}[0-9a-fA-F]{2}", interface["guest_mac"]):
            raise Refused("The MAC address is invalid")
        self._part("network-interfaces", self._config["network-interfaces"] | {interface["iface_id"]: interface})

    def _action(self, action: dict[str, Any]) -> None:
        if action["action_type"] != "InstanceStart":
            if self._emulator is None:
                raise Refused(_BEFORE)
            return
        if self._emulator is not None:
            raise Refused(_AFTER)
        if "boot-source" not in self._config:
            raise Refused("Cannot start microvm without kernel configuration.")
        self._begin(Emulator(self._config))

    def _begin(self, emulator: Emulator) -> None:
        self._emulator = emulator
        self._begun.set()

    def _running(self) -> Emulator:
        if self._emulator is None:
            raise Refused(_BEFORE)
        return self._emulator

    def _state(self, wanted: dict[str, Any]) -> None:
        emulator = self._running()
        self._paused = wanted["state"] == "Paused"
        emulator.pause() if self._paused else emulator.resume()

    def _change_drive(self, drive: dict[str, Any]) -> None:
        self._running()
        if drive["drive_id"] not in self._config["drives"]:
            raise Refused(f"Invalid device ID: {drive['drive_id']}")
        raise Refused("this fake cannot change the file of a drive")

    def _create(self, snapshot: dict[str, Any]) -> None:
        emulator = self._running()
        if not self._paused:
            raise Refused("Cannot save snapshot: operation not allowed while the microVM is running")
        emulator.save(snapshot["snapshot_path"], snapshot["mem_file_path"])

    def _load(self, snapshot: dict[str, Any]) -> None:
        if self._emulator is not None or self._config != {"drives": {}, "network-interfaces": {}}:
            raise Refused("Loading a microVM snapshot not allowed after configuring boot-specific resources.")
        memory = snapshot["mem_backend"]["backend_path"]
        for path in (snapshot["snapshot_path"], memory):
            if not _readable(path):
                raise Refused(f"Load snapshot error: Failed to open the file: No such file or directory: {path}")
        try:
            emulator = Emulator.of_snapshot(snapshot["snapshot_path"], memory, snapshot)
        except (OSError, ValueError, KeyError) as error:
            raise Refused(f"Load snapshot error: Failed to restore from snapshot: {error}") from None
        self._begin(emulator)
        self._paused = not snapshot.get("resume_vm", False)
        if not self._paused:
            emulator.resume()


def _readable(path: str, writable: bool = False) -> bool:
    return os.access(path, os.R_OK | (os.W_OK if writable else 0))
