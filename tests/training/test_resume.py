"""A run that is killed at any moment goes on as if nothing had happened. More often: KILLS=20 pytest ..."""

import os
import random
import re
import signal
import time

import pytest

from tests.training import tiny
from tests.training.processes import arrays, finish, records, same, start, wait_for

# On one worker: the fixture is made once.
pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("resume")]

STEPS = tiny.LONG.steps


def interrupted(work, draw, kills, how):
    """Runs to the end, against `kills` interruptions at random moments after the first record."""
    for _ in range(kills):
        process = start(work)
        done = max((record["step"] for record in records(work)), default=0)
        wait_for(work, done + 1, process)
        time.sleep(draw.uniform(0, 1))
        process.send_signal(how)
        said, _ = process.communicate(timeout=120)
        if how == signal.SIGTERM:
            assert process.returncode == 0, said
            assert records(work)[-1]["step"] == int(re.search(r"stopped after step (\d+)", said)[1])
    finish(start(work))


@pytest.fixture(scope="module")
def never_stopped(tmp_path_factory):
    work = tmp_path_factory.mktemp("runs") / "whole"
    finish(start(work))
    return work


@pytest.mark.parametrize(
    ("how", "kills"),
    [(signal.SIGKILL, int(os.environ.get("KILLS", "2"))), (signal.SIGTERM, 1)],
    ids=["kill", "term"],
)
def test_ends_with_the_same_bits(never_stopped, how, kills):
    work = never_stopped.parent / f"{how.name}{kills}"
    interrupted(work, random.Random(kills), kills, how)
    same(arrays(work, STEPS), arrays(never_stopped, STEPS))
    at_the_end = lambda work: [record for record in records(work) if record["step"] == STEPS]
    assert at_the_end(work) == at_the_end(never_stopped)
    if how == signal.SIGKILL:
        assert records(work) == records(never_stopped)
