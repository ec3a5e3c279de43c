"""Python runs this when it starts with this folder on its path, as the processes that tests start do."""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parents[1]))

import torchvision_on_cpu  # noqa: F401
