"""Sandboxes: machines that are kept for their users. What a node does for one is behind `belljar.link.sandboxes`."""
