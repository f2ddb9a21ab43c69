"""The host's frames with a payload: one function encodes each type.

Sources: wire.py for the frame, docs/protocol.md for each payload.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterable, Mapping, Sequence
from ipaddress import IPv4Address, IPv4Interface

from belljar.model.secrets import SecretValue
from belljar.node.guest.wire import (
    MAX_HOSTNAME,
    MAX_LAYER_PATH,
    MAX_NAME,
    MAX_SECRET_NAME,
    SEED_BYTES,
    VERSION,
    ExecFlag,
    FrameType,
    RunFlag,
    Stream,
    frame,
)

_MAX_NAMESERVERS = 3
_WELCOME = struct.Struct("<HHIQ")
_RUN = struct.Struct("<IIII")
_CREDIT = struct.Struct("<I")
_EXEC = struct.Struct("<IIIHH")
_PAIR = struct.Struct("<HH")
#: Address and gateway in network byte order, MTU, prefix length, number of name servers, and room for three of them.
_NETWORK = struct.Struct("<4s4sHBB12s")
#: Bytes of the script's file system and of the layer behind it on the script's disk.
_LAYER = struct.Struct("<QQ")
#: User and group of the file; its name, a zero and its bytes follow.
_SECRET = struct.Struct("<II")
_COLLECT = struct.Struct("<QII")


def welcome(silence_seconds: int, unix_ns: int) -> bytes:
    """Encode WELCOME: accept the agent, set its clock to `unix_ns`, and bound the host's silence (0: no bound)."""
    return frame(FrameType.WELCOME, _WELCOME.pack(VERSION, silence_seconds, 0, unix_ns))


def identity(seed: bytes, hostname: str) -> bytes:
    """Encode IDENTITY: SEED_BYTES random bytes that no other machine gets, and the host name. Raises ValueError."""
    if len(seed) != SEED_BYTES or not 0 < len(hostname.encode()) <= MAX_HOSTNAME:
        raise ValueError(f"an identity needs a seed of {SEED_BYTES} bytes and a host name of 1 to {MAX_HOSTNAME}")
    return frame(FrameType.IDENTITY, seed + hostname.encode())


def strings(argv: Iterable[str], env: dict[str, str], channel: int = 0) -> bytes:
    """Encode a command's arguments and environment, one frame each. Raises ValueError when one is too long."""
    frames = [frame(FrameType.ARG, os.fsencode(arg), channel=channel) for arg in argv]
    frames += [frame(FrameType.ENV, f"{name}={text}".encode(), channel=channel) for name, text in env.items()]
    return b"".join(frames)


def secret_strings(env: Mapping[str, SecretValue], channel: int = 0) -> bytes:
    """Encode variables whose values are secrets, one ENV frame each. Raises ValueError when one is too long."""
    texts = (name.encode() + b"=" + value.reveal() for name, value in env.items())
    return b"".join(frame(FrameType.ENV, text, channel=channel) for text in texts)


def secret_file(name: str, value: SecretValue, *, uid: int, gid: int) -> bytes:
    """Encode SECRET: keep the value as a file of that name in memory, readable by that user alone.

    Raises ValueError for a name that is no file name of at most MAX_SECRET_NAME bytes.
    """
    encoded = name.encode()
    if not 0 < len(encoded) <= MAX_SECRET_NAME or encoded.startswith(b".") or b"/" in encoded or b"\0" in encoded:
        raise ValueError(f"a secret's file needs a name of 1 to {MAX_SECRET_NAME} bytes, without a slash")
    return frame(FrameType.SECRET, _SECRET.pack(uid, gid) + encoded + b"\0" + value.reveal())


def run(*, uid: int, gid: int, max_processes: int, flags: RunFlag, cwd: bytes, prefork: str = "") -> bytes:
    """Encode RUN: run the strings sent before in `cwd`, in the waiting prefork program of that name if there is one."""
    return frame(FrameType.RUN, _request(uid, gid, max_processes, flags, cwd, prefork))


