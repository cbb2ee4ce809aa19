"""The blocks of the KV cache: who has which, and which prefix each one holds.

Knows numbers of blocks and digests of tokens, not what is in the cache nor why one wants it. A full
block may be shared: its digest covers all tokens up to its end, so that equal digests mean equal
contents. Blocks that nobody uses keep their contents until they are needed, the longest unused
first. Every operation takes constant time for each block that it names.
"""

from array import array
from collections.abc import Sequence
from hashlib import blake2b

DIGEST = 16
"""Bytes of a digest: 128 bits, so that no two prefixes ever share one by chance."""


def extend_hashes(
    hashes: list[bytes], tokens: "array[int]", block_size: int, count: int, salt: bytes
) -> None:
    """Append digests of the blocks of `tokens` until there are `count`.

    Each covers the one before it, the first the salt: who has another salt shares nothing.
    """
    size = block_size * tokens.itemsize
    first = len(hashes)
    last = hashes[-1] if hashes else blake2b(salt, digest_size=DIGEST).digest()
    data = tokens[first * block_size : count * block_size].tobytes()
    for start in range(0, len(data), size):
        last = blake2b(last + data[start : start + size], digest_size=DIGEST).digest()
        hashes.append(last)


class Blocks:
    """Blocks 1 to count - 1. Block 0 is nobody's: it stands where a table has no block.

    queries, hits: tokens that were looked up in the prefix cache, and those found (scheduler).
    """

    def __init__(self, count: int) -> None:
        self.free = count - 1
        self.queries = 0
        self.hits = 0
        self._total = count - 1
        self._users = [0] * count
        self._hashes: list[bytes | None] = [None] * count
        self._cached: dict[bytes, int] = {}
        # A ring of the free blocks, the next to be given out after block 0, which is its seam.
        self._after = [*range(1, count), 0]
        self._before = [count - 1, *range(count - 1)]

    @property
    def usage(self) -> float:
        """The part of the cache that is in use, from 0 to 1."""
        return 1 - self.free / self._total

    def match(self, hashes: Sequence[bytes], limit: int) -> list[int]:
        """The blocks that hold the longest known prefix, of at most `limit` blocks."""
        found = []
        for digest in hashes[:limit]:
            block = self._cached.get(digest)
            if block is None:
                break
            found.append(block)
        return found

    def unused(self, blocks: Sequence[int]) -> int:
        """How many of them are free, so that `share` takes them from there."""
        return sum(not self._users[block] for block in blocks)

    def share(self, blocks: Sequence[int]) -> None:
        """One more user for each of them, which `match` has just found."""
        for block in blocks:
            if not self._users[block]:
                self._unlink(block)
            self._users[block] += 1

    def allocate(self, count: int) -> list[int]:
        """Blocks for one user; there must be so many free ones. What they held is forgotten."""
        taken = []
        for _ in range(count):
            block = self._after[0]
            self._unlink(block)
            self._forget(block)
            self._users[block] = 1
            taken.append(block)
        return taken

    def publish(self, block: int, digest: bytes) -> None:
        """A block in use has been computed to its end. A twin keeps the digest that it has."""
        if digest not in self._cached:
            self._cached[digest] = block
            self._hashes[block] = digest

    def release(self, blocks: Sequence[int]) -> None:
        """A user leaves its blocks. Their ends are given out before what others may begin with,
        and those without a digest, which nobody can find again, before all."""
        for block in reversed(blocks):
            self._users[block] -= 1
            if not self._users[block]:
                self._link(block, 0 if self._hashes[block] is None else self._before[0])

    def reset(self) -> None:
        """Forget every prefix that nobody is using."""
        block = self._after[0]
        while block:
            self._forget(block)
            block = self._after[block]

    def _forget(self, block: int) -> None:
        digest = self._hashes[block]
        if digest is not None:
            del self._cached[digest]
            self._hashes[block] = None

    def _link(self, block: int, before: int) -> None:
        after = self._after[before]
        self._after[before] = self._before[after] = block
        self._before[block], self._after[block] = before, after
        self.free += 1

    def _unlink(self, block: int) -> None:
        before, after = self._before[block], self._after[block]
        self._after[before], self._before[after] = after, before
        self.free -= 1
