"""Machines: one running microVM each, from the spawn of its process to its removal. Nothing here knows of jobs.

protocol.py defines machines and hypervisors; qemu/ and firecracker/ implement them; selector.py chooses one of them.
provision/ acquires machines: from the warm pool, a snapshot or a boot. host/ holds what both drivers need of the host.
"""
