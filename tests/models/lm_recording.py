"""Checks a `DEQTransformerLM` against everything that was recorded of the PyTorch code."""

from functools import cached_property, partial
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from jaxdeq import solvers
from jaxdeq._regularizers import mean_square
from jaxdeq.models.checkpoint import load_torch_state_dict
from jaxdeq.models.transformer import DEQTransformerConfig, DEQTransformerLM, Memory
from jaxdeq.nn import WeightNorm
from tests.models.recording import Recording

LOOSE = 0.2  # nats, between losses after a tight solve and after the reference's own loose ones


class Precision(SimpleNamespace):
    """One of the two runs that were recorded, and how closely it has to be met."""

    def layer(self, got, want):
        # Pre-LN, the attention's output is not normalised: round-off grows with it, in both.
        size = max(1, np.abs(want).max() / 4) if self.dtype == "float32" else 1
        np.testing.assert_allclose(got, want, rtol=0, atol=self.layer_atol * size)

    def equilibrium(self, got, want):
        np.testing.assert_allclose(got, want, rtol=0, atol=self.equilibrium_atol)

    def gradient(self, got, want, name=""):
        scale = max(np.abs(want).max(initial=0), self.smallest)
        np.testing.assert_allclose(got, want, rtol=0, atol=self.gradient_rtol * scale, err_msg=name)


DOUBLE = Precision(
    name="f64", dtype="float64", solve=1e-13, layer_atol=1e-9, equilibrium_atol=1e-8, gradient_rtol=1e-7, smallest=1e-6
)
SINGLE = Precision(
    name="f32", dtype="float32", solve=1e-6, layer_atol=2e-5, equilibrium_atol=1e-4, gradient_rtol=1e-3, smallest=1e-3
)


def check(recording: Recording) -> None:
    """Both runs that were recorded, against ours in double precision."""
    with jax.enable_x64(True):
        ours = Ours(build(recording, DOUBLE))
        for run in (DOUBLE, SINGLE):
            case = Case(recording, ours, run)
            case.evaluation()
            case.training()
            if run is DOUBLE:
                case.penalty_gradient()
                case.dropout()


def check_single(recording: Recording) -> None:
    """The run that was recorded in single precision, against ours in single precision."""
    with jax.enable_x64(False):
        case = Case(recording, Ours(build(recording, SINGLE)), SINGLE)
        case.evaluation()
        case.training()


def build(recording: Recording, precision: Precision) -> DEQTransformerLM:
    """The recorded model, with tight solves."""
    c = recording.config
    config = DEQTransformerConfig(
        vocab=c["n_token"],
        width=c["d_model"],
        heads=c["n_head"],
        inner=c["d_inner"],
        embed=c["d_embed"],
        cutoffs=tuple(c["cutoffs"]),
        divisor=c["div_val"],
        tie_tables=c["tie_weights"],
        tie_projections=tuple(c["tie_projs"]) if c["div_val"] > 1 or c["d_embed"] != c["d_model"] else (),
        pre_norm=c["pre_lnorm"],
        weight_norm=c["wnorm"],
        window=c["local_size"] or 1000,
        memory=c["mem_len"],
        solver=solvers.Anderson(history=3),  # a short one compiles faster
        rtol=precision.solve,
        max_steps=300,
        dtype=precision.dtype,
        param_dtype=precision.dtype,
    )
    assert c["n_head"] * c["d_head"] == c["d_model"]
    model = DEQTransformerLM(config, rngs=nnx.Rngs(0))
    load_torch_state_dict(model, recording.under("sd/"))
    return model


