"""Passes HTTP and WebSocket connections on to ports in sandboxes. What answers there is as hostile as its guest."""
