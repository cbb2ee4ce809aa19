"""CUDA graphs of steps whose sequences all have one token: one call instead of hundreds.

There is a graph for each of a few sizes, recorded when it is first needed; that step itself is
computed as usual, which compiles what is not compiled yet. All share one pool of memory.
"""

from collections.abc import Callable

import torch


def sizes(most: int) -> list[int]:
    """1, 2, 4, 8, then steps of 8 up to 64, then of 16; the last one is `most`."""
    some = [1, 2, 4, *range(8, 64, 8), *range(64, most + 16, 16)]
    return [*(size for size in some if size < most), most]


class Graphs:
    """compute: queues a step of so many rows, from and to places that do not move."""

    def __init__(self, compute: Callable[[int], None], most: int) -> None:
        self._compute = compute
        self._sizes = sizes(most)
        self._graphs: dict[int, torch.cuda.CUDAGraph] = {}
        self._pool = torch.cuda.graph_pool_handle()

    def size(self, rows: int) -> int:
        """Of the smallest graph for so many rows."""
        return next(size for size in self._sizes if size >= rows)

    def run(self, size: int) -> None:
        """Queue a step of one of the sizes."""
        graph = self._graphs.get(size)
        if graph:
            graph.replay()
            return
        self._compute(size)
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._pool):
            self._compute(size)
        self._graphs[size] = graph
