"""What several test files share: the demo model, loaded once, in fp32 so that answers do not hang on the machine."""

import os
import signal
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
import torchvision_on_cpu  # noqa: F401

if find_spec("torchvision"):
    # Before flashvlm hides it, because it was built for another torch.
    import torchvision  # noqa: F401

from flashvlm import VideoQA

# Whoever runs the tests may have set options for good.
_settings = TemporaryDirectory(ignore_cleanup_errors=True)
os.environ["XDG_CONFIG_HOME"] = _settings.name
# For the processes that tests start: torchvision_on_cpu.
os.environ["PYTHONPATH"] = os.pathsep.join(
    [str(Path(__file__).parent / "site"), *filter(None, [os.environ.get("PYTHONPATH")])]
)
# A shell starts what it runs in the background with Ctrl-C ignored, and children inherit that: not those of the tests.
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def demo() -> VideoQA:
    return VideoQA.from_pretrained("demo", device="cpu", dtype="float32")


@pytest.fixture(scope="session")
def demo_video_llava() -> VideoQA:
    return VideoQA.from_pretrained("demo-video-llava", device="cpu", dtype="float32")