class Ours:
    """Our model in one precision, and what it computes: one compilation each."""

    def __init__(self, model: DEQTransformerLM):
        self.model = model
        self.dtype = model.config.dtype

    def split(self, training):
        """The model's structure, parameters and the rest, in this mode."""
        (self.model.train if training else self.model.eval)()
        return nnx.split(self.model, nnx.Param, ...)

    @cached_property
    def evaluate(self):
        """All that is compared in evaluation mode and needs no solve."""
        graphdef, *state = self.split(training=False)

        def run(one, two, memory, ztest, zstar):
            model = nnx.merge(graphdef, *state)
            (u, _, first), context = model._inject(one["data"], None), model._inject(two["data"], memory)
            unrolled = lambda steps: model(one["data"], targets=one["target"], unroll=steps).losses
            f = model.bind(two["data"], memory=memory)
            return {
                "words": model.embedding(two["data"]),
                "us1": u,
                "us2": jnp.concatenate([memory.u, context[0]], axis=1),
                "positions1": first,
                "positions2": context[2],
                "attention": model.deq.cell.attention(ztest, *context),
                "out": f(ztest),
                "unrolled2": unrolled(2),
                "unrolled4": unrolled(4),
                "jacobian": blocks(f, zstar),
            }

        return jax.jit(run)

    @cached_property
    def solve(self):
        graphdef, *state = self.split(training=False)

        @jax.jit
        def run(segment, memory, z0):
            return nnx.merge(graphdef, *state)(segment["data"], targets=segment["target"], memory=memory, z0=z0)

        return run

    @cached_property
    def gradient(self):
        """Of the loss, by the parameters and by a shift of the layer; and the state and its penalty."""
        graphdef, params, rest = self.split(training=True)

        def loss(params, shift, segment, memory, z0, probe):
            model = nnx.merge(graphdef, params, rest, copy=True)
            f = model.bind(segment["data"], memory=memory)
            model.deq.cell = Shifted(model.deq.cell, shift)
            out = model(segment["data"], targets=segment["target"], memory=memory, z0=z0)
            return jnp.mean(out.losses), (out.z, mean_square(f, out.z, probe[None], "vjp"))

        return partial(jax.jit(jax.value_and_grad(loss, argnums=(0, 1), has_aux=True)), params)


