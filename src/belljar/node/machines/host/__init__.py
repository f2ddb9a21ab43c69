"""What machines need of their host: jails, control groups, users, namespaces, TAP devices."""