def prepare(*, uid: int, gid: int, max_processes: int, flags: RunFlag, prefork: str = "") -> bytes:
    """Encode PREPARE: start processes that wait, among them the prefork program of that name if one is given."""
    return frame(FrameType.PREPARE, _request(uid, gid, max_processes, flags, b"/", prefork))


def session(*, uid: int, gid: int, max_processes: int, flags: RunFlag) -> bytes:
    """Encode SESSION: run commands on channels from now on."""
    return frame(FrameType.SESSION, _request(uid, gid, max_processes, flags, b"/work", ""))


def execute(channel: int, *, uid: int, gid: int, flags: ExecFlag, columns: int, rows: int, cwd: bytes) -> bytes:
    """Encode EXEC: run the strings sent before on a new channel."""
    return frame(FrameType.EXEC, _EXEC.pack(uid, gid, flags, columns, rows) + cwd, channel=channel)


def connect(channel: int, port: int, *, ipv6: bool) -> bytes:
    """Encode CONNECT: connect a new channel to a port of the machine's loopback device."""
    return frame(FrameType.CONNECT, _PAIR.pack(port, 6 if ipv6 else 4), channel=channel)


def resize(channel: int, columns: int, rows: int) -> bytes:
    """Encode RESIZE: the channel's terminal has this size."""
    return frame(FrameType.RESIZE, _PAIR.pack(columns, rows), channel=channel)


def meter(interval_ms: int) -> bytes:
    """Encode METER: send USAGE at this interval; 0 ends it."""
    return frame(FrameType.METER, _CREDIT.pack(interval_ms))


def _request(uid: int, gid: int, max_processes: int, flags: RunFlag, cwd: bytes, prefork: str) -> bytes:
    if len(prefork.encode()) > MAX_NAME:
        raise ValueError(f"the name of a prefork program has at most {MAX_NAME} bytes")
    return _RUN.pack(uid, gid, max_processes, flags) + cwd + b"\0" + prefork.encode()


def network(interface: IPv4Interface, gateway: IPv4Address, nameservers: Sequence[IPv4Address], mtu: int) -> bytes:
    """Encode NETWORK: configure the machine's network device, before RUN. Name servers after the third are dropped."""
    addresses = b"".join(server.packed for server in nameservers[:_MAX_NAMESERVERS])
    prefix = interface.network.prefixlen
    count = len(addresses) // 4
    payload = _NETWORK.pack(interface.ip.packed, gateway.packed, mtu, prefix, count, addresses)
    return frame(FrameType.NETWORK, payload)


def layer(script_bytes: int, layer_bytes: int, path: str) -> bytes:
    """Encode LAYER: the script's disk holds a layer behind the script, to be mounted over the image's folder `path`.

    Raises ValueError for an empty layer and for a path that is relative or over MAX_LAYER_PATH bytes.
    """
    folder = path.encode()
    if not (script_bytes > 0 and layer_bytes > 0 and folder.startswith(b"/") and len(folder) <= MAX_LAYER_PATH):
        raise ValueError(f"a layer has a length, and an absolute path of at most {MAX_LAYER_PATH} bytes")
    return frame(FrameType.LAYER, _LAYER.pack(script_bytes, layer_bytes) + folder)


def credit(stream: Stream, size: int, channel: int = 0) -> bytes:
    """Encode CREDIT: the agent may send `size` more bytes of the stream."""
    return frame(FrameType.CREDIT, _CREDIT.pack(size), stream, channel)


def collect(globs: Sequence[bytes], *, max_bytes: int, max_count: int) -> bytes:
    """Encode COLLECT: send the files below the working folder that the globs match, within the limits."""
    return frame(FrameType.COLLECT, _COLLECT.pack(max_bytes, max_count, 0) + b"\0".join(globs))
