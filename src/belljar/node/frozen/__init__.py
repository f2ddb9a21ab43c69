"""Frozen machines of sandboxes: their memory and disks as pieces on this node's disk."""
