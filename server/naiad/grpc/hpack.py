"""Field blocks of HTTP/2: bytes to names and values, and literals to bytes. Source: RFC 7541.

Knows nothing of what the fields mean. Our own, because a client that sets a deadline sends another
block with each call, and so decoding is part of a call's cost.
"""

from collections.abc import Iterable, Sequence
from typing import Final

Field = tuple[bytes, bytes]

TABLE_SIZE: Final = 4096
"""Bytes of the dynamic table, as HTTP/2 has it before any SETTINGS; we ask for nothing else."""

_OVERHEAD: Final = 32
"""What a field counts beside its name and value (4.1)."""

_MOST_DIGITS: Final = 4
"""Of 7 bits each, behind a number's prefix: enough for any length that a block can have."""

_STATIC: Final[Sequence[Field]] = tuple(
    (name.encode(), value.encode())
    for name, _, value in (
        line.strip().partition(" ")
        for line in """:authority
        :method GET
        :method POST
        :path /
        :path /index.html
        :scheme http
        :scheme https
        :status 200
        :status 204
        :status 206
        :status 304
        :status 400
        :status 404
        :status 500
        accept-charset
        accept-encoding gzip, deflate
        accept-language
        accept-ranges
        accept
        access-control-allow-origin
        age
        allow
        authorization
        cache-control
        content-disposition
        content-encoding
        content-language
        content-length
        content-location
        content-range
        content-type
        cookie
        date
        etag
        expect
        expires
        from
        host
        if-match
        if-modified-since
        if-none-match
        if-range
        if-unmodified-since
        last-modified
        link
        location
        max-forwards
        proxy-authenticate
        proxy-authorization
        range
        referer
        refresh
        retry-after
        server
        set-cookie
        strict-transport-security
        transfer-encoding
        user-agent
        vary
        via
        www-authenticate""".splitlines()
    )
)


class BrokenBlock(ValueError):
    """The bytes are no field block. The decoder is of no use after it."""


class Decoder:
    """The receiving side of one connection, whose blocks must all be decoded, in order."""

    def __init__(self, most: int) -> None:
        """most: bytes of a list of fields, each counted with 32 bytes more."""
        self._most = most
        self._dynamic: list[Field] = []
        self._room = self._size = TABLE_SIZE
        self.changes = 0
        """Goes up whenever indices have got another meaning."""

    def decode(self, block: bytes) -> list[Field] | None:
        """The fields; None if there are too many, which the next block does not suffer from.

        Raises BrokenBlock.
        """
        fields: list[Field] = []
        at = size = 0
        end = len(block)
        try:
            while at < end:
                first = block[at]
                if first & 0x80:
                    index, at = _number(block, at, 0x7F)
                    field = self._field(index)
                elif first & 0x40:
                    field, at = self._literal(block, at, 0x3F)
                    self._insert(field)
                elif first & 0x20:
                    if size:
                        raise BrokenBlock("a change of the table's size behind a field")
                    self._size, at = _number(block, at, 0x1F)
                    self._resize()
                    continue
                else:
                    field, at = self._literal(block, at, 0x0F)
                size += len(field[0]) + len(field[1]) + _OVERHEAD
                if size <= self._most:
                    fields.append(field)
        except IndexError:
            raise BrokenBlock("a field block that is cut off") from None
        return fields if size <= self._most else None

    def _field(self, index: int) -> Field:
        if 0 < index <= len(_STATIC):
            return _STATIC[index - 1]
        if not 0 < index <= len(_STATIC) + len(self._dynamic):
            raise BrokenBlock(f"field {index} is in no table")
        return self._dynamic[index - len(_STATIC) - 1]

    def _literal(self, block: bytes, at: int, mask: int) -> tuple[Field, int]:
        index, at = _number(block, at, mask)
        if index:
            name = self._field(index)[0]
        else:
            name, at = _string(block, at)
        value, at = _string(block, at)
        return (name, value), at

    def _insert(self, field: Field) -> None:
        self._dynamic.insert(0, field)
        self._room -= _weight(field)
        self.changes += 1
        self._evict()

    def _resize(self) -> None:
        if self._size > TABLE_SIZE:
            raise BrokenBlock(f"a table of {self._size} bytes; {TABLE_SIZE} are the most")
        self._room = self._size - sum(map(_weight, self._dynamic))
        self.changes += 1
        self._evict()

    def _evict(self) -> None:
        while self._room < 0:
            self._room += _weight(self._dynamic.pop())


def _weight(field: Field) -> int:
    return len(field[0]) + len(field[1]) + _OVERHEAD


