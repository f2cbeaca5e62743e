"""A DEQ-Transformer's layer and its word probabilities in numpy, one position at a time, from PyTorch's names."""

import numpy as np


def weight(sd, name):
    """`[out, in]`, normalised if it was given by lengths and directions."""
    if f"{name}.weight" in sd:
        return sd[f"{name}.weight"].reshape(len(sd[f"{name}.weight"]), -1)
    v = sd[f"{name}.weight_v"].reshape(len(sd[f"{name}.weight_v"]), -1)
    return v * sd[f"{name}.weight_g"].reshape(-1, 1) / np.linalg.norm(v, axis=1, keepdims=True)


def norm(x):
    return (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-5)


def layer(sd, config, z, us, past):
    """One application for one sequence: `z [L, d]`, injections `us [M + L, 3 d]`, memory `past [M, d]`."""
    d, heads = config.width, config.heads
    before = norm if config.pre_norm else lambda x: x
    after = (lambda x: x) if config.pre_norm else norm
    qkv = before(np.concatenate([past, z])) @ weight(sd, "func.dec_attn.qkv_net").T + us
    q, k, v = (x.reshape(-1, heads, d // heads) for x in np.split(qkv, 3, axis=1))
    frequencies = 10000.0 ** (-np.arange(0, d, 2) / d)
    out = np.zeros((len(z), heads, d // heads))
    for i in range(len(z)):
        here = len(past) + i
        keys = [j for j in range(here + 1) if here - j < config.window]
        for h in range(heads):
            scores = []
            for j in keys:
                angles = (here - j) * frequencies
                r = weight(sd, "func.dec_attn.r_net") @ np.concatenate([np.sin(angles), np.cos(angles)])
                r = r.reshape(heads, -1)[h]
                content = (q[here, h] + sd["func.dec_attn.r_w_bias"][h]) @ k[j, h]
                scores.append((content + (q[here, h] + sd["func.dec_attn.r_r_bias"][h]) @ r) / (d // heads) ** 0.5)
            p = np.exp(scores - np.max(scores))
            out[i, h] = (p / p.sum()) @ v[keys, h]
    y = out.reshape(len(z), d) @ weight(sd, "func.dec_attn.o_net").T + sd["func.dec_attn.o_net.bias"]
    h = before(after(z + y))
    inner = np.maximum(h @ weight(sd, "func.pos_ff.ff1_net").T + sd["func.pos_ff.ff1_net.bias"], 0)
    return after(h + inner @ weight(sd, "func.pos_ff.ff2_net").T + sd["func.pos_ff.ff2_net.bias"])


def embed(sd, config, word):
    """One word's vector."""
    cluster = np.searchsorted(config.cutoffs, word, side="right")
    table = 0 if config.divisor == 1 else cluster
    row = sd[f"word_emb.emb_layers.{table}.weight"][word if config.divisor == 1 else word - config.bounds[cluster]]
    if config.projected:
        row = sd[f"word_emb.emb_projs.{table}.weight"] @ row
    return row * config.width**0.5


def log_probability(sd, config, h, word):
    """Of one word after one position."""
    log_softmax = lambda x: x - x.max() - np.log(np.exp(x - x.max()).sum())

    def logits(i):
        low, high = config.bounds[i : i + 2]
        table, rows = (0, slice(low, high)) if config.divisor == 1 else (i, slice(None))
        hidden = h @ sd[f"crit.out_projs.{i}.weight"] if config.projected else h
        x = sd[f"crit.out_layers.{table}.weight"][rows] @ hidden + sd[f"crit.out_layers.{table}.bias"][rows]
        if i == 0 and config.cutoffs:
            x = np.concatenate([x, sd["crit.cluster_weight"] @ hidden + sd["crit.cluster_bias"]])
        return log_softmax(x)

    cluster = np.searchsorted(config.cutoffs, word, side="right")
    if cluster == 0:
        return logits(0)[word]
    return logits(0)[-cluster] + logits(cluster)[word - config.bounds[cluster]]
