"""An import hook that keeps bitsandbytes from downloading kernels from the hub when imported."""

import logging
import sys
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType

FETCHES = "bitsandbytes.backends.cpu.ops"
"""The module of bitsandbytes 0.50.2 that downloads and runs `kernels-community` code when
imported."""


class NoHubKernels(MetaPathFinder):
    """Makes `import kernels` fail while `FETCHES` is imported, and nowhere else.

    peft imports bitsandbytes, and transformers' Trainer imports peft: no statement of ours is
    certain to run before both, but an import hook is.
    """

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """The spec of `FETCHES`, with a guarded execution; None for every other module."""
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
    """Install the hook, once."""
    if not any(isinstance(finder, NoHubKernels) for finder in sys.meta_path):
        sys.meta_path.insert(0, NoHubKernels())
