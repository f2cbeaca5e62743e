"""Two processes as one run, over loopback; one is killed, and both are started again."""

import contextlib
import socket

import pytest

from tests.training.processes import arrays, finish, records, same, start, wait_for

pytestmark = pytest.mark.slow

STEPS = 100


def both(work):
    with contextlib.closing(socket.socket()) as listener:
        listener.bind(("127.0.0.1", 0))
        port = str(listener.getsockname()[1])
    return [start(work, port, "2", str(index)) for index in range(2)]


def test_lose_one_and_go_on(tmp_path):
    whole, work = tmp_path / "whole", tmp_path / "killed"
    for process in both(whole):
        finish(process)
    first, second = both(work)
    wait_for(work, 35, first)
    second.kill()
    second.communicate()
    first.kill()  # it would wait for the other one until its heartbeats are missed
    first.communicate()
    assert max(record["step"] for record in records(work)) < STEPS
    said = [finish(process) for process in both(work)]
    assert "going on from step" in said[0]
    same(arrays(work, STEPS), arrays(whole, STEPS), rtol=1e-4, atol=1e-5)
    assert {path.name for path in (work / "checkpoints" / str(STEPS) / "data").glob("process*")} == {
        "process_0-of-2.json",
        "process_1-of-2.json",
    }
