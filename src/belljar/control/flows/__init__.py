"""What machines talked to: keeps the reports of nodes, and returns them to callers."""
