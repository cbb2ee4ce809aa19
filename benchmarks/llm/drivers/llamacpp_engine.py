"""llama.cpp by its own `llama-batched-bench`. Arguments: THREADS MODEL BINARY.

It times the two phases itself; the seconds here are their sum, without loading.
"""

import json
import subprocess
import sys

from benchmarks.llm.drivers.protocol import serve


def main() -> None:
    """Serve."""
    threads, model, binary = sys.argv[1:4]

    def run(prompts: list[list[int]], output: int) -> float:
        length, count = len(prompts[0]), len(prompts)
        command = [
            *(binary, "-m", model, "-t", threads, "-tb", threads, "--output-format", "jsonl"),
            *("-c", str(count * (length + output) + 64), "-b", "2048", "-ub", "512"),
            *("-npp", str(length), "-ntg", str(output), "-npl", str(count)),
        ]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        told = next(line for line in done.stdout.splitlines() if line.startswith("{"))
        return float(json.loads(told)["t"])

    serve(run)


main()
