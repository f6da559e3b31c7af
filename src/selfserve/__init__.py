"""selfserve: a self-managed serving system for machine-learned models in a public cloud."""

import hashlib
import os
import sys
import tempfile
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType

__version__ = "0.1.0"

_KERNELS = os.path.join("selfserve", "kernels")


def _kernel_cache() -> str:
    """Return a writable folder for compiled kernels, named after the sources of the folders that hold some.

    numba notices an edit in a kernel's own file but not in its callees and constants, and a read-only install without
    a home has nowhere to cache: a folder of one's own for each state of these sources cures both.
    """
    sources = {path: path.read_bytes() for path in sorted(Path(__file__).parent.rglob("*.py"))}
    folders = {path.parent for path, text in sources.items() if b" import kernel" in text}
    digest = hashlib.sha256(b"".join(text for path, text in sources.items() if path.parent in folders))
    cache = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    folder = Path(cache, _KERNELS, digest.hexdigest()[:16])
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:
        return tempfile.mkdtemp(prefix="selfserve-")
    return str(folder) if os.access(folder, os.W_OK) else tempfile.mkdtemp(prefix="selfserve-")


# A folder of ours that a parent process left in the environment may belong to older sources.
if _KERNELS in os.environ.get("NUMBA_CACHE_DIR", _KERNELS):
    # numba reads the variable when it is first imported, which `--help` need not wait for.
    os.environ["NUMBA_CACHE_DIR"] = _kernel_cache()
    if "numba" in sys.modules:
        sys.modules["numba"].config.CACHE_DIR = os.environ["NUMBA_CACHE_DIR"]


_REGISTRY = "gymnasium.envs.registration"


def register_environments() -> None:
    """Make the environments known to Gymnasium."""
    from gymnasium.envs.registration import register, registry

    for name, raw in (("selfserve/InferenceServing-v0", False), ("selfserve/InferenceServingRaw-v0", True)):
        if name not in registry:
            entries = "selfserve.environment:InferenceServing", "selfserve.vector:InferenceServingVector"
            register(name, entry_point=entries[0], vector_entry_point=entries[1], kwargs={"raw": raw})


class _WhenImported(MetaPathFinder):
    """Registers the environments as soon as Gymnasium is imported, for which `--help` need not wait."""

    def find_spec(self, fullname: str, path: object = None, target: object = None) -> ModuleSpec | None:
        if fullname != _REGISTRY:
            return None
        sys.meta_path.remove(self)
        spec = find_spec(fullname)
        if spec is not None and spec.loader is not None:
            load = spec.loader.exec_module

            def load_and_register(module: ModuleType) -> None:
                load(module)
                register_environments()

            spec.loader.exec_module = load_and_register  # type: ignore[method-assign]
        return spec


if _REGISTRY in sys.modules:
    register_environments()
else:
    sys.meta_path.insert(0, _WhenImported())
