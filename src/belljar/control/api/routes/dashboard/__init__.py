"""The pages of the dashboard. Each goes through the services and rules of the API."""
