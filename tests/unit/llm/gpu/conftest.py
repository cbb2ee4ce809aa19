"""The kernels run on a GPU if there is one, and in Triton's interpreter elsewhere; see the variable
in tests/conftest.py."""

from typing import Any

import pytest
import torch
from triton.runtime import interpreter

patch_tensor = interpreter._patch_lang_tensor


def patch_tensor_for_numpy(tensor: Any, scope: Any) -> None:
    """Triton 3.6 makes an int of an array of one number to have the bounds of a loop, which NumPy
    2.4 no longer does."""
    patch_tensor(tensor, scope)
    scope.set_attr(tensor, "__index__", lambda self: self.handle.data.item())


interpreter._patch_lang_tensor = patch_tensor_for_numpy


@pytest.fixture
def device() -> torch.device:
    """Where tensors of a kernel have to be."""
    return torch.device("cuda:0" if torch.cuda.is_available() else "cpu")


@pytest.fixture
def random(device: torch.device) -> torch.Generator:
    """The same numbers each time."""
    return torch.Generator(device).manual_seed(0)


@pytest.fixture(params=[torch.float32, torch.float16, torch.bfloat16], ids=str)
def dtype(request: pytest.FixtureRequest, device: torch.device) -> torch.dtype:
    """Of what a kernel computes with. The interpreter cannot multiply or round BF16."""
    if request.param == torch.bfloat16 and device.type == "cpu":
        pytest.skip("the interpreter computes BF16 wrongly")
    kind: torch.dtype = request.param
    return kind
