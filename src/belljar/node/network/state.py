"""State that all belljar processes of a host share: a lock, the owners that use networks, the original forwarding.

It is kept in /run, which a reboot empties along with the networks themselves.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
from collections.abc import Iterator
from pathlib import Path

from belljar.node.machines.host.owner import is_dead
from belljar.node.network.layout import HOST_PREFIX
from belljar.node.network.nft import Nft
from belljar.node.network.rules import GUARD_TABLE, guard_rules
from belljar.system.file_locks import wait_for_lock

STATE = Path("/run/belljar/network")
_USERS = STATE / "users"
_FORWARDING = STATE / "forwarding.json"
_IP_FORWARD = Path("/proc/sys/net/ipv4/ip_forward")


def in_use() -> bool:
    """Return whether a dead process may have left networks here that this one may remove."""
    return os.geteuid() == 0 and STATE.exists()


@contextlib.contextmanager
def host_lock() -> Iterator[None]:
    """Hold the lock that serializes changes of shared state. Blocks for milliseconds."""
    STATE.mkdir(parents=True, exist_ok=True, mode=0o700)
    with wait_for_lock(STATE / "lock"):
        yield


def users() -> list[str]:
    """Return the registered owners, dead ones too; an owner appears once for each of its pools."""
    try:
        return [path.name.rpartition(".")[0] for path in _USERS.iterdir()]
    except FileNotFoundError:
        return []


def add_user(owner: str, pool: int) -> None:
    """Register a pool of an owner. Call it under the lock."""
    _USERS.mkdir(exist_ok=True)
    (_USERS / f"{owner}.{pool}").touch()


def remove_user(owner: str, pool: int | None = None) -> None:
    """Unregister one pool of an owner, or all of them."""
    for path in _USERS.glob(f"{owner}.{'*' if pool is None else pool}"):
        path.unlink(missing_ok=True)


def enable_forwarding(nft: Nft) -> None:
    """Enable forwarding if it is off, but not between the host's own interfaces. Call it under the lock."""
    if _IP_FORWARD.read_text().strip() != "0":
        return
    before = [name for name in _interfaces() if name != "lo"]
    _FORWARDING.write_text(json.dumps({"interfaces": before}))
    nft.run(guard_rules(before))
    _IP_FORWARD.write_text("1")


def restore_forwarding(nft: Nft) -> None:
    """Undo `enable_forwarding` once no live owner is registered. Call it under the lock.

    Forwarding stays on when new interfaces exist: another program (docker, libvirt) may rely on it by now.
    """
    if not _FORWARDING.exists() or any(not is_dead(owner) for owner in users()):
        return
    before = set(json.loads(_FORWARDING.read_text())["interfaces"])
    if set(_interfaces()) <= before | {"lo"}:
        _IP_FORWARD.write_text("0")
    nft.run(f"add table inet {GUARD_TABLE}\ndelete table inet {GUARD_TABLE}")
    _FORWARDING.unlink()


def _interfaces() -> list[str]:
    return [name for _, name in socket.if_nameindex() if not name.startswith(HOST_PREFIX)]
