"""How much waits for an engine, and whether more may. Knows no clock and no requests.

On the event loop.
"""

import asyncio

from naiad_backends.errors import QueueFull, invalid


class Queue:
    """Counts texts from their arrival to their end, and the tokens of prompts until an answer to
    them begins."""

    def __init__(self, running: int, most: int, most_tokens: int) -> None:
        """running: texts that run at once; what is more than these waits.
        most, most_tokens: texts, and tokens of prompts, that may wait; 0 for any number."""
        self.texts = 0
        self.tokens = 0
        self._running = running
        self._most = most
        self._most_tokens = most_tokens
        self._emptied = asyncio.Event()

    def enter(self, texts: int, retry_after_s: int) -> None:
        """Count texts that arrive together.

        Raises QueueFull if they are too many, INVALID_ARG for more than the queue ever takes.
        retry_after_s: what the refused are told.
        """
        places = self._running + self._most
        if self._most and self.texts + texts > places:
            if texts > places:
                raise invalid(
                    f"{texts} texts are more than may run and wait at once",
                    field="n",
                    hint=f"use at most {places}",
                )
            waiting = max(self.texts - self._running, 0)
            raise QueueFull(f"the queue is full: {waiting} texts wait already", retry_after_s)
        self.texts += texts

    def leave(self, texts: int) -> None:
        """They have come to their end."""
        self.texts -= texts
        if not self.texts:
            self._emptied.set()

    async def empty(self) -> None:
        """Wait until all texts have come to their end."""
        while self.texts:
            self._emptied.clear()
            await self._emptied.wait()

    def refusal(self, waiting: int, retry_after_s: int) -> QueueFull | None:
        """What a request hears that comes while no engine is there and so many wait for one, if it
        could not enter behind them."""
        if self._most and waiting >= self._running + self._most:
            return QueueFull(f"the queue is full: {waiting} requests wait already", retry_after_s)
        return None

    def add_tokens(self, tokens: int, retry_after_s: int) -> None:
        """Count the tokens of a prompt. Raises QueueFull, but never for one that is alone."""
        if self._most_tokens and self.tokens and self.tokens + tokens > self._most_tokens:
            raise QueueFull(
                f"the queue is full: prompts of {self.tokens} tokens wait already", retry_after_s
            )
        self.tokens += tokens
