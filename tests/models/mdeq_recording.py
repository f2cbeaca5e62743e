"""A recorded multiscale DEQ, against ours with the same weights."""

from dataclasses import dataclass
from functools import cached_property

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from jaxdeq import solvers, spectral_radius
from jaxdeq._regularizers import mean_square
from jaxdeq.models import (
    Branch,
    MDEQClassifier,
    MDEQConfig,
    MDEQSegmenter,
    load_torch_state_dict,
    resize_bilinear,
    to_torch_state_dict,
)
from tests.models.recording import Recording

KERNELS = {0: (3, 3), 1: (5, 3), 2: (5, 5)}
LOOSE = {"rtol": 1e-3, "max_steps": 31}  # what the reference's own solves ask for
IGNORED = 255
KEY = jax.random.key(0)


@dataclass(frozen=True)
class Precision:
    """How closely one of the two runs is to be met: absolute for layers and equilibria, relative for gradients."""

    dtype: str
    layer: float
    equilibrium: float
    gradient: float
    noise: float  # gradients that vanish exactly (biases before BatchNorm: sums over all pixels) against the others
    rtol: float  # of the solves


PRECISIONS = {
    "f64": Precision("float64", layer=1e-9, equilibrium=1e-8, gradient=1e-7, noise=1e-5, rtol=1e-14),
    "f32": Precision("float32", layer=2e-5, equilibrium=1e-4, gradient=1e-3, noise=1e-2, rtol=1e-6),
}


def check(recording: Recording) -> None:
    """Both runs that were recorded, against ours in double precision."""
    with jax.enable_x64(True):
        ours = Ours(recording, PRECISIONS["f64"])
        checks = [Check(recording, run, ours) for run in PRECISIONS]
        for each in checks:
            each.everything()
        checks[0].spectrum(ours.jacobians)
        for each in checks:
            each.power_method(ours.jacobians)


def check_single(recording: Recording) -> None:
    """The run that was recorded in single precision, against ours in single precision."""
    with jax.enable_x64(False):
        Check(recording, "f32", Ours(recording, PRECISIONS["f32"])).everything()


class FixedDropout(nnx.Module):
    """Multiplies by a recorded mask."""

    def __init__(self, mask):
        self.mask = nnx.Variable(mask)

    def __call__(self, x):
        return x * self.mask[...]


