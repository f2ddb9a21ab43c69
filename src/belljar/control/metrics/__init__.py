"""What the control plane knows for `/metrics`: the state of jobs, sandboxes, nodes, quotas, disk and maintenance."""
