"""The BPF program of one slot: loaded with maps of its own, attached to the slot's devices, read from the host.

No other slot's machine can fill its maps or see what is in them. When the devices and this object are gone, the kernel
removes programs and maps; a killed process leaves nothing but what its devices hold.
"""

from __future__ import annotations

import ctypes
import errno
import functools
import socket
import threading
import time
from ipaddress import IPv4Address
from pathlib import Path

from belljar.node.network import bpf
from belljar.node.network.bpf.compile import OBJECT
from belljar.node.network.flows.libbpf import (
    EGRESS,
    INGRESS,
    BpfUnavailable,
    RingSample,
    TcHook,
    TcOptions,
    check,
    check_pointer,
    library,
)
from belljar.node.network.flows.reading import TCP, FlowCounts, FlowKey, FlowReading, LossCounts

MAX_FLOWS = 4096
_MAX_ATTEMPTS = 1024
_MAX_PAYLOAD_BYTES = 1536
#: A connection that has ended is removed from the map after this time without a packet.
_ENDED_NS = 2_000_000_000
#: Any other flow, once the map is half full.
_IDLE_NS = 15_000_000_000


class _Key(ctypes.BigEndianStructure):
    """struct flow_key, whose addresses and ports are in network byte order."""

    _fields_ = (("address", ctypes.c_uint32), ("port", ctypes.c_uint16), ("guest_port", ctypes.c_uint16))


class _FullKey(ctypes.Structure):
    _fields_ = (("network", _Key), ("protocol", ctypes.c_uint32))


class _Flow(ctypes.Structure):
    """struct flow."""

    _fields_ = (
        *((name, ctypes.c_uint64) for name in FlowCounts._fields[:6]),
        *((name, ctypes.c_uint32) for name in (*FlowCounts._fields[6:], "inspected", "reserved")),
    )


class _FirstPayload(ctypes.Structure):
    """struct first_payload."""

    _fields_ = (("key", _FullKey), ("length", ctypes.c_uint32), ("data", ctypes.c_uint8 * _MAX_PAYLOAD_BYTES))


class _Totals(ctypes.Structure):
    """struct totals."""

    _fields_ = tuple(
        (name, ctypes.c_uint64)
        for name in (
            "malformed",
            "ipv6",
            "lost_names",
            "lost_packets",
            "lost_bytes",
            "attempt_flows",
            "attempt_packets",
            "attempt_bytes",
        )
    )


@functools.cache
def _object_bytes() -> bytes:
    """Return the compiled program. Raises BpfUnavailable."""
    path = Path(bpf.__path__[0]) / OBJECT
    try:
        return path.read_bytes()
    except OSError:
        raise BpfUnavailable("the BPF program was not compiled; install belljar again") from None


