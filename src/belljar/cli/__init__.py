"""The `belljar` command."""
