"""Makes PyPI's torchvision work beside a CPU build of torch, once this is imported.

PyPI's wheel is linked against CUDA builds of torch. Beside another build its own operators (nms, roi_align, ...) are
missing, and declaring their fake kernels fails, so that `import torchvision` does, and with it most of transformers.
Its transforms, which transformers' processors use, are plain PyTorch. So when torchvision is imported, and not before,
the names of the missing operators are declared first.
"""

import re
import sys
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from types import ModuleType
from typing import Any

DECLARED = re.compile(r'register_(?:fake|meta)\("(?:torchvision::)?([a-z_0-9]+)"')
# Declarations last as long as the library object.
KEPT: list[Any] = []


def declare_operators(folder: Path) -> None:
    """Declare the operators of the torchvision in `folder`, unless its compiled part fits this torch."""
    import torch

    try:
        for library in folder.glob("_C*.so"):
            torch.ops.load_library(library)
            return
    except OSError:
        KEPT.append(torch.library.Library("torchvision", "DEF"))
        for name in sorted({name for file in folder.glob("*.py") for name in DECLARED.findall(file.read_text())}):
            KEPT[-1].define(f"{name}(Tensor x) -> Tensor")


class Finder:
    """Finds torchvision as ever, and declares its operators before it runs."""

    @staticmethod
    def find_spec(name: str, path: Any = None, target: ModuleType | None = None) -> ModuleSpec | None:
        spec = PathFinder.find_spec(name, path, target) if name == "torchvision" else None
        if spec is not None and spec.loader is not None and spec.origin is not None:
            folder, run = Path(spec.origin).parent, spec.loader.exec_module

            def exec_module(module: ModuleType) -> None:
                declare_operators(folder)
                run(module)

            spec.loader.exec_module = exec_module  # type: ignore[method-assign]
        return spec


sys.meta_path.insert(0, Finder)  # type: ignore[arg-type]