class Case:
    """One run that was recorded, against ours; layouts here are `[batch, length, features]`."""

    def __init__(self, recording: Recording, ours: Ours, precision: Precision):
        self.recording, self.ours, self.model, self.precision = recording, ours, ours.model, precision
        self.config = recording.config
        self.segments = [{name: tokens(recording[f"in/seg{n}_{name}"]) for name in ("data", "target")} for n in (1, 2)]
        self.memory = Memory(self.read("mem/z", "mbd"), self.read("mem/u", "mbd"), jnp.int32(len(self["mem/z"])))
        self.ztest = jnp.asarray(recording["in/ztest"], ours.dtype).transpose(0, 2, 1)
        self.probe = jnp.asarray(recording["in/jac_probe"], ours.dtype).transpose(0, 2, 1)

    def __getitem__(self, name):
        return self.recording[f"{self.precision.name}/{name}"]

    def read(self, name, layout="bdl"):
        """A recorded array as `[batch, length, features]`."""
        return jnp.asarray(self[name].transpose([layout.index("b"), *turn(layout)]), self.ours.dtype)

    def near(self, name):
        """Where to start: the layer may have several equilibria, and from zeros any solver finds its own."""
        return jnp.round(self.read(name), 2)

    def evaluation(self):
        for name, layer in self.normalised():
            self.precision.layer(layer.kernel().T, self.recording[f"eff/{name}.weight"].reshape(layer.kernel().T.shape))
        found = self.ours.evaluate(*self.segments, self.memory, self.ztest, self.read("eval/seg2_zstar"))
        same, close = self.precision.layer, self.precision.equilibrium
        same(found["words"], self["emb/seg2_word_emb"])
        same(found["attention"], self.read("f/attn_out"))
        same(found["out"], self.read("f/out"))
        for n in (1, 2):
            close(found[f"us{n}"], self.read(f"eval/seg{n}_us"))  # its left part is memory
            same(found[f"positions{n}"], self[f"eval/seg{n}_pos_emb"][0].T)
        for steps, name in ((2, "train_step_gt0_n2"), (4, "train_step_eq0_n4")):
            close(self.by_cluster(found[f"unrolled{steps}"], 1), self[f"eval/unrolled_loss_seg1_{name}"])
        self.solves()
        self.spectrum(found["jacobian"])

    def solves(self):
        """Both segments, the second with the memory that the first one leaves."""
        close = self.precision.equilibrium
        memory = self.model.empty_memory(len(self.ztest))
        for n, after in ((1, ""), (2, "_after_seg2")):
            out = self.ours.solve(self.segments[n - 1], memory, self.near(f"eval/seg{n}_zstar"))
            assert self[f"eval/seg{n}_rel_residual"] <= 2e-6
            assert out.stats.converged.all()
            close(out.z, self.read(f"eval/seg{n}_zstar"))
            close(out.losses.T, self[f"eval/seg{n}_nll_tokenorder"])
            close(self.by_cluster(out.losses, n), self[f"eval/seg{n}_loss_reforder"])
            if n == 1:
                for name in ("broyden30", "anderson30"):  # the reference's own loose solves
                    recorded = self[f"eval/default_{name}_loss_seg1"]
                    np.testing.assert_allclose(self.by_cluster(out.losses, 1), recorded, atol=LOOSE)
            memory = out.memory
            assert memory.length == len(self[f"mem/z{after}"])
            close(memory.z[:, -memory.length :], self.read(f"mem/z{after}", "mbd"))
            close(memory.u[:, -memory.length :], self.read(f"mem/u{after}", "mbd"))

    def normalised(self):
        """The weight-normalised layers under their recorded names."""
        cell = self.model.deq.cell
        attention = {"qkv_net": "inputs", "r_net": "distances", "o_net": "output"}
        layers = {f"func.dec_attn.{name}": getattr(cell.attention, mine) for name, mine in attention.items()}
        layers |= {"func.pos_ff.ff1_net": cell.feed_forward.widen, "func.pos_ff.ff2_net": cell.feed_forward.narrow}
        return [(name, layer) for name, layer in layers.items() if isinstance(layer, WeightNorm)]

    def by_cluster(self, losses, n):
        """Losses in the reference's order: by cluster, in each by position, then by sequence."""
        target = self.recording[f"in/seg{n}_target"].ravel()
        cluster = np.searchsorted(self.config["cutoffs"], target, side="right")
        return np.asarray(losses.T).ravel()[np.argsort(cluster, kind="stable")].reshape(losses.T.shape)

    def spectrum(self, jacobian):
        """The reference's power method, and in double precision the true eigenvalues."""
        jacobian, single = np.asarray(jacobian, np.float64), self.precision.name == "f32"
        eigenvalues = np.linalg.eigvals(jacobian)
        top = np.take_along_axis(eigenvalues, np.abs(eigenvalues).argmax(-1)[:, None], -1)[:, 0]
        complex_top = np.abs(top.imag) > 1e-9
        v = self.recording["in/power_v0"].transpose(0, 2, 1).reshape(len(jacobian), -1).astype(np.float64)
        for n in (5, 150):
            got, want = power_method(jacobian, v, n), self[f"eval/power_sradius_{n}"][:, 0]
            # In a plane that rotates, round-off turns the vector further with each step.
            lasting = ~complex_top if single and n > 5 else np.ones_like(complex_top)
            np.testing.assert_allclose(got[lasting], want[lasting], rtol=1e-3 if single else 1e-6, atol=1e-7)
        if not single:
            np.testing.assert_allclose(np.abs(top), self["eval/eig_sradius"], rtol=1e-7)
            np.testing.assert_array_equal(complex_top, self["eval/eig_top_is_complex"])
            np.testing.assert_allclose(np.square(jacobian).sum((1, 2)), self["eval/jac_fro2"], rtol=1e-7)

    def training(self):
        z0 = self.near("train/zstar")
        given = (self.segments[1], self.memory, z0, self.probe)
        (value, (z, penalty)), (grads, backward) = self.ours.gradient(jnp.zeros_like(z0), *given)
        close, name = self.precision.equilibrium, self.precision.name
        close(value, self["train/loss"])
        close(z, self.read("train/zstar"))
        np.testing.assert_allclose(penalty, self["train/jac_loss"], rtol=1e-4 if name == "f32" else 1e-9)
        assert self["train/jac_vecs"] == 1
        self.precision.gradient(backward, self.read("train/u"), "u")
        self.compare_gradients(grads, "train/grad")

    def penalty_gradient(self):
        graphdef, params, rest = self.ours.split(training=True)
        z = self.read("train/zstar")

        def penalty(params):
            model = nnx.merge(graphdef, params, rest, copy=True)
            f = model.bind(self.segments[1]["data"], memory=self.memory)
            return mean_square(f, z, self.probe[None], "vjp")

        self.compare_gradients(jax.jit(jax.grad(penalty))(params), "train/jac_grad")

    def compare_gradients(self, gradients, prefix):
        """What the model shares was recorded apart for each use, or only once."""
        graphdef, _, rest = self.ours.split(training=True)
        wanted = {}
        for entry in nnx.merge(graphdef, gradients, rest, copy=True).torch_entries():
            name = f"{self.precision.name}/{prefix}/{entry.name}"
            if isinstance(entry.variable, nnx.Param):
                entries, total = wanted.get(id(entry.variable), ([], np.zeros(entry.variable.shape)))
                if name in self.recording:
                    total = total + entry.to_jax(self.recording[name])
                wanted[id(entry.variable)] = ([*entries, entry], total)
        for entries, want in wanted.values():
            names = ", ".join(entry.name for entry in entries)
            self.precision.gradient(np.asarray(entries[0].variable.get_value()), want, names)

    def dropout(self):
        """The layer with the recorded masks."""
        masks = self.recording.under("dropout/mask_")
        if not masks:
            return
        self.model.train()
        cell = self.model.deq.cell
        cell.attention.drop_weights = lambda x: x * masks["attn_prob"]
        cell.attention.drop_output = lambda x: x * masks["attn_out"].transpose(0, 2, 1)
        cell.feed_forward.drop_inner = lambda x: x * masks["ff_hidden"]
        cell.feed_forward.drop_output = lambda x: x * masks["ff_out"]
        self.model.drop_positions = lambda x: x * masks["pos"][0].T
        out = cell(self.ztest, *self.model._inject(self.segments[1]["data"], self.memory))
        want = self.recording["dropout/out"].transpose(0, 2, 1)
        self.precision.layer(out, want)


