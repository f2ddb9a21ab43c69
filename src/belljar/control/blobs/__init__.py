"""Bytes by name over an object-store library: a local folder by default, S3/GCS/Azure for a fleet."""
