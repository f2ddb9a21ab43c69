"""Metadata over SQLAlchemy: SQLite by default, PostgreSQL for a fleet; migrations; claim and lease. All SQL is here."""
