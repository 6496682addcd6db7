"""Imported through PYTHONPATH by every process of a chaos test: patches modules with ``killer``."""

import importlib.abc
import importlib.machinery
import os
import sys
from collections.abc import Callable, Sequence
from types import ModuleType

HOME = os.environ.get("TINYNET_CHAOS")


class _Patched(importlib.abc.Loader):
    """A loader that patches a module after it was executed."""

    def __init__(self, loader: importlib.abc.Loader, patch: Callable[[ModuleType], None]) -> None:
        self._loader, self._patch = loader, patch

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType | None:
        return self._loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        self._loader.exec_module(module)
        self._patch(module)


class _Finder(importlib.abc.MetaPathFinder):
    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if fullname not in ("trainables.storage.folder", "trainables.trainer"):
            return None
        import killer

        spec = importlib.machinery.PathFinder.find_spec(fullname, path, target)
        if spec is not None and spec.loader is not None:
            spec.loader = _Patched(spec.loader, killer.PATCHES[fullname])
        return spec


if HOME:
    sys.meta_path.insert(0, _Finder())