class Shifted(nnx.Module):
    """A cell plus a shift: the gradient for that is the solution of the backward equation."""

    def __init__(self, cell, shift):
        self.cell, self.shift = cell, nnx.Variable(shift)

    def __call__(self, z, *context):
        return self.cell(z, *context) + self.shift[...]


def tokens(array):
    """`[length, batch]` to `[batch, length]`."""
    return jnp.asarray(array.T, jnp.int32)


def turn(layout):
    """Where length and features are in `bdl` or, of memories, `mbd`."""
    return [layout.index("l"), layout.index("d")] if "l" in layout else [layout.index("m"), layout.index("d")]


def blocks(f, z):
    """The Jacobian of each sequence, `[batch, D, D]`."""
    batch = len(z)
    jacobian = jax.jacfwd(f)(z).reshape(batch, z[0].size, batch, z[0].size)
    return jacobian[jnp.arange(batch), :, jnp.arange(batch)]


def power_method(jacobian, v, steps):
    """The absolute Rayleigh quotient after so many products from the left."""
    for _ in range(steps):
        product = np.einsum("bi,bij->bj", v, jacobian)
        value = np.sum(product * v, -1) / np.sum(v * v, -1)
        v = product / np.linalg.norm(product, axis=-1, keepdims=True)
    return np.abs(value)
