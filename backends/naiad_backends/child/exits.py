"""What the end of a process tells people."""

import signal


def reason(code: int) -> str:
    """How a process came to its end. code: as `subprocess` has it, negative for a signal."""
    if code >= 0:
        return f"it has exited with code {code}"
    try:
        name = signal.Signals(-code).name
    except ValueError:
        name = f"signal {-code}"
    if name == "SIGKILL":
        return "it was killed by SIGKILL, which is also what a lack of memory leads to"
    return f"it was killed by {name}"
