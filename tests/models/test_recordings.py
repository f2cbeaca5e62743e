"""Every array that was recorded of the PyTorch code, against our models with the same weights.

`JAXDEQ_RECORDINGS` names another folder of recordings.
"""

import pytest

from tests.models import lm_recording, mdeq_recording
from tests.models.recording import HERE, Recording

KINDS = {"lm": lm_recording, "mdeq": mdeq_recording}  # by the start of the file's name
pytestmark = pytest.mark.slow
FILES = {kind: sorted(HERE.glob(f"{kind}_*.npz")) for kind in KINDS}
each = lambda pairs: [pytest.param(kind, path, id=path.stem) for kind, path in pairs]


def test_there_are_recordings():
    assert all(FILES.values()), f"no recordings in {HERE}"


@pytest.mark.parametrize(("kind", "path"), each((kind, path) for kind, paths in FILES.items() for path in paths))
def test_every_array(kind, path):
    """Of both runs, against our model in double precision."""
    recording = Recording(path)
    KINDS[kind].check(recording)
    assert not recording.unread()


def smallest(paths):
    return min(paths, key=lambda path: path.stat().st_size)


@pytest.mark.parametrize(("kind", "path"), each((kind, smallest(paths)) for kind, paths in FILES.items() if paths))
def test_in_single_precision(kind, path):
    """Ours too. It compiles everything anew: the smallest model of each kind is enough."""
    KINDS[kind].check_single(Recording(path))