class FlowProgram:
    """The program on a slot's devices. Its methods block for microseconds and work from any thread and namespace."""

    def __init__(self, tap: str, uplink: str, gateway: IPv4Address) -> None:
        """Load and attach it, in the namespace of the devices. Raises BpfUnavailable, and leaves nothing then."""
        self._library = library()
        content = _object_bytes()
        self._lock = threading.Lock()
        self._object: int | None = check_pointer(
            self._library.bpf_object__open_mem(content, len(content), None), "open the BPF program"
        )
        self._ring: int | None = None
        self._payloads: list[tuple[FlowKey, bytes]] = []
        self._on_sample = RingSample(self._take_payload)  # kept: the library calls it
        try:
            check(self._library.bpf_object__load(self._object), "load the BPF program")
            self._flows, self._attempts, self._totals, payloads = map(
                self._map, ("flows", "attempts", "totals", "payloads")
            )
            self._set_gateway(gateway)
            ring = self._library.ring_buffer__new(payloads, self._on_sample, None, None)
            self._ring = check_pointer(ring, "open the ring buffer")
            places = ((tap, INGRESS, "from_guest"), (tap, EGRESS, "to_guest"), (uplink, EGRESS, "to_uplink"))
            for priority, (device, direction, name) in enumerate(places, start=1):
                self._attach(device, direction, name, priority)
        except BaseException:
            self.close()
            raise

    def _map(self, name: str) -> int:
        return check(self._library.bpf_object__find_map_fd_by_name(self._object, name.encode()), f"find the map {name}")

    def _set_gateway(self, gateway: IPv4Address) -> None:
        zero, address = ctypes.c_uint32(0), (ctypes.c_uint8 * 4).from_buffer_copy(gateway.packed)
        arguments = (self._map("gateway"), ctypes.byref(zero), ctypes.byref(address), 0)
        check(self._library.bpf_map_update_elem(*arguments), "set the gateway")

    def _attach(self, device: str, direction: int, name: str, priority: int) -> None:
        program = self._library.bpf_object__find_program_by_name(self._object, name.encode())
        descriptor = self._library.bpf_program__fd(check_pointer(program, f"find the program {name}"))
        hook = TcHook(ctypes.sizeof(TcHook), socket.if_nametoindex(device), direction, 0)
        options = TcOptions(ctypes.sizeof(TcOptions), descriptor, 0, 0, 1, priority)
        created = self._library.bpf_tc_hook_create(ctypes.byref(hook))
        if created != -errno.EEXIST:  # the device's other direction has it already
            check(created, f"prepare the device {device}")
        check(self._library.bpf_tc_attach(ctypes.byref(hook), ctypes.byref(options)), f"attach to the device {device}")
        self._library.bpf_program__unload(program)  # the device holds it

    def read(self) -> FlowReading:
        """Return the counters so far, and the payloads since the last reading. Raises BpfUnavailable once closed."""
        with self._lock:
            if self._object is None:
                raise BpfUnavailable("the network was removed")
            # In this order: a packet that is passing is in the second when it left the first.
            attempts = self._read_map(self._attempts, _MAX_ATTEMPTS)
            allowed = self._read_map(self._flows, MAX_FLOWS)
            ended = self._remove_ended(allowed)
            totals = _Totals()
            zero = ctypes.c_uint32(0)
            result = self._library.bpf_map_lookup_elem(self._totals, ctypes.byref(zero), ctypes.byref(totals))
            check(result, "read the totals")
            self._library.ring_buffer__consume(self._ring)
            payloads, self._payloads = self._payloads, []
        return FlowReading(
            source="ebpf",
            allowed=allowed,
            attempts={key: counts for key, counts in attempts.items() if key not in allowed},
            ended=ended,
            payloads=tuple(payloads),
            attempt_flows=totals.attempt_flows,
            attempt_packets=totals.attempt_packets,
            attempt_bytes=totals.attempt_bytes,
            lost=LossCounts(
                malformed=totals.malformed,
                ipv6=totals.ipv6,
                names=totals.lost_names,
                packets=totals.lost_packets,
                bytes=totals.lost_bytes,
            ),
        )

    def _read_map(self, descriptor: int, max_entries: int) -> dict[FlowKey, FlowCounts]:
        keys, values = (_FullKey * max_entries)(), (_Flow * max_entries)()
        position, count = ctypes.c_uint64(0), ctypes.c_uint32(max_entries)
        result = self._library.bpf_map_lookup_batch(
            descriptor, None, ctypes.byref(position), keys, values, ctypes.byref(count), None
        )
        if result != -errno.ENOENT:  # the end of the map
            check(result, "read the flows")
        return {_key_of(keys[at]): _counts_of(values[at]) for at in range(count.value)}

    def _remove_ended(self, flows: dict[FlowKey, FlowCounts]) -> frozenset[FlowKey]:
        """Make room in the map: remove flows that have ended, and idle ones when many are left."""
        now = time.monotonic_ns()
        ended = {
            key
            for key, counts in flows.items()
            if key.protocol == TCP and counts.tcp_state() in ("closed", "reset") and now - counts.last_ns > _ENDED_NS
        }
        if len(flows) - len(ended) > MAX_FLOWS // 2:
            ended |= {key for key, counts in flows.items() if now - counts.last_ns > _IDLE_NS}
        for key in ended:
            full = _FullKey(_Key(key.address, key.port, key.guest_port), key.protocol)
            self._library.bpf_map_delete_elem(self._flows, ctypes.byref(full))
        return frozenset(ended)

    def _take_payload(self, _context: int | None, sample: int, _bytes: int) -> int:
        first = _FirstPayload.from_address(sample)
        length = min(first.length, _MAX_PAYLOAD_BYTES)
        payload = ctypes.string_at(sample + _FirstPayload.data.offset, length)
        self._payloads.append((_key_of(first.key), payload))
        return 0

    def close(self) -> None:
        """Free the maps; the programs end with the devices that they are attached to. Idempotent."""
        with self._lock:
            if self._ring is not None:
                self._library.ring_buffer__free(self._ring)
                self._ring = None
            if self._object is not None:
                self._library.bpf_object__close(self._object)
                self._object = None


def _key_of(key: _FullKey) -> FlowKey:
    return FlowKey(key.network.address, key.network.port, key.network.guest_port, key.protocol)


def _counts_of(flow: _Flow) -> FlowCounts:
    return FlowCounts(*(getattr(flow, name) for name in FlowCounts._fields))
