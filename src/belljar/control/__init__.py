"""The control plane: holds every project's data and never touches a machine."""
