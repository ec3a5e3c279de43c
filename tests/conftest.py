"""What several test files share: the demo model, loaded once, in fp32 so that answers do not hang on the machine."""

import pytest
from transformers.utils import logging

from flashvlm import VideoQA

# The command line silences transformers before it is imported; here it is imported before.
logging.disable_progress_bar()


@pytest.fixture(scope="session")
def demo() -> VideoQA:
    return VideoQA.from_pretrained("demo", device="cpu", dtype="float32")
