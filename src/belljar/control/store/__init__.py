"""The metadata of the control plane in SQLite: schema, migrations, queries. All SQL is here."""
