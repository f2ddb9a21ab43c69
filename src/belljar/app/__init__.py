"""Composition: puts the parts of both sides together for one process. Nothing below imports this package."""
