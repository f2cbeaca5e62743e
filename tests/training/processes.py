"""Runs in processes of their own, that can be killed."""

import json
import os
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from jax.tree_util import keystr, tree_leaves_with_path

ROOT = Path(__file__).parents[2]


def start(work: Path, *several: str) -> subprocess.Popen:
    """Begins, or goes on with, `tiny.LONG`; programs are compiled once for all runs beside each other.

    `several`: port, count and index, as one of several processes, with two devices each.
    """
    cache = {
        "JAX_COMPILATION_CACHE_DIR": str(work.parent / "cache"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "0",
    }
    if several:
        cache |= {"XLA_FLAGS": os.environ["XLA_FLAGS"].replace("device_count=8", "device_count=2")}
    command = [sys.executable, "-m", "tests.training.tiny", str(work), *several]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    return subprocess.Popen(command, cwd=ROOT, env=os.environ | cache, **pipes)


def finish(process: subprocess.Popen, seconds: float = 300) -> str:
    """What it said, once it is done; it must have gone well."""
    said, _ = process.communicate(timeout=seconds)
    assert process.returncode == 0, said
    return said


def elsewhere(run: Callable[..., Any], *args: Any) -> Any:
    """`run(*args)` in a new process, with its result or error and its warnings here.

    For reads and writes that fail: orbax leaves others of the same checkpoint unawaited, and Python complains of
    these much later, in whichever test runs then.
    """
    with ProcessPoolExecutor(1, get_context("spawn")) as pool:
        result, told = pool.submit(_heard, run, *args).result()
    for message in told:
        warnings.warn(message, stacklevel=2)
    return result


def _heard(run: Callable[..., Any], *args: Any) -> tuple[Any, list[str]]:
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always", UserWarning)
        result = run(*args)
    return result, [str(each.message) for each in told if each.category is UserWarning]


def wait_for(work: Path, step: int, process: subprocess.Popen) -> None:
    """Until there is a record of this step, or the process has ended."""
    while process.poll() is None and not any(record["step"] >= step for record in records(work)):
        time.sleep(0.02)


def records(work: Path) -> list[dict[str, Any]]:
    """All records, without what differs from run to run."""
    path = work / "metrics.jsonl"
    lines = path.read_text().splitlines(keepends=True) if path.exists() else []
    found = [json.loads(line) for line in lines if line.endswith("\n")]
    return [{k: v for k, v in record.items() if "second" not in k} for record in found]


def arrays(work: Path, step: int) -> dict[str, np.ndarray]:
    """Everything that a checkpoint's state holds."""
    here = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    handlers = {"state": ocp.StandardCheckpointHandler()}
    with ocp.CheckpointManager(work / "checkpoints", item_handlers=handlers) as manager:
        shapes = manager.item_metadata(step)["state"].tree
        like = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=here), shapes)
        state = manager.restore(step, args=ocp.args.Composite(state=ocp.args.StandardRestore(like)))["state"]
    return {keystr(path): np.asarray(leaf) for path, leaf in tree_leaves_with_path(state)}


def same(got: dict[str, np.ndarray], want: dict[str, np.ndarray], **tolerance: float) -> None:
    assert got.keys() == want.keys()
    for name, x in got.items():
        np.testing.assert_allclose(x, want[name], err_msg=name, **({"rtol": 0} | tolerance))
