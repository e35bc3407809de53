"""Monitoring that joins packages: promotion of bundles by evidence."""
