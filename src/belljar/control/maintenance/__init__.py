"""Removes what is past its retention period: small services with one purpose each, and what runs them.

Every service works in bounded batches, may be killed at any point, and is run again until nothing is left to do. None
touches a job that has not ended, or what such a job needs.
"""
