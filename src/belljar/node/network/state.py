"""What belljar processes of one host agree on: a lock, who uses networks, and what forwarding was before.

Kept in /run, which a reboot empties together with all that it speaks of.
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
    """Whether there may be anything here that a dead process left, and this one may clear it."""
    return os.geteuid() == 0 and STATE.exists()


@contextlib.contextmanager
def host_lock() -> Iterator[None]:
    """One process at a time changes what is shared. Blocks, for milliseconds."""
    STATE.mkdir(parents=True, exist_ok=True, mode=0o700)
    with wait_for_lock(STATE / "lock"):
        yield


def users() -> list[str]:
    """Owners that have said they use networks, dead ones too; one may be there several times."""
    try:
        return [path.name.rpartition(".")[0] for path in _USERS.iterdir()]
    except FileNotFoundError:
        return []


def add_user(owner: str, pool: int) -> None:
    """To be called under the lock."""
    _USERS.mkdir(exist_ok=True)
    (_USERS / f"{owner}.{pool}").touch()


def remove_user(owner: str, pool: int | None = None) -> None:
    """Forget one pool of an owner, or all of them."""
    for path in _USERS.glob(f"{owner}.{'*' if pool is None else pool}"):
        path.unlink(missing_ok=True)


def turn_forwarding_on(nft: Nft) -> None:
    """Let the host route, if it does not; between its own interfaces it still does not. Under the lock."""
    if _IP_FORWARD.read_text().strip() != "0":
        return
    before = [name for name in _interfaces() if name != "lo"]
    _FORWARDING.write_text(json.dumps({"interfaces": before}))
    nft.run(guard_rules(before))
    _IP_FORWARD.write_text("1")


def restore_forwarding(nft: Nft) -> None:
    """Put back what `turn_forwarding_on` found, when nobody uses networks any more. Under the lock.

    Where interfaces have come meanwhile, somebody else (docker, libvirt) may rely on forwarding by now: it stays on.
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
