"""`python -m benchmarks.llm`: SmolLM2's tokens per second in Naiad and in other engines."""

import sys
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import click

from benchmarks import options
from benchmarks.facts import facts
from benchmarks.llm import offline
from benchmarks.llm.models import Models
from benchmarks.llm.offline import Case, Engine
from benchmarks.llm.peers import Peers
from naiad_backends.llm.process import VARIABLES

MODULES = {
    "naiad": "benchmarks.llm.drivers.naiad_engine",
    "naiad-torch": "benchmarks.llm.drivers.naiad_engine",
    "llama.cpp": "benchmarks.llm.drivers.llamacpp_engine",
    "openvino": "benchmarks.llm.drivers.openvino_engine",
    "vllm": "benchmarks.llm.drivers.vllm_engine",
}
CASES = {
    "b1": Case(1, 128, 64),
    "b8": Case(8, 128, 64),
    "b32": Case(32, 128, 64),
    "prefill": Case(1, 512, 1, decode=False),
    "long": Case(8, 2048, 32),
}


@click.command()
@click.option(
    "--engines", type=options.CommaList(tuple(MODULES)), default="naiad,llama.cpp,openvino,vllm"
)
@click.option("--cases", type=options.CommaList(tuple(CASES)), default=",".join(CASES))
@click.option("--rounds", default=3, show_default=True)
@click.option("--threads", default=2, show_default=True)
@click.option("--vllm-eager", is_flag=True, help="Without its compilation, which may take long.")
@click.option(
    "--peers-home",
    type=click.Path(path_type=Path),
    default=Path.home() / ".cache" / "naiad-peers",
    help="Where the peers' environments and programs are kept.",
)
def main(
    engines: list[str],
    cases: list[str],
    rounds: int,
    threads: int,
    vllm_eager: bool,
    peers_home: Path,
) -> None:
    """Engines take turns at the same work; medians of the rounds, ratios within a round."""
    models, peers = Models(peers_home), Peers(peers_home)
    ours = Path(sys.executable)
    commands: dict[str, Callable[[], tuple[Path, list[str | Path]]]] = {
        "naiad": lambda: (ours, [models.q4_1(), "native"]),
        "naiad-torch": lambda: (ours, [models.q4_1(), "torch"]),
        "llama.cpp": lambda: (ours, [models.q4_0(peers), peers.llamacpp("llama-batched-bench")]),
        "openvino": lambda: (peers.python("openvino"), [models.q4_0(peers)]),
        "vllm": lambda: (peers.python("vllm"), [models.folder(), *(["eager"] * vllm_eager)]),
    }
    with ExitStack() as stack:
        running = []
        for name in engines:
            python, arguments = commands[name]()
            module = MODULES[name]
            command = [str(python), "-m", module, str(threads), *map(str, arguments)]
            # As the server starts its engines.
            variables = VARIABLES if name.startswith("naiad") else {}
            running.append(stack.enter_context(Engine(name, command, threads, variables)))
        found = offline.measure(running, [CASES[case] for case in cases], rounds)
    for name, value in facts("benchmarks.llm").items():
        print(f"- {name}: {value}")
    print(f"\n{offline.table(found)}")


if __name__ == "__main__":
    main()
