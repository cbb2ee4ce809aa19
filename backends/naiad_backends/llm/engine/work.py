"""What an engine's process does, one step after the other, whatever its model is for."""

from abc import ABC, abstractmethod

from naiad_backends.llm.messages import FromEngine, Ready, ToEngine


class Work(ABC):
    """Takes messages and answers them. One thread calls it."""

    ready: Ready
    """What to tell the server once."""

    @property
    @abstractmethod
    def idle(self) -> bool:
        """Nothing to do until the next message."""

    @abstractmethod
    def take(self, message: ToEngine) -> None:
        """Accept a message; `run` answers. A mistake in it is answered, not raised."""

    @abstractmethod
    def run(self) -> FromEngine:
        """One step, and what it did. An exception means that the step is lost; `fail` follows."""

    @abstractmethod
    def fail(self, reason: str) -> FromEngine:
        """End all requests that the lost step may have been for, with this error."""
