"""The parent's side effects: folders, child processes, provenance, tracking. No torch."""