class Ours:
    """What our model computes in one precision: one compilation each."""

    def __init__(self, recording: Recording, precision: Precision):
        self.recording, self.precision = recording, precision
        self.dtype = jnp.dtype(precision.dtype)
        settings = recording.config
        last = recording.get("sd/last_layer.3.weight")  # of a segmenter
        build = MDEQClassifier if last is None else MDEQSegmenter
        kernel = 1 if last is None else last.shape[-1]
        # Abstract until loaded: drawing weights first would take longer than all checks.
        self.model = nnx.eval_shape(lambda: build(config(settings, kernel, precision), rngs=nnx.Rngs(0)))
        load_torch_state_dict(self.model, recording.under("sd/"))
        self.graphdef, self.params, self.rest = nnx.split(self.model, nnx.Param, ...)
        self.x = nhwc(self.input("x"))

    def build(self, params, training):
        """A copy of the model, to be used inside a trace."""
        model = nnx.merge(self.graphdef, params, self.rest, copy=True)
        (model.train if training else model.eval)()
        return model

    def cell(self, params, training):
        """The layer as a function of its state alone."""
        model = self.build(params, training)
        x = model.stem(self.x)
        return lambda z: model.deq.cell(z, x)

    @cached_property
    def evaluated(self):
        return self.evaluate(rtol=self.precision.rtol, max_steps=300)

    def evaluate(self, rtol, max_steps):
        return self._evaluate(self.params, jnp.float32(rtol), jnp.int32(max_steps))

    @cached_property
    def _evaluate(self):
        z = self.z_test
        masks = {k: nhwc(self.recording[k]) for k in self.recording if k.startswith("dropout/mask_")}

        def run(params, rtol, max_steps):
            model = self.build(params, training=False)
            cell, x = model.deq.cell, model.stem(self.x)
            blocks = cell.transform(z, x)
            fused = cell.fuse(blocks)
            found = {
                "inj0": x,
                "block": blocks,
                "fused": fused,
                "out": cell.finish(fused),
                "head": model.head(z),
                "unrolled": model(self.x, unroll=model.config.unroll).logits,
                "solve": model(self.x, rtol=rtol, max_steps=max_steps),
            }
            if masks and self.dtype == jnp.float64:
                for i, branch in enumerate(cell.branches):
                    for j, block in enumerate(branch):
                        block.dropout = FixedDropout(masks[f"dropout/mask_branch{i}_block{j}"])
                found["masked"] = cell(z, x)
            return found

        return jax.jit(run)

    @cached_property
    def trained(self):
        labels = jnp.asarray(self.recording["in/y"], jnp.int32)  # NumPy's int64 means something else to jax in each run

        def run(params):
            model = self.build(params, training=True)
            out = model(self.x, rtol=self.precision.rtol, max_steps=300)
            return cross_entropy(out.logits, labels), (out, nnx.state(model, nnx.BatchStat))

        return jax.jit(jax.value_and_grad(run, has_aux=True))(self.params)

    @cached_property
    def regularise(self):
        """The penalty for given probes, its gradients, and how far `u` is from solving its equation."""
        labels = jnp.asarray(self.recording["in/y"], jnp.int32)  # NumPy's int64 means something else to jax in each run

        def run(params, z, noise, u):
            def penalty(params):
                return mean_square(self.cell(params, training=True), z, noise, "vjp")

            def loss(z):
                return cross_entropy(self.build(params, training=True).head(z), labels)

            _, pullback = jax.vjp(self.cell(params, training=True), z)
            error = jax.tree.map(lambda u, ju, g: u - ju - g, u, pullback(u)[0], jax.grad(loss)(z))
            return *jax.value_and_grad(penalty)(params), error

        return jax.jit(run)

    @cached_property
    def jacobians(self):
        """One matrix an image, at the recorded equilibrium; rows are outputs, of all branches."""
        z_star = tuple(nhwc(self.recording[f"f64/eval/zstar_{i}"]) for i in range(len(self.z_test)))

        def run(params, z):
            _, pullback = jax.vjp(self.cell(params, training=False), z)
            size = sum(a[0].size for a in z)
            row = lambda v: self.join_state(pullback(self.split_state(jnp.tile(v, (len(self.x), 1))))[0])
            return jnp.swapaxes(jax.lax.map(row, jnp.eye(size, dtype=self.dtype), batch_size=64), 0, 1)

        # Runs longer than it compiles, unlike other programs (see conftest.py): 3 s in place of 25.
        compiled = jax.jit(run, compiler_options={"xla_backend_optimization_level": 1})
        return np.asarray(compiled(self.params, z_star))

    # Names and layouts.

    def input(self, name):
        return jnp.asarray(self.recording[f"in/{name}"], self.dtype)

    @property
    def z_test(self):
        return tuple(nhwc(self.input(f"ztest_{i}")) for i in range(len(self.model.config.branches)))

    def split_state(self, flat):
        """From the reference's one vector an image, `[B, D]` or `[B, D, 1]`."""
        shapes = [a.shape[1:] for a in map(nchw, self.z_test)]
        ends = np.cumsum([int(np.prod(shape)) for shape in shapes])[:-1]
        parts = jnp.split(flat.reshape(len(flat), -1), ends, axis=1)
        return tuple(nhwc(p.reshape(-1, *shape)) for p, shape in zip(parts, shapes, strict=True))

    def join_state(self, z):
        return jnp.concatenate([nchw(a).reshape(len(a), -1) for a in z], axis=1)

    def named(self, state):
        """A part of the model's state under the reference's names, the rest as loaded."""
        model = nnx.merge(self.graphdef, self.params, self.rest, copy=True)
        nnx.update(model, state)  # nothing, for an empty one
        return to_torch_state_dict(model)


