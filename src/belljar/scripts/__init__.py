"""Turn an upload into a script: find its language and entrypoint, extract it safely, pack it into a disk image."""
