"""The compiled programs of a training step."""

from functools import cache, partial
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax import lax
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from jaxdeq import BackwardStats
from jaxdeq.training._config import Config
from jaxdeq.training._measures import Measures, summary
from jaxdeq.training._mesh import IN_USE, cut_rows, join_rows, place
from jaxdeq.training._plan import Plan
from jaxdeq.training._state import State, averaged, plan_state, reseed, split, structure
from jaxdeq.training._task import Batch


class Programs:
    """The training step of a config on a mesh; each program is compiled when it is first run.

    There are up to three: unrolled; solved; and, where the penalty does not branch inside
    the program (see `Penalty.in_program`), solved with the penalty. All take and return one state.
    """

    def __init__(self, config: Config, mesh: jax.sharding.Mesh):
        self.config = config
        self.mesh = mesh
        self.whole = NamedSharding(mesh, P())
        self.structure = structure(config)
        self.state = plan_state(config, mesh)  # shapes and shardings
        # XLA's CPU backend takes 13 times as long for gradients of convolutions inside a branch: there, two programs.
        inside = config.penalty.in_program
        self.branches = jax.default_backend() != "cpu" if inside is None else inside
        self._train_program = cache(self._compile_train)

    def train(self, state: State, batch: Batch, plan: Plan) -> tuple[State, Measures]:
        """One step. The state that goes in is used up."""
        branches = self.branches and self._may_penalise(plan.unrolled)
        program = self._train_program(plan.unrolled, None if branches else bool(plan.penalised))
        return program(state, batch, plan)

    def _may_penalise(self, unrolled):
        penalty = self.config.penalty
        weight = penalty.unrolled_weight if unrolled else penalty.weight or penalty.increment
        return bool(weight and penalty.frequency)

    def _compile_train(self, unrolled, penalised):
        shardings = jax.tree.map(lambda x: x.sharding, self.state)
        step = partial(self._step, unrolled=unrolled, penalised=penalised)
        return jax.jit(step, donate_argnums=0, out_shardings=(shardings, self.whole))

    def _step(self, state, batch, plan, *, unrolled, penalised):
        config, key = self.config, jax.random.fold_in(jax.random.key(plan.seed), state.step)
        params = lax.with_sharding_constraint(state.params, place(state.params, self.mesh, IN_USE))
        differentiate = lambda penalised: partial(self._differentiate, unrolled=unrolled, penalised=penalised)
        operands = (params, state.rest, batch, state.carry, key, plan.weight, plan.max_steps)
        if penalised is None:
            out = lax.cond(plan.penalised, differentiate(True), differentiate(False), *operands)
        else:
            out = differentiate(penalised)(*operands)
        grads, measures, rest, carry = out
        grads = lax.with_sharding_constraint(grads, place(grads, self.mesh))
        rate = config.optimizer.learning_rate(state.step, config.steps)
        measures |= {"gradient": optax.tree.norm(grads), "rate": rate}
        with jax.numpy_dtype_promotion("standard"):  # optax relies on it
            directions, moments = config.optimizer.directions().update(grads, state.moments, state.params)
        params = jax.tree.map(lambda p, d: p - (rate * d).astype(p.dtype), state.params, directions)
        ema = averaged(state.ema, (params, rest), state.step, config.ema) if config.ema else ()
        return State(state.step + 1, params, rest, moments, ema, carry), measures

    def _differentiate(self, params, rest, batch, carry, key, weight, max_steps, *, unrolled, penalised):
        """Gradients and measures, as means over the parts of a batch."""
        one = partial(self._one, params, weight, max_steps, unrolled, penalised)
        count = self.config.accumulate
        if count == 1:
            return one(rest, batch, carry, key)

        def body(so_far, part):
            total, rest = so_far
            grads, measures, rest, carry = one(rest, *part)
            return (jax.tree.map(jnp.add, total, (grads, measures)), rest), carry

        parts = (cut_rows((batch, carry), count, self.mesh), jax.random.split(key, count))
        parts = (*parts[0], parts[1])
        first = jax.tree.map(lambda x: x[0], parts)
        shapes = jax.eval_shape(one, rest, *first)[:2]
        zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
        (total, rest), carry = lax.scan(body, (zeros, rest), parts)
        return *jax.tree.map(lambda x: x / count, total), rest, join_rows(carry)

    def _one(self, params, weight, max_steps, unrolled, penalised, rest, batch, carry, key):
        """Gradients and measures of one part."""
        config: Any = self.config  # only implicit models have `unroll`
        mask_key, probe_key = jax.random.split(key)
        rows = len(jax.tree.leaves(batch)[0])
        solve: dict[str, Any] = {}
        if config.implicit:
            solve = {"unroll": config.model.unroll} if unrolled else {"max_steps": max_steps}
        if penalised:
            solve["key"] = probe_key
            if config.penalty.probes:
                solve["probes"] = config.penalty.probes

        def objective(params, tap):
            graphdef, random = self.structure
            model = nnx.merge(graphdef, params, reseed(random, mask_key), rest, copy=True)
            if config.implicit and not unrolled:
                solve["tap"] = tap
            out = config.task.apply(model, batch, carry, **solve)
            measures = {name: x / out.sums["weight"] for name, x in out.sums.items() if x.ndim == 0}
            measures["loss"] = out.loss
            if out.output.stats is not None:
                measures |= summary("forward", out.output.stats)
            total = out.loss
            if self._may_penalise(unrolled):
                measures["penalty"] = out.output.penalty if penalised else jnp.float32(jnp.nan)
            if penalised:
                total = total + weight * out.output.penalty
            del measures["weight"]
            return total, (measures, split(model).rest, out.carry)

        batched = getattr(config.model, "batched", False)
        tap = BackwardStats.empty(*([rows] if batched else []))
        differentiate = jax.grad(objective, argnums=(0, 1), has_aux=True)
        (grads, backward), (measures, rest, carry) = differentiate(params, tap)
        if "tap" in solve:
            measures |= summary("backward", backward)
        return grads, measures, rest, carry