def _number(block: bytes, at: int, mask: int) -> tuple[int, int]:
    """The number whose prefix `mask` leaves of the byte at `at`, and where it ends (5.1)."""
    number = block[at] & mask
    at += 1
    if number < mask:
        return number, at
    for digit in range(_MOST_DIGITS):
        byte = block[at]
        at += 1
        number += (byte & 0x7F) << 7 * digit
        if byte < 0x80:
            return number, at
    raise BrokenBlock("a number that is too large")


def _string(block: bytes, at: int) -> tuple[bytes, int]:
    """The text at `at`, and where it ends (5.2)."""
    coded = block[at] & 0x80
    length, start = _number(block, at, 0x7F)
    end = start + length
    if end > len(block):
        raise BrokenBlock("a text that is cut off")
    text = block[start:end]
    return (_plain(text) if coded else text), end


def literal(name: str, value: str) -> bytes:
    """A field that is in no table and goes into none (6.2.2), in Latin-1."""
    return b"\x00" + _length(name.encode("latin-1")) + _length(value.encode("latin-1"))


def _length(text: bytes) -> bytes:
    """A text as it is, behind its length with a 7-bit prefix."""
    length = len(text)
    if length < 0x7F:
        return bytes((length,)) + text
    head = bytearray((0x7F,))
    length -= 0x7F
    while length >= 0x80:
        head.append(length & 0x7F | 0x80)
        length >>= 7
    head.append(length)
    return bytes(head) + text


# -- Huffman's code

_CODE_LENGTHS: Final = bytes.fromhex(
    "0d171c1c1c1c1c1c1c181e1c1c1e1c1c1c1c1c1c1c1c1e1c1c1c1c1c1c1c1c1c"
    "060a0a0c0d06080b0a0a080b080606060505050606060606060607080f060c0a"
    "0d06070707070707070707070707070707070707070707070807080d130d0e06"
    "0f05060506050606060507070606060506070605050607070707070f0b0e0d1c"
    "1416141416161617161717171717181718181617181717171715161716171718"
    "1615141616171715171616181516171715151615171617171416161617161617"
    "1a1a1413161716191a1a1a1b1b1a181913151a1b1b1a1b1815151a1a1c1b1b1b"
    "14181415161515171616191918181a171a1b1a1a1b1b1b1b1b1c1b1b1b1b1b1a"
    "1e"
)
"""Bits of the code of each byte, then of the end mark (appendix B). Codes of one length follow each
other in the order of the bytes, so that lengths say it all."""

_END_MARK: Final = 256

_Step = tuple[int, int]
"""Where half a byte leads to, and the byte that it completes, or -1."""


def _trie(lengths: bytes) -> list[list[int]]:
    """The code as a tree: the two ways from each inner node; a byte's leaf is its complement."""
    trie = [[0, 0]]
    code = previous = 0
    for symbol in sorted(range(len(lengths)), key=lengths.__getitem__):
        length = lengths[symbol]
        code <<= length - previous
        node = 0
        for bit in range(length - 1, 0, -1):
            way = code >> bit & 1
            if not trie[node][way]:
                trie[node][way] = len(trie)
                trie.append([0, 0])
            node = trie[node][way]
        trie[node][code & 1] = ~symbol
        code += 1
        previous = length
    return trie


def _steps(trie: Sequence[Sequence[int]]) -> list[_Step]:
    """Where each half byte leads from each node; the end mark leads to a node without a way out."""
    dead = len(trie)
    steps = [_step(trie, node, half) for node in range(dead) for half in range(16)]
    return steps + [(dead, -1)] * 16


def _step(trie: Sequence[Sequence[int]], node: int, half: int) -> _Step:
    symbol = -1
    for bit in (3, 2, 1, 0):
        node = trie[node][half >> bit & 1]
        if node == ~_END_MARK:
            return len(trie), -1
        if node < 0:
            symbol, node = ~node, 0
    return node, symbol


def _paddings(trie: Sequence[Sequence[int]]) -> Iterable[int]:
    """Nodes that a text may end at: the root, and up to 7 ones from there."""
    node = 0
    for _ in range(8):
        yield node
        node = trie[node][1]


_TRIE: Final = _trie(_CODE_LENGTHS)
_STEPS: Final = _steps(_TRIE)
_ENDS: Final = frozenset(_paddings(_TRIE))


def _plain(coded: bytes) -> bytes:
    """The text that Huffman's code stands for."""
    text = bytearray()
    node = 0
    for byte in coded:
        node, symbol = _STEPS[node << 4 | byte >> 4]
        if symbol >= 0:
            text.append(symbol)
        node, symbol = _STEPS[node << 4 | byte & 0xF]
        if symbol >= 0:
            text.append(symbol)
    if node not in _ENDS:
        raise BrokenBlock("a text that is not in Huffman's code")
    return bytes(text)
