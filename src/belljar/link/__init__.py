"""The protocol between a node and the control plane."""
