"""Machines: one running microVM each, from spawn to corpse, behind two small protocols. Nothing here knows of jobs."""
