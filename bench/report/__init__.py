"""A sweep's folder in, a report out: Markdown, one HTML file, plots and tables."""
