"""Attention over explicit lists of positions in double, which the library must agree with."""

import numpy as np


def attention(
    q,
    k,
    v,
    q_position,
    k_position,
    *,
    reach=None,
    chunk=None,
    keep_first=0,
    sees_later=(),
    types=None,
    scale=None,
    softcap=0.0,
    slopes=None,
    sinks=None,
    bias=None,
):
    """Attention of one sequence, and its log-sum-exp.

    q           [n_tokens, n_q_heads, head_dim_k] at q_position [n_tokens]
    k, v        [count, n_kv_heads, head_dim_k / head_dim_v] at k_position [count]
    sees_later  indexes of tokens that are not causal
    types       [n_tokens] of the tokens of the pass, which are the last of k_position
    bias        [n_q_heads, n_tokens, count], added to the scores; minus infinity hides

    Returns (out [n_tokens, n_q_heads, head_dim_v], lse [n_tokens, n_q_heads]).
    """
    q, k, v = (np.asarray(array, dtype=np.float64) for array in (q, k, v))
    n_tokens, n_heads, head_dim = q.shape
    group = n_heads // k.shape[1]
    scale = head_dim**-0.5 if scale is None else scale
    visible = mask(q_position, k_position, reach, chunk, keep_first, sees_later, types)
    out = np.zeros((n_tokens, n_heads, v.shape[2]))
    lse = np.full((n_tokens, n_heads), -np.inf)
    for token in range(n_tokens):
        seen = np.flatnonzero(visible[token])
        if not len(seen):
            continue
        for head in range(n_heads):
            logits = k[seen, head // group] @ q[token, head] * scale
            if softcap:
                logits = softcap * np.tanh(logits / softcap)
            if slopes is not None:
                distance = np.abs(q_position[token] - np.asarray(k_position)[seen])
                logits = logits - slopes[head] * distance
            if bias is not None:
                logits = logits + bias[head, token, seen]
                if np.isneginf(logits).all():
                    continue
            lse[token, head] = np.logaddexp.reduce(logits)
            total = lse[token, head]
            if sinks is not None:
                total = np.logaddexp(total, sinks[head])
            out[token, head] = np.exp(logits - total) @ v[seen, head // group]
    return out, lse


def mask(q_position, k_position, reach=None, chunk=None, keep_first=0, sees_later=(), types=None):
    """Which of k_position each of q_position sees: bool [n_tokens, count]."""
    p = np.asarray(q_position)[:, None]
    j = np.asarray(k_position)[None, :]
    causal = j <= p
    causal[list(sees_later)] = True
    visible = causal
    if reach:
        visible = visible & ((j >= p - reach) | (j < keep_first))
    if chunk:
        visible = visible & (j >= p - p % chunk)
    if types is not None:
        types = np.asarray(types)
        same = (types[:, None] == types[None, :]) & (types > 0)
        if chunk:
            same &= p // chunk == p[:, 0] // chunk
        visible[:, -len(types) :] |= same
    return visible


def rotated(x, positions, base=10000.0, first_dim=0, n_dims=None, pairs="neighbours"):
    """RoPE of [n_tokens, n_heads, head_dim] in double."""
    x = np.array(x, dtype=np.float64)
    n_dims = n_dims or x.shape[2] - first_dim
    end = first_dim + n_dims
    angle = np.asarray(positions)[:, None] * base ** (-np.arange(0, n_dims, 2) / n_dims)[None, :]
    cos, sin = np.cos(angle)[:, None, :], np.sin(angle)[:, None, :]
    if pairs == "neighbours":
        first, second = np.s_[..., first_dim:end:2], np.s_[..., first_dim + 1 : end : 2]
    else:
        middle = first_dim + n_dims // 2
        first, second = np.s_[..., first_dim:middle], np.s_[..., middle:end]
    a, b = x[first].copy(), x[second].copy()
    x[first], x[second] = a * cos - b * sin, a * sin + b * cos
    return x
