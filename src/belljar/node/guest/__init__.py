"""The guest: its agent (PID 1, in C), the wire protocol, and the host's connection to the agent."""
