"""Parameters of a request: numbers as the model gets them."""

import pytest

from naiad.core.parameters import interpret
from naiad_backends.api import Request
from naiad_backends.errors import Code, NaiadError


@pytest.mark.parametrize(
    ("sent", "got"),
    [
        (2**63 - 1, 2**63 - 1),
        (-(2**63), -(2**63)),
        (2**63, 2.0**63),
        (-(2**63) - 1, -(2.0**63)),
        (True, True),
        (0.5, 0.5),
    ],
)
def test_an_integer_that_no_int64_holds_is_a_double(sent: float, got: float) -> None:
    request = Request("m")
    interpret(request, {"n": sent})
    assert request.parameters == {"n": got}
    assert type(request.parameters["n"]) is type(got)


def test_an_integer_that_no_double_holds_is_refused() -> None:
    with pytest.raises(NaiadError, match="double") as caught:
        interpret(Request("m"), {"n": 10**400})
    assert (caught.value.code, caught.value.field) == (Code.INVALID_ARG, 'parameters["n"]')
