"""Hub kernels: code that bitsandbytes fetches from the hub when it is imported; here it may not."""

import logging
import sys
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType

FETCHES = "bitsandbytes.backends.cpu.ops"
"""The module of bitsandbytes 0.50.2 that loads and runs `kernels-community` code at its import."""


class NoHubKernels(MetaPathFinder):
    """Makes `import kernels` fail while `FETCHES` is imported, and nowhere else.

    peft imports bitsandbytes, and transformers' trainer imports peft, so no place of ours is sure
    to come before them all: an import hook is.
    """

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """The spec of `FETCHES`, its execution guarded; None for every other module."""
        spec = PathFinder.find_spec(name, path, target) if name == FETCHES else None
        if spec is None or spec.loader is None:
            return None
        execute = spec.loader.exec_module

        def guarded(module: ModuleType) -> None:
            hidden = sys.modules.get("kernels")
            logger = logging.getLogger(FETCHES)
            level = logger.level
            sys.modules["kernels"] = None  # type: ignore[assignment]  # makes its import fail
            logger.setLevel(logging.ERROR)  # it would warn that the import failed
            try:
                execute(module)
            finally:
                logger.setLevel(level)
                del sys.modules["kernels"]
                if hidden is not None:
                    sys.modules["kernels"] = hidden

        spec.loader.exec_module = guarded  # type: ignore[method-assign]
        return spec


def refuse() -> None:
    """Put the hook in place, once."""
    if not any(isinstance(finder, NoHubKernels) for finder in sys.meta_path):
        sys.meta_path.insert(0, NoHubKernels())
