"""The lines between a driver and whoever measures: a JSON object each way for each run."""

import json
import random
import sys
from collections.abc import Callable

Run = Callable[[list[list[int]], int], float]
"""Prompts as tokens, and how many tokens each answer has -> seconds for all of them together."""

VOCABULARY = range(1000, 40_000)
"""Tokens of SmolLM2 that are text."""


def serve(run: Run) -> None:
    """Say `ready`, then run what stdin asks for until it ends. Prompts are new each time, so that
    no cache of prefixes helps."""
    draw = random.Random()
    print("ready", flush=True)
    for line in sys.stdin:
        asked = json.loads(line)
        prompts = [draw.choices(VOCABULARY, k=asked["prompt"]) for _ in range(asked["batch"])]
        print(json.dumps({"seconds": run(prompts, asked["output"])}), flush=True)