class Check:
    """One run that was recorded, against ours."""

    def __init__(self, recording: Recording, run: str, ours: Ours):
        self.recording, self.run, self.ours = recording, run, ours
        self.precision = PRECISIONS[run]

    def everything(self):
        self.weights()
        self.layer()
        self.evaluation()
        self.training()
        if self.run == "f64":
            self.dropout()

    def weights(self):
        saved = to_torch_state_dict(self.ours.model)
        recorded = self.recording.under("sd/")
        assert saved.keys() == recorded.keys()
        for name, array in recorded.items():
            np.testing.assert_array_equal(saved[name], array, err_msg=name)
        for name, array in self.recording.under("eff/").items():
            kernel = np.transpose(layer_at(self.ours.model.deq.cell, name).kernel(), (3, 2, 0, 1))
            np.testing.assert_allclose(kernel, array, rtol=0, atol=self.precision.layer, err_msg=name)

    def layer(self):
        found = self.ours.evaluated
        tolerance = self.precision.layer
        self.near("eval/inj0", found["inj0"], tolerance)
        for i in range(len(self.ours.model.config.branches)):
            for part in ("block", "fused", "out"):
                self.near(f"f/{part}_{i}", found[part][i], tolerance)
        self.near("head/logits_at_ztest", found["head"], tolerance)
        self.near("eval/unrolled_logits", found["unrolled"], tolerance)

    def evaluation(self):
        out = self.ours.evaluated["solve"]
        for i, z in enumerate(out.z):
            self.near(f"eval/zstar_{i}", z, self.precision.equilibrium)
        self.near("eval/logits", out.logits, self.precision.equilibrium)
        # The reference's best residual on its own scale, for the whole batch; ours is one an image.
        assert self.recorded("eval/rel_residual") < 10 * self.precision.rtol
        assert np.all(np.asarray(out.stats.residual) < 10 * self.precision.rtol)
        # Both stop at 1e-3, not at the same iterate.
        loose = self.ours.evaluate(**LOOSE)["solve"]
        self.near("eval/default_logits", loose.logits, 0.1)
        tight = np.asarray(out.logits)
        assert np.max(np.abs(loose.logits - tight)) < 0.1

    def training(self):
        (loss, (out, batch_stats)), gradients = self.ours.trained
        self.near("train/loss", loss, self.precision.equilibrium)
        self.near("train/logits", out.logits, self.precision.equilibrium)
        for i, z in enumerate(out.z):
            self.near(f"train/zstar_{i}", z, self.precision.equilibrium)
        self.running_statistics(batch_stats)
        self.near_gradients("train/grad/", gradients, everywhere=True)

        probes = self.ours.input("jac_probes")
        noise = stack([self.ours.split_state(v) for v in probes])
        u = self.ours.split_state(self.recorded("train/u").astype(self.ours.dtype))
        penalty, penalty_gradients, error = self.ours.regularise(self.ours.params, out.z, noise, u)
        self.near("train/jac_loss", penalty, self.precision.equilibrium)  # at the equilibrium found
        size = max(float(jnp.max(jnp.abs(a))) for a in u)
        assert max(float(jnp.max(jnp.abs(a))) for a in error) < self.precision.gradient * size, "train/u"
        if self.run == "f64":
            self.near_gradients("train/jac_grad/", penalty_gradients, everywhere=False)

    def running_statistics(self, batch_stats):
        """After the update; or, where the recorder read all of them before it, what was loaded.

        The rule itself is tested against its formula in test_mdeq.py.
        """
        after, before = self.ours.named(batch_stats), self.recording.under("sd/")
        recorded = {name: self.recorded(f"train/bn_after/{name}") for name in self.names("train/bn_after/")}
        if all(np.array_equal(array, before[name]) for name, array in recorded.items()):
            after = self.ours.named({})
        for name, array in recorded.items():
            np.testing.assert_allclose(after[name], array, rtol=0, atol=self.precision.layer, err_msg=name)

    def dropout(self):
        for i, z in enumerate(self.ours.evaluated.get("masked", ())):
            np.testing.assert_allclose(nchw(z), self.recording[f"dropout/out_{i}"], rtol=0, atol=self.precision.layer)

    def spectrum(self, matrix):
        values = np.linalg.eigvals(matrix)
        top = np.take_along_axis(values, np.argmax(np.abs(values), axis=1)[:, None], axis=1)[:, 0]
        radius = self.recorded("eval/eig_sradius")
        np.testing.assert_allclose(np.abs(top), radius, rtol=1e-7)
        np.testing.assert_array_equal(np.abs(top.imag) > 1e-9, self.recorded("eval/eig_top_is_complex"))
        np.testing.assert_allclose(np.sum(matrix**2, axis=(1, 2)), self.recorded("eval/jac_fro2"), rtol=1e-7)
        start = jnp.zeros(matrix.shape[:2])
        found = spectral_radius(lambda z: jnp.einsum("bij,bj->bi", matrix, z), start, KEY, iters=300, batched=True)
        np.testing.assert_allclose(found, radius, rtol=1e-4)

    def power_method(self, matrix):
        """The reference's, with products `v^T J`."""
        v = self.recording["in/power_v0"][..., 0].astype(np.float64)
        for step in range(150):
            product = np.einsum("bi,bij->bj", v, matrix)
            value = np.abs(np.sum(product * v, axis=1, keepdims=True) / np.sum(v * v, axis=1, keepdims=True))
            v = product / np.linalg.norm(product, axis=1, keepdims=True)
            if step + 1 in (5, 150):
                recorded = self.recorded(f"eval/power_sradius_{step + 1}")
                # In a plane that rotates the value passes through zero.
                np.testing.assert_allclose(value, recorded, rtol=self.precision.gradient, atol=self.precision.gradient)

    def recorded(self, name):
        return self.recording[f"{self.run}/{name}"]

    def names(self, prefix):
        full = f"{self.run}/{prefix}"
        return [key.removeprefix(full) for key in self.recording if key.startswith(full)]

    def near(self, name, found, tolerance):
        found = nchw(found) if np.ndim(found) == 4 else found
        np.testing.assert_allclose(found, self.recorded(name), rtol=0, atol=tolerance, err_msg=f"{self.run}/{name}")

    def near_gradients(self, prefix, gradients, everywhere):
        """Each relative to its largest entry; what is not recorded is zero."""
        found = self.ours.named(gradients)
        recorded = {name: self.recorded(prefix + name) for name in self.names(prefix)}
        names = [entry.name for entry in self.ours.model.torch_entries() if isinstance(entry.variable, nnx.Param)]
        assert set(recorded) <= set(names)
        if everywhere:
            assert set(recorded) == set(names)
        largest = max(np.max(np.abs(a)) for a in recorded.values())
        for name in names:
            want = recorded.get(name, np.zeros_like(found[name]))
            scale = max(np.max(np.abs(want)), self.precision.noise * largest)
            error = np.max(np.abs(found[name] - want))
            assert error <= self.precision.gradient * scale, (self.run, prefix + name, error, scale)


