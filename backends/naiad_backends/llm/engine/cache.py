"""How large the KV cache may be. Knows no tensors."""

import os
from pathlib import Path

from naiad_backends.errors import invalid
from naiad_backends.llm.checkpoint.architecture import Architecture
from naiad_backends.llm.options import Options

USUAL_BYTES = 4 << 30
"""Of a CPU's cache, where nobody says more; memory that is never used is never taken."""

PART_OF_FREE = 0.5
"""Of a CPU's free memory."""


def bytes_per_token(architecture: Architecture, itemsize: int) -> int:
    """Of keys and values of all layers."""
    a = architecture
    return 2 * len(a.layers) * a.num_kv_heads * a.head_dim * itemsize


def blocks_for(
    options: Options, architecture: Architecture, block_size: int, itemsize: int, free: int = 0
) -> int:
    """How many blocks, block 0 included: as many as fit into `kv_cache_memory_bytes`, or else into
    `free` bytes (0: what a CPU has), and no more than all sequences can ever use.

    architecture: limited to the length that is served.  INVALID_ARG if not even one sequence of
    that length fits.
    """
    budget = options.kv_cache_memory_bytes or free
    budget = budget or min(USUAL_BYTES, int(free_memory() * PART_OF_FREE))
    block = block_size * bytes_per_token(architecture, itemsize)
    one = -(-architecture.max_position // block_size)
    blocks = min(budget // block, options.max_num_seqs * one + 1)
    if blocks < one + 1:
        fits = max(budget // block - 1, 0) * block_size
        raise invalid(
            f"one sequence of {architecture.max_position} tokens needs "
            f"{(one + 1) * block / 2**20:,.1f} MiB of KV cache, and there are "
            f"{budget / 2**20:,.1f} MiB",
            field="kv_cache_memory_bytes",
            hint=f"raise it, or set max_model_len to {fits} or less",
        )
    return blocks


def free_memory() -> int:
    """Bytes that this process may still take: the machine's, or less in a container."""
    lines = (
        Path("/proc/meminfo").read_text().splitlines() if os.path.exists("/proc/meminfo") else []
    )
    free = next((int(line.split()[1]) << 10 for line in lines if line.startswith("MemAvai")), 0)
    if not free:
        free = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    try:
        group = Path("/sys/fs/cgroup")
        limit = int((group / "memory.max").read_text())
        return max(min(free, limit - int((group / "memory.current").read_text())), 0)
    except (OSError, ValueError):
        return free
