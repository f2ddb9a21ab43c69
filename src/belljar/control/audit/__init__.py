"""The audit log: who did what, from where, to which object; append-only, in a chain of hashes."""
