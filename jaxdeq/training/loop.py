"""A training run, from nothing or from where it was left."""

import operator
from typing import Any

import jax

from jaxdeq.training._checkpoint import read_state
from jaxdeq.training._config import Config
from jaxdeq.training._evaluate import evaluate
from jaxdeq.training._interrupts import Interrupts
from jaxdeq.training._log import Records, Watch
from jaxdeq.training._mesh import check_rows, put_rows
from jaxdeq.training._meter import Diverged, Meter
from jaxdeq.training._plan import plan
from jaxdeq.training._report import report
from jaxdeq.training._saves import Saves
from jaxdeq.training._start import start_from
from jaxdeq.training._state import State, create, model_of, seeded
from jaxdeq.training._step import Programs

__all__ = ["Diverged", "train"]

FITS = (("vocab", "vocab", operator.ge), ("classes", "classes", operator.ge), ("inputs", "channels", operator.eq))


def train(config: Config) -> dict[str, Any]:
    """Trains, saves, tries and reports. A run that was begun in `config.work` goes on.

    Resumed on the same kind and number of devices, a run ends with the same bits as one that was
    never stopped. SIGTERM, or the first Ctrl-C, ends it with a checkpoint after the current step.

    Returns:
      `step`, the last one; `finished`, whether that is the end; and then by checkpoint, `last` and,
      where that is another one, `best`, its scores on the test data.

    Raises:
      Diverged: the loss or a gradient became NaN or infinite. Nothing was saved since.
      CheckpointError: a checkpoint could not be written or read.
      ValueError: a batch that the mesh and `accumulate` do not divide, a model too small for the data.

    Example:
      >>> import tempfile
      >>> from pathlib import Path
      >>> import jax.numpy as jnp
      >>> from experiments.data import FashionMNIST
      >>> from jaxdeq import training
      >>> from jaxdeq.models import ResNetConfig
      >>> folder = tempfile.TemporaryDirectory()
      >>> config = training.Config(
      ...     ResNetConfig((1,), classes=10, width=8, inputs=1),
      ...     training.Classification(),
      ...     FashionMNIST(),
      ...     training.Adam(training.Cosine(1e-3)),
      ...     steps=2,
      ...     batch=40,
      ...     mesh=training.Mesh(data=1),
      ...     log=training.Log(bar=False),
      ...     work=Path(folder.name),
      ... )
      >>> results = training.train(config)
      see ...summary.md
      >>> results["step"], results["finished"], training.saved(config)
      (2, True, [2])
      >>> training.load(config)(jnp.zeros((5, 28, 28, 1))).logits.shape
      (5, 10)
      >>> folder.cleanup()
    """
    mesh = config.mesh.make()
    check_rows("batch", config.batch, config.accumulate, mesh)
    check_rows("evaluation.batch", config.evaluation.batch or config.batch, 1, mesh)
    _check_fit(config)
    with jax.set_mesh(mesh), Saves(config) as saves:
        return _Run(config, mesh, saves).go()


