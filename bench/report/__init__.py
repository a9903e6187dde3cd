"""The report: sections as data, charts, and two small renderers."""
