"""Firecracker machines: one process each, in Firecracker's own jailer, over KVM."""
