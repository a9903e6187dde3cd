"""Suites of our own: the quick one, and a folder of the user's."""
