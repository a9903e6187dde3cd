"""Serving what a run trained: its forms, how fast they answer, what merging changed, many adapters on one base."""
