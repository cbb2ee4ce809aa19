"""What the tests of a damaged worker start in place of an interpreter: it speaks as a worker does
until a request comes, and then sends what it was told to.

Told by the head that a worker begins with: `early` is sent right after READY, `late` when the first
request comes, as pairs of a channel (0 for work, 1 beside it, 2 for blocks) and bytes; for blocks
the bytes are a number and what is announced under it, and channel 3 stands for its end. After
`late` it ends, too, or waits if `stays`. In place of READY comes what is in the file `ready`.
"""

import fcntl
import marshal
import os
import socket
import struct
import sys
import time
from typing import Any

HEADER = struct.Struct("<IIIB3s")
HELLO, READY, START, EXECUTE = 11, 12, 1, 2


def message(kind: int, head: bytes) -> bytes:
    return HEADER.pack(len(head), 0, 0, kind, b"nai") + head


def memory(sealed: bool) -> int:
    descriptor = os.memfd_create("fake", os.MFD_ALLOW_SEALING)
    os.ftruncate(descriptor, 65_536)
    if sealed:
        fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_SEAL)
    return descriptor


def main(numbers: list[int]) -> None:
    channels = [socket.socket(fileno=number) for number in numbers]
    work = channels[0]

    def send(what: "list[tuple[int, bytes]]") -> None:
        for channel, data in what:
            if channel < 2:
                channels[channel].sendall(data)
            elif channel == 3:
                os._exit(0)
            else:
                descriptor = memory(data[8:] == b"sealed")
                socket.send_fds(channels[2], [data[:8]], [descriptor])

    def receive(size: int) -> bytes:
        data = b""
        while len(data) < size:
            more = work.recv(size - len(data))
            if not more:
                os._exit(0)
            data += more
        return data

    work.sendall(message(10, b'[1,"3"]'))
    head: dict[str, Any] = {}
    while True:
        size, rest, _, kind, _ = HEADER.unpack(receive(HEADER.size))
        content = receive(size)
        receive(rest)
        if kind == START:
            head = marshal.loads(content)
            with open(head["ready"], "rb") as file:
                work.sendall(file.read())
            send(head["early"])
        elif kind == EXECUTE:
            send(head["late"])
            while head["stays"]:
                time.sleep(1000)
            os._exit(0)
        else:
            os._exit(0)


if __name__ == "__main__":
    main([int(text) for text in sys.argv[2:5]])
