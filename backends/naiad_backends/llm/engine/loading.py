"""Makes of a checkpoint what serves it. Knows which parts go together, and none from inside."""

from pathlib import Path

from naiad_backends.llm.checkpoint.architecture import Encoder
from naiad_backends.llm.checkpoint.checkpoint import open_checkpoint
from naiad_backends.llm.engine.engine import Engine
from naiad_backends.llm.engine.runners import BUILT, imported, make_runner
from naiad_backends.llm.engine.work import Work
from naiad_backends.llm.messages import Start


def load(start: Start) -> Work:
    """Read the weights and be ready for requests. NaiadError for what is wrong with the model."""
    options, device = start.options, start.device
    checkpoint = open_checkpoint(Path(start.path), options.load_format)
    if isinstance(checkpoint.architecture, Encoder):
        pooling: Work = imported("engine.pooling", "Pooling")(
            checkpoint, checkpoint.architecture, options, device
        )
        return pooling
    built = Path(start.built) if start.built else BUILT
    runner = make_runner(checkpoint, options, device, built)
    return Engine(runner, runner.make_sampler(), options)
