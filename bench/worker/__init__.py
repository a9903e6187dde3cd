"""The child process: one stage of one run. The only place that imports torch."""
