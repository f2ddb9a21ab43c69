"""The request bodies of Firecracker's API as values; its configuration file consists of the same.

Names are Firecracker's own, so a field can be looked up in its OpenAPI description. Unset fields are not sent.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, Literal


@dataclass(frozen=True, kw_only=True, slots=True)
class TokenBucket:
    """`size` tokens, refilled evenly within `refill_time` milliseconds; bytes or operations."""

    size: int
    refill_time: int
    one_time_burst: int | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class RateLimiter:
    bandwidth: TokenBucket | None = None
    ops: TokenBucket | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class MachineConfig:
    vcpu_count: int
    mem_size_mib: int
    smt: bool = False
    track_dirty_pages: bool = False
    huge_pages: Literal["None", "2M"] = "None"


@dataclass(frozen=True, kw_only=True, slots=True)
class BootSource:
    kernel_image_path: str
    initrd_path: str
    boot_args: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Drive:
    drive_id: str
    path_on_host: str
    is_read_only: bool
    is_root_device: bool = False
    cache_type: Literal["Unsafe", "Writeback"] = "Unsafe"
    io_engine: Literal["Sync", "Async"] = "Sync"
    rate_limiter: RateLimiter | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class NetworkInterface:
    iface_id: str
    host_dev_name: str
    guest_mac: str
    rx_rate_limiter: RateLimiter | None = None
    tx_rate_limiter: RateLimiter | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Vsock:
    guest_cid: int
    uds_path: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Configuration:
    """A whole machine: the file replaces an ordered list of requests."""

    machine_config: MachineConfig
    boot_source: BootSource
    drives: tuple[Drive, ...]
    vsock: Vsock
    network_interfaces: tuple[NetworkInterface, ...] = ()

    def file(self) -> dict[str, Any]:
        """Return the contents of `--config-file`: the same names with dashes."""
        return {name.replace("_", "-"): value for name, value in body(self).items()}


@dataclass(frozen=True, kw_only=True, slots=True)
class SnapshotCreate:
    snapshot_path: str
    mem_file_path: str
    snapshot_type: Literal["Full"] = "Full"


@dataclass(frozen=True, kw_only=True, slots=True)
class MemoryBackend:
    backend_path: str
    backend_type: Literal["File", "Uffd"] = "File"


@dataclass(frozen=True, kw_only=True, slots=True)
class NetworkOverride:
    iface_id: str
    host_dev_name: str


@dataclass(frozen=True, kw_only=True, slots=True)
class VsockOverride:
    uds_path: str


@dataclass(frozen=True, kw_only=True, slots=True)
class SnapshotLoad:
    snapshot_path: str
    mem_backend: MemoryBackend
    resume_vm: bool
    network_overrides: tuple[NetworkOverride, ...] = ()
    vsock_override: VsockOverride | None = None


def body(value: Any) -> dict[str, Any]:
    """Return a value as JSON: without fields that are None, with lists for tuples."""
    return {
        field.name: _plain(field_value)
        for field in dataclasses.fields(value)
        if (field_value := getattr(value, field.name)) is not None
    }


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value):
        return body(value)
    if isinstance(value, tuple):
        return [_plain(each) for each in value]
    return value
