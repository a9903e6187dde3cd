"""The instruments that measure a run.

One contract. An instrument measures by phase, from the first `enter` to `stop`; `tests/worker/test_instruments.py`
holds every one to it:

    enter(phase)   start, or mark a phase: the one before it ends. A phase entered again goes on: what adds up is
                   added, of peaks the larger is kept
    stop()         end the phase that runs; nothing is measured until the next `enter`
    read()         phase -> what was measured so far, the phase that runs included, in the order of first entry

Unknown is None, never 0. Opening an instrument takes its zero, so it is opened before what it measures exists.

    clock    seconds of wall time; `with clock.span(phase)` marks both edges       Clock()
    memory   PhaseMemory; also the memory of this moment                           open_memory(device)
    tokens   TokenCounts of the batches that it was given, and their hash          TokenStream()
    energy   watt-hours                                                            open_energy(device)

`clock.Load`, what else used the machine, has a single interval from `start` to `read`. FLOPs (`tokens`) are no
instrument but arithmetic on what these read, with one measurement of its own, the matmul peak.
What each instrument costs and how far it errs: `python -m benchmarks.observer`, `python -m benchmarks.instruments`.
"""
