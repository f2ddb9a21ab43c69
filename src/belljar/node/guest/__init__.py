"""The guest: its agent (PID 1, C), the wire protocol, and the host's session with it."""
