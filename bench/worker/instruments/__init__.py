"""What measures a run. The only modules, besides `models` and `methods`, that make device calls."""
