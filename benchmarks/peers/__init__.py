"""Our training step beside other trainers: same model, same examples in the same order, same precision.

    python -m benchmarks.peers                      every method; alternating rounds; one table
    python -m benchmarks.peers --methods lora --steps 8 --rounds 2
    python -m benchmarks.peers --quick              a random model and three steps: does everything still run?

    material  what a run trains on and how, taken from our own configuration
    meter     one clock, one memory reading, one hash of the data for every trainer
    ours  hugging_face  litgpt_parent  litgpt_child     how each trainer is started; nothing else differs
    heldout   the loss of the saved weights, in fp32, by one function for all
    table     result files -> Markdown and JSON

Each run is a child process that writes one JSON file. TRL comes with the extra `peers`; litgpt needs a Python of its
own (`--litgpt-python`), because it wants another huggingface-hub. Nothing here is used by the harness or its tests.
"""
