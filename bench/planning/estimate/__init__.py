"""What a run will take, before it runs: parameters, memory by term, time. Arithmetic, without torch or weights."""
