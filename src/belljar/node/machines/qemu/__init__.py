"""QEMU: its microvm machine, under KVM or in software emulation."""
