"""Removes files of a node that are past their retention period: snapshots, installed packages, caches, leftovers.

Every service removes files under the lock of those who write them, or when they are too old to be in use.
"""
