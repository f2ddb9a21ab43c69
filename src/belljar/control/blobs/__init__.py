"""Bytes by name: in a local folder by default, or in an object store (S3, GCS, Azure)."""
