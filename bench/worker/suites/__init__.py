"""What a regression suite asks, as lm-eval tasks. Building items and checking names needs no torch."""
