"""Removes the networks of killed belljar processes from this host: slots, tables, enabled forwarding."""

from __future__ import annotations

import structlog

from belljar.model.errors import BelljarError
from belljar.node.machines.host.owner import is_dead
from belljar.node.network import state
from belljar.node.network.layout import NAMESPACES
from belljar.node.network.namespaces import list_slots
from belljar.node.network.nft import Nft
from belljar.node.network.rules import delete_table, table_owner

log = structlog.get_logger()


def clear_network_leftovers() -> int:
    """Remove slots and tables of dead owners, restore forwarding, and return the number of those owners.

    Blocks. Raises nothing: a failure is logged, and the next start tries again.
    """
    if not state.in_use():
        return 0
    cleared = 0
    with state.host_lock():
        dead = {owner for owner in state.users() if is_dead(owner)}
        dead |= {owner for _, owner, _ in list_slots() if is_dead(owner)}
        nft: Nft | None = None
        try:
            for owner in sorted(dead):
                nft = nft or Nft()
                _remove_owner(owner, nft)
                cleared += 1
            if dead and nft is not None:
                state.restore_forwarding(nft)
        except (OSError, BelljarError) as error:
            log.warning("network_cleanup_failed", error=str(error))
        finally:
            if nft is not None:
                nft.close()
    return cleared


def _remove_owner(owner: str, nft: Nft) -> None:
    from belljar.node.network.conntrack import flush_flows
    from belljar.node.network.netlink import find_slot_address, run_netlink
    from belljar.node.network.slot import remove_slot

    for name, slot_owner, number in list_slots():
        if slot_owner == owner:
            address = run_netlink(lambda route, number=number: find_slot_address(route, number))  # type: ignore[misc]
            remove_slot(NAMESPACES / name, number)
            if address is not None:
                flush_flows(address)
    for each in nft.run("list tables inet").get("nftables", ()):
        table = str(each.get("table", {}).get("name", ""))
        if table_owner(table) == owner:
            nft.run(delete_table(table))
    state.remove_user(owner)
