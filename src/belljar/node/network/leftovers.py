"""What a killed belljar left of its networks on this host: slots, tables, forwarding that it had turned on."""

from __future__ import annotations

import structlog

from belljar.model.errors import BelljarError
from belljar.node.machines.host.owner import is_dead
from belljar.node.network import state
from belljar.node.network.layout import NAMESPACES
from belljar.node.network.namespaces import all_slots
from belljar.node.network.nft import Nft
from belljar.node.network.rules import removed, table_owner

log = structlog.get_logger()


def clear_network_leftovers() -> int:
    """Remove slots and tables of owners that are dead, and restore forwarding; returns how many owners that were.

    Blocks. Raises nothing: what cannot be removed is told of in the log, and tried again at the next start.
    """
    if not state.in_use():
        return 0
    cleared = 0
    with state.host_lock():
        dead = {owner for owner in state.users() if is_dead(owner)}
        dead |= {owner for _, owner, _ in all_slots() if is_dead(owner)}
        nft: Nft | None = None
        try:
            for owner in sorted(dead):
                nft = nft or Nft()
                _clear(owner, nft)
                cleared += 1
            if dead and nft is not None:
                state.restore_forwarding(nft)
        except (OSError, BelljarError) as error:
            log.warning("network_leftovers_stay", error=str(error))
        finally:
            if nft is not None:
                nft.close()
    return cleared


def _clear(owner: str, nft: Nft) -> None:
    from belljar.node.network.flows import forget_flows
    from belljar.node.network.links import netlink, slot_address_there
    from belljar.node.network.slot import remove_slot

    for name, slot_owner, number in all_slots():
        if slot_owner == owner:
            address = netlink(lambda route, number=number: slot_address_there(route, number))  # type: ignore[misc]
            remove_slot(NAMESPACES / name, number)
            if address is not None:
                forget_flows(address)
    for each in nft.run("list tables inet").get("nftables", ()):
        table = str(each.get("table", {}).get("name", ""))
        if table_owner(table) == owner:
            nft.run(removed(table))
    state.remove_user(owner)
