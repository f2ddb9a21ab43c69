"""Quotas: the limits of each project, what it has used of them, and the services that keep the counts right."""
