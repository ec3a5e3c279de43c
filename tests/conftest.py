"""What several test files share: the demo model, loaded once, in fp32 so that answers do not hang on the machine."""

import os
import shutil
import signal
import threading
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory

# Each of the processes that share the tests has a core to itself; OpenMP reads this when torch is imported.
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
import torchvision_on_cpu  # noqa: F401

if find_spec("torchvision"):
    # Before flashvlm hides it, because it was built for another torch.
    import torchvision  # noqa: F401

from flashvlm import VideoQA

QUIET = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"]
QUIET += ["--disable-component-update", "--disable-sync"]
# Seconds for one test in the browser, which takes about 2.
PATIENCE = 90

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


@pytest.fixture
def browser(tmp_path: Path):
    """Headless Chromium, as it is installed on this machine; where it stops answering it is killed, and the call fails.

    Many of Playwright's calls have no time limit of their own.
    """
    found = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if found is None:
        assert os.environ.get("FLASHVLM_NEED_BROWSER") != "1", "no Chromium is installed, and it is needed here"
        pytest.skip("no Chromium is installed: pages are not tested in a browser")
    from playwright.sync_api import sync_playwright

    number = tmp_path / "browser.pid"
    tells_its_number = tmp_path / "browser"
    tells_its_number.write_text(f'#!/bin/sh\necho $$ > "{number}"\nexec "{found}" "$@"\n')
    tells_its_number.chmod(0o755)
    with sync_playwright() as play:
        watchdog = threading.Timer(PATIENCE, lambda: os.kill(int(number.read_text()), signal.SIGKILL))
        watchdog.start()
        try:
            opened = play.chromium.launch(executable_path=tells_its_number, headless=True, args=QUIET)
            yield opened
            opened.close()
        finally:
            watchdog.cancel()
