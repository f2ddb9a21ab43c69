"""`belljar bench`: figures of this machine, measured side by side in one run."""
