"""`belljar doctor`: checks of this host, each with the command that fixes it."""