def config(settings: dict, final_kernel: int, precision: Precision) -> MDEQConfig:
    heads = [*(settings.get("head") or ()), *[1] * settings["nb"]][: settings["nb"]]  # a segmenter has none
    branches = zip(settings["ch"], heads, settings["blocks"], settings["big"], strict=True)
    return MDEQConfig(
        branches=tuple(Branch(c, head, blocks, KERNELS[big]) for c, head, blocks, big in branches),
        classes=settings["classes"],
        downsample=settings["ds"],
        groups=settings["groups"],
        expansion=settings["exp"],
        block_affine=settings["block_aff"],
        fuse_affine=settings["fuse_aff"],
        post_affine=settings["post_aff"],
        weight_norm=settings["wnorm"],
        final_channels=settings.get("final") or 1,
        final_kernel=final_kernel,
        unroll=settings["num_layers"],
        solver=solvers.Anderson(),
        rtol=precision.rtol,
        max_steps=300,
        dtype=precision.dtype,
        param_dtype=precision.dtype,
    )


def cross_entropy(logits, labels):
    """The mean over images, or over those pixels that are not to be ignored."""
    if labels.ndim == 3:
        logits = resize_bilinear(logits, labels.shape[1:])
    counted = labels != IGNORED
    log_p = jax.nn.log_softmax(logits)
    picked = jnp.take_along_axis(log_p, jnp.where(counted, labels, 0)[..., None], axis=-1)[..., 0]
    return -jnp.sum(jnp.where(counted, picked, 0)) / jnp.sum(counted, dtype=logits.dtype)


def layer_at(cell, name):
    """The layer of the reference's name `fullstage.branches.I.blocks.J.convK.weight` or `...post_fuse_layers.I...`."""
    parts = name.split(".")
    if parts[1] == "branches":
        return getattr(cell.branches[int(parts[2])][int(parts[4])], parts[5])
    assert parts[1] == "post_fuse_layers"
    return cell.finals[int(parts[2])].conv


def stack(trees):
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *trees)


def nhwc(x):
    return x.transpose(0, 2, 3, 1)


def nchw(x):
    return x.transpose(0, 3, 1, 2)
