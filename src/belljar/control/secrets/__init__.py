"""Secrets of projects: sealing, keys, and handing them to attempts."""
