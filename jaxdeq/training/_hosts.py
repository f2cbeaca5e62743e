"""Several processes, on one host or many, as one run."""

from dataclasses import dataclass
from typing import Any

import jax

from jaxdeq import _checks as check

PATIENCE = 60  # seconds that a process waits at its end for the others; they end if it fails, and not before that


@dataclass(frozen=True)
class Hosts:
    """How processes find each other.

    JAX finds out by itself under SLURM, Open MPI, Kubernetes and on Cloud TPUs; elsewhere a run of
    several processes needs all three.

    Attributes:
      coordinator: address and port of the first process, such as `"10.0.0.1:1234"`.
      count: processes.
      index: of this one, from 0.

    Example:
      >>> from jaxdeq.training import Hosts
      >>> Hosts("10.0.0.1:1234", count=2, index=0).count
      2
    """

    coordinator: str = ""
    count: int = 0
    index: int = -1

    def __post_init__(self):
        check.count("count", self.count, least=0)
        check.count("index", self.index, least=-1)
        given = (bool(self.coordinator), self.count > 0, self.index >= 0)
        if any(given) and not all(given):
            raise ValueError(f"coordinator, count and index must be given together, or none of them; got {self}")
        if self.count and self.index >= self.count:
            raise ValueError(f"index must be below count, which is {self.count}; got {self.index}")

    def connect(self) -> None:
        """Joins the others; does nothing for a process alone. To be called before JAX is used."""
        known: dict[str, Any] = {}
        if self.coordinator:
            known = {"coordinator_address": self.coordinator, "num_processes": self.count, "process_id": self.index}
        try:
            jax.distributed.initialize(**known, shutdown_timeout_seconds=PATIENCE)
        except ValueError as error:
            if known or "coordinator_address" not in str(error):  # else there is no cluster that JAX knows of
                raise
