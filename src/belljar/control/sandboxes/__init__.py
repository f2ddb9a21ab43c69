"""The sandboxes of projects at the control plane: leases, deadlines, changes, and the way to their machines."""