class _Run:
    def __init__(self, config, mesh, saves):
        self.config, self.mesh, self.saves = config, mesh, saves
        self.programs = Programs(config, mesh)
        self.seeded = seeded(self.programs.structure, config.seed, mesh)  # once: an evaluation compiles nothing anew
        self.data = iter(config.data.train(config.batch, config.seed))
        self.epoch = config.data.steps_per_epoch(config.batch)  # may read the data: not for each record
        restored = self.saves.restore(self.programs.state, self.data)
        state, started = (restored, "") if restored is not None else self._begin()
        self.state: State = state
        self.step = int(self.state.step)
        self.records = Records(config, self.step)
        if started:
            self.records.say(started)
        self.meter, self.watch = Meter(config.log.every, self.step), Watch()
        self.tracing = False

    def _begin(self):
        state, path = create(self.config, self.mesh), self.config.start
        return (state, "") if path is None else start_from(path, state, self.programs.structure, self.mesh)

    def go(self):
        config, records = self.config, self.records
        if self.step:
            records.say(f"going on from step {self.step}")
        try:
            with Interrupts() as interrupts:
                while self.step < config.steps and not interrupts.asked():
                    self._one_step()
            if finished := self.step >= config.steps:
                results = self._finish()
            else:
                self._pause(lambda: self.saves.save(self.state, self.data, self.step, None), last=True)
                records.say(f"stopped after step {self.step}; the same command goes on from there")
                results = {}
        except Diverged as error:
            self.saves.wait()
            raise Diverged(
                f"{error}; checkpoints of steps {list(self.saves.steps())} in {self.saves.folder} are from before "
                "and intact. What helps: a lower --optimizer.rate.peak, --optimizer.clip, a larger --penalty.weight"
            ) from None
        finally:
            if self.tracing:
                jax.profiler.stop_trace()
            records.close()
        return {"step": self.step, "finished": finished, **results}

    def _one_step(self):
        config = self.config
        self._profile()
        batch = put_rows(next(self.data), self.mesh)
        budget = getattr(config.model, "max_steps", 1)
        settings = plan(self.step, config.seed, config.pretrain, config.penalty, config.budget, budget)
        self.state, measures = self.programs.train(self.state, batch, settings)
        self.items = config.task.count(batch)
        self.step += 1
        self.records.advance()
        self._record(self.meter.add(measures))
        if self.step == config.steps:
            self._profile()  # has what was asked for: not the trial at the end too
        if self.step == config.steps or _due(self.step, config.evaluation.every):
            self._pause(self._try_and_save, last=self.step == config.steps)
        elif _due(self.step, config.checkpoints.every):
            self._pause(lambda: self.saves.save(self.state, self.data, self.step, None))

    def _pause(self, work, last=False):
        """Does something between steps, once all measures are seen to be finite."""
        self._record(self.meter.drain(early=last))
        work()
        self.meter.resume()

    def _try_and_save(self):
        scores = self._scores("valid", self.state, self.step)
        solved = self.step >= self.config.pretrain  # the best checkpoint is to be one of these
        self.saves.save(self.state, self.data, self.step, scores if solved else None)

    def _scores(self, split, state, step):
        """Tries a state, unrolled before the end of pre-training, and writes how well it does."""
        config: Any = self.config
        unroll = config.model.unroll if step < config.pretrain else 0
        scores = evaluate(config, model_of(self.seeded, state), split, unroll=unroll)
        self.records.write(split, step, scores)
        return scores

    def _record(self, interval):
        """Writes the means of an interval."""
        if interval is None:
            return
        step, record = interval
        config = self.config
        record["epoch"] = step / self.epoch
        record[f"{config.task.unit()}_per_second"] = self.items / record["seconds_per_step"]
        if "penalty" in record:
            record["penalty_weight"] = config.penalty.weight_at(step - 1, config.pretrain)
        self.records.write("train", step, record)
        self.watch.look(step, record)

    def _finish(self):
        """Tries the last weights and the best ones on the test data, and reports."""
        self.saves.wait()
        steps, best = {"last": self.step}, self.saves.best()
        if best not in (None, self.step):
            steps["best"] = best
        results = {}
        for name, step in steps.items():
            state = self.state if step == self.step else read_state(self.saves.folder, step, self.programs.state)
            results[name] = {"step": step, **self._scores("test", state, step)}
        if jax.process_index() == 0:
            report(self.config, self.records.records, results)
            self.records.say(f"see {self.config.work / 'summary.md'}")
        return results

    def _profile(self):
        """Begins a trace of the device before the first step that is to be in it, and ends it after the last."""
        wanted = self.step < self.config.steps and self.step in range(*self.config.log.profile or (0,))
        if wanted != self.tracing:
            jax.block_until_ready(self.state)
            if wanted:
                jax.profiler.start_trace(str(self.config.work / "profile"))
            else:
                jax.profiler.stop_trace()
            self.tracing = wanted


def _check_fit(config):
    """Refuses a model for fewer words or classes than the data have, or for other channels; JAX would not."""
    for ours, theirs, fits in FITS:
        if hasattr(config.model, ours) and hasattr(config.data, theirs):
            model, data = getattr(config.model, ours), getattr(config.data, theirs)
            if not fits(model, data):
                raise ValueError(f"model.{ours} must be that of the data, which have {data} {theirs}; got {model}")


def _due(step, every):
    return every > 0 and step % every == 0
