"""Finds the author's class: imports `model.py` and what lies beside it."""

import importlib
import importlib.util
import sys
from contextvars import ContextVar
from pathlib import Path
from types import ModuleType
from typing import Any

from naiad_backends.python.runtime.errors import TritonModelException

CLASS = "TritonPythonModel"

folder: ContextVar[str] = ContextVar("folder")
"""The version folder of the model that runs on this thread, where the server runs several."""

_only: str | None = None


def get_model_dir() -> str:
    """The version folder of the model. Raises TritonModelException outside of a model."""
    found = folder.get(_only)
    if found is None:
        raise TritonModelException("get_model_dir works only in a model that a server runs")
    return found


def _lend_name() -> None:
    """Let models import `triton_python_backend_utils`, whatever is on their path."""
    from naiad_backends.python.runtime import pb_utils

    for name in ("triton_python_backend_utils", "c_python_backend_utils"):
        sys.modules.setdefault(name, pb_utils)


def load_alone(file: Path, version: Path) -> Any:
    """The class of the one model of this process, imported as Triton does: as `<version>.<stem>`,
    with the version's folder, the model's, and the file's own ahead on `sys.path`.

    Raises what the import raises, and TritonModelException if there is no such class.
    """
    global _only
    _lend_name()
    _only = str(version)
    sys.path[:0] = list(dict.fromkeys(map(str, (file.parent, version, version.parent))))
    if file.parent == version:
        sys.path.insert(0, sys.path.pop(sys.path.index(str(version.parent))))
        module = importlib.import_module(f"{version.name}.{file.stem}")
    else:
        module = importlib.import_module(file.stem)
    return _class(module, file)


def load_beside(file: Path, version: Path, name: str) -> Any:
    """The same in a process that has other models: under a name of its own, so that files of the
    same names do not get into each other's way. Helpers are found by relative imports, and by plain
    ones if no other module is called so.

    name: different for each load.
    """
    _lend_name()
    spec = importlib.util.spec_from_file_location(name, file, submodule_search_locations=[])
    if spec is None or spec.loader is None:
        raise TritonModelException(f"{file} is no Python file")
    module = importlib.util.module_from_spec(spec)
    module.__path__ = [str(file.parent), str(version)]
    sys.modules[name] = module
    folders = dict.fromkeys(map(str, (file.parent, version, version.parent)))
    sys.path.extend(path for path in folders if path not in sys.path)
    try:
        spec.loader.exec_module(module)
    except BaseException:
        sys.modules.pop(name, None)
        raise
    return _class(module, file)


def _class(module: ModuleType, file: Path) -> Any:
    found = getattr(module, CLASS, None)
    if not isinstance(found, type):
        raise TritonModelException(f"{file.name} has no class {CLASS}")
    return found
