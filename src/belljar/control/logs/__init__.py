"""Logs of jobs: one append-only file of records for each, and its readers."""
