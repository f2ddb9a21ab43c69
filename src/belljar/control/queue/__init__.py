"""The control plane's part in running jobs: the link that nodes use, and services that repair what nodes left."""
