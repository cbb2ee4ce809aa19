"""The script that a worker's interpreter runs. It need not have Naiad installed: the packages are
found beside this file, and nothing but them."""

import sys
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path


def _package(folder: Path) -> None:
    """Import this package by its place, without putting its neighbours on the path."""
    spec = spec_from_file_location(
        folder.name, folder / "__init__.py", submodule_search_locations=[str(folder)]
    )
    if spec is None or spec.loader is None:
        raise ImportError(f"{folder} is no package")
    module = module_from_spec(spec)
    sys.modules[folder.name] = module
    spec.loader.exec_module(module)


_here = Path(__file__).resolve().parent
# Processes that a model starts by `multiprocessing` run this file, too, under another name.
if _here.parent.name not in sys.modules:
    _package(_here.parent)

if __name__ == "__main__":
    # The script's own folder, which Python has put there, has files with common names.
    sys.path[0] = str(_here / "shims")
    from naiad_backends.python.runtime.worker import main

    main([int(text) for text in sys.argv[1:]])
