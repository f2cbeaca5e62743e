"""Two processes as one run, over loopback; one is killed, and both are started again."""

import contextlib
import re
import signal
import socket

import pytest

from tests.training.processes import arrays, finish, records, same, start, wait_for

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("processes")]

STEPS = 40


def both(work):
    with contextlib.closing(socket.socket()) as listener:
        listener.bind(("127.0.0.1", 0))
        port = str(listener.getsockname()[1])
    return [start(work, port, "2", str(index)) for index in range(2)]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    work = tmp_path_factory.mktemp("processes") / "whole"
    for process in both(work):
        finish(process)
    return work


def test_lose_one_and_go_on_twice(whole):
    """Told to stop, both save the same step. Killed, the other one would wait until its heartbeats are missed."""
    work = whole.parent / "lost"
    first, second = both(work)
    wait_for(work, 10, first)  # while that step's checkpoint is written
    second.send_signal(signal.SIGINT)  # handed on as SIGTERM
    ends = [re.search(r"'step': (\d+), 'finished': False", finish(process)) for process in (first, second)]
    stopped = int(ends[0][1])
    assert stopped == int(ends[1][1])
    assert (work / "checkpoints" / str(stopped)).exists()
    first, second = both(work)
    wait_for(work, stopped + 10, first)
    for process in (second, first):
        process.kill()
        process.communicate()
    assert stopped < max(record["step"] for record in records(work)) < STEPS
    before, last = sorted(int(path.name) for path in (work / "checkpoints").iterdir() if path.name.isdigit())[-2:]
    (work / "checkpoints" / str(last) / "data" / "process_1-of-2.json").write_text("{")  # the first does not read it
    said = [finish(process) for process in both(work)]
    assert f"going on from step {before}" in said[0]
    assert (work / "unreadable" / str(last)).exists()
    same(arrays(work, STEPS), arrays(whole, STEPS), rtol=1e-4, atol=1e-5)
    positions = {path.name for path in (work / "checkpoints" / str(STEPS) / "data").glob("process*")}
    assert positions == {"process_0-of-2.json", "process_1-of-2.json"}
