"""The HTTP API: routes by resource, authentication, errors, streams. Never touches a machine."""
