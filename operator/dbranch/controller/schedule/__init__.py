"""Schedules of branches: snapshots taken by themselves, and those that are too many deleted."""
