"""The sandboxes that a node holds: their machines, commands, files and ports, from the claim to the end."""
