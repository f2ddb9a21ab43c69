"""Removes data of the control plane that is past its retention period: small services with one purpose each.

Every service works in bounded batches and may be killed at any point; the next run continues. None touches a job that
has not ended, or data that such a job needs.
"""
