"""The stages of a run: one module each, with a function `run(context)` that returns the stage's result.

    prepare     model and data into the cache, both checked
    train       one SFT run -> weights, TrainResult
    evaluate    test split: held-out loss, greedy answers, scores -> EvaluateResult
    regression  the general-capability suite -> RegressionResult

A stage's module is imported when the stage runs, so that none pays for what another needs.
"""
