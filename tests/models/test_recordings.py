"""Every array that was recorded of the PyTorch code, against our models with the same weights.

`JAXDEQ_RECORDINGS` names another folder of recordings.
"""

import pytest

from tests.models import lm_recording, mdeq_recording
from tests.models.recording import HERE, Recording

CHECKS = {"lm": lm_recording.check, "mdeq": mdeq_recording.check}  # by the start of the file's name
pytestmark = pytest.mark.slow
FILES = sorted(path for kind in CHECKS for path in HERE.glob(f"{kind}_*.npz"))


def test_there_are_recordings():
    assert FILES, f"no recordings in {HERE}"


@pytest.mark.parametrize("path", [pytest.param(path, id=path.stem) for path in FILES])
def test_every_array(path):
    recording = Recording(path)
    CHECKS[path.stem.split("_")[0]](recording)
    assert not recording.unread()
