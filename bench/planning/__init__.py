"""Before a run: from overrides to plans, checked as a whole. No torch."""
