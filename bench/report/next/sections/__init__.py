"""One file a section. Each has a function `section(group)`; `SECTIONS` is their order in the report."""
