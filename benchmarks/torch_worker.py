"""torchdeq on one problem, in a process and an environment of its own: python torch_worker.py FOLDER.

FOLDER holds `problem.npz`: `kind`, `z0`, `g` and the parameters `p0`, `p1`, ... On standard input, one request a
line, answered by a line: `prepare SOLVER TOLERANCE` solves once and writes `answer.npz` (`z`, `steps` and the
gradients of the parameters), `gradient SOLVER TOLERANCE` and `forward SOLVER TOLERANCE` only compute.
"""

import functools
import sys
from pathlib import Path

import numpy as np
import torch
import torchdeq
from torch.nn import functional

STEPS = 1000


def tanh(z, w, x):
    return torch.tanh(z @ w + x)


def attention(z, down, out, qkv, up, x, heads=4):
    batch, length, width = z.shape
    normalise = lambda a: functional.layer_norm(a, (width,))
    split = lambda a: a.reshape(batch, length, heads, -1).transpose(1, 2)
    q, k, v = (split(a) for a in (normalise(z) @ qkv).chunk(3, -1))
    mixed = functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(z.shape) @ out
    middle = normalise(x + mixed)
    return normalise(x + middle + functional.gelu(middle @ up, approximate="tanh") @ down)


MAPS = {"tanh": tanh, "attention": attention}


def main(folder: Path) -> None:
    with np.load(folder / "problem.npz") as file:
        f = MAPS[str(file["kind"])]
        z0, g = (torch.from_numpy(file[name]) for name in ("z0", "g"))
        count = sum(name[0] == "p" for name in file.files)
        params = [torch.from_numpy(file[f"p{i}"]).requires_grad_() for i in range(count)]
    apply = lambda z: f(z, *params)

    @functools.cache
    def layer(solver, tolerance):
        each = {"max_iter": STEPS, "tol": float(tolerance)}
        return torchdeq.get_deq(
            ift=True, f_solver=solver, b_solver=solver, f_stop_mode="rel", b_stop_mode="rel",
            **{f"{side}_{name}": value for side in "fb" for name, value in each.items()},
        )  # fmt: skip

    def forward(deq):
        with torch.no_grad():
            return deq(apply, z0)

    def gradient(deq):
        for p in params:
            p.grad = None
        states, info = deq(apply, z0)
        (states[-1] * g).sum().backward()
        return states[-1], info

    for line in sys.stdin:
        request, *words = line.split()
        if request == "prepare":
            z, info = gradient(layer(*words))
            grads = {f"p{i}": p.grad.numpy() for i, p in enumerate(params)}
            steps = info["nstep"].max().item()
            np.savez(folder / "answer.npz", z=z.detach().numpy(), steps=steps, **grads)
        else:
            {"gradient": gradient, "forward": forward}[request](layer(*words))
        print("done", flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
