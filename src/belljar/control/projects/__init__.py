"""Who may do what: projects, their keys, scopes and roles."""
