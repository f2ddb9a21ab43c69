"""Scripts: upload, language and entrypoint, archive safety, packing into a read-only filesystem image."""
