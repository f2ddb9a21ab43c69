"""The BPF program that counts a slot's flows, and its compiler. Nothing of it runs in this process."""
