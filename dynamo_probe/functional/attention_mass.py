"""Attention mass on chosen pairs of a query and a key, without the pattern of all pairs.

The weight of a pair is `exp(scale q.k + bias - logsumexp)`, with the log-sum-exp over all keys of
that query. Where the kernel gives it, a pair costs one product of two vectors; elsewhere it is
computed from the products of a few queries at a time.
"""

from __future__ import annotations

import torch
from torch import Tensor

from dynamo_probe.anatomy.attention import FORBIDDEN, AttentionCall

CHUNK = 2**21
"""The most numbers that an intermediate result holds: 8 MiB of float32."""
TOLERANCE = 5e-7
"""How far a weight from the kernel's log-sum-exp may be off before it is computed anew."""


def pair_mass(call: AttentionCall, sequence: int, queries: Tensor, keys: Tensor) -> Tensor:
    """Return the attention weights of pairs of positions in one sequence.

    Args:
        call: with `leading` (batch, heads).
        sequence: which of the batch.
        queries: positions that attend, ascending, `[pairs]`.
        keys: positions that they attend to, `[pairs]`.

    Returns:
        `[pairs, heads]`, float32 or float64. Where the mask lets nothing through, 0; where the
        model has become NaN, NaN.
    """
    if call.pattern is not None:
        weights = call.pattern[sequence].movedim(0, -1)[queries, keys]
        return weights if weights.dtype == torch.float64 else weights.float()
    with torch.autocast(call.output.device.type, enabled=False):
        return _from_products(call, sequence, queries, keys)


def _from_products(call: AttentionCall, sequence: int, queries: Tensor, keys: Tensor) -> Tensor:
    """Return the weights of pairs from queries and keys, by the kernel's log-sum-exp or rows."""
    heads = torch.arange(call.leading[1], device=queries.device)
    if call.logsumexp is None or not _agrees(call, sequence):
        return _from_rows(call, sequence, heads, queries, keys)
    weights, error = _from_kernel(call, sequence, queries, keys)
    # Of large products float32 has few digits behind the point: there the rows are computed.
    coarse = ~(error <= TOLERANCE)
    some = heads[coarse.any(0)]
    few = len(some) * call.positions[0] * call.positions[1] <= CHUNK
    for part in ([some] if few else some.split(1)) if len(some) else ():
        rows = queries[coarse[:, part].any(1)]
        chosen = torch.isin(queries, rows).nonzero()[:, 0]
        anew = _from_rows(call, sequence, part, queries[chosen], keys[chosen])
        weights[chosen[:, None], part] = anew
    return weights


def _agrees(call: AttentionCall, sequence: int) -> bool:
    """Whether the kernel's log-sum-exp is, at a few queries, what its name says."""
    assert call.logsumexp is not None
    length, heads = call.positions[0], call.leading[1]
    few = torch.linspace(0, length - 1, min(length, 4), device=call.output.device).long()
    every = torch.arange(heads, device=few.device)
    own = _row_products(call, sequence, every, few).logsumexp(-1)
    given = call.logsumexp[sequence][:, few].to(own)
    finite = own.isfinite()  # of a query that attends to nothing, kernels say different things
    return torch.allclose(given[finite], own[finite], rtol=1e-4, atol=1e-4)


def _from_kernel(
    call: AttentionCall, sequence: int, queries: Tensor, keys: Tensor
) -> tuple[Tensor, Tensor]:
    """Return the weights of pairs and how far they may be off, both [pairs, heads]."""
    assert call.logsumexp is not None
    query, key = _of(call, sequence)
    query = query.unflatten(0, (len(key), -1))
    mask = _mask_of(call, sequence)
    weights = query.new_empty(len(queries), call.leading[1])
    error = torch.empty_like(weights)
    size = max(1, CHUNK // (2 * call.leading[1] * query.shape[-1]))
    for begin in range(0, len(queries), size):
        part = slice(begin, begin + size)
        rows, columns = queries[part], keys[part]
        products = torch.einsum("hgpd,hpd->hgp", query[:, :, rows], key[:, columns]).flatten(0, 1)
        products *= call.scale
        bias = None if mask is None else mask[:, _at(rows, mask, 1), _at(columns, mask, 2)]
        _mask(products, bias, columns > rows if call.causal else None)
        lse = call.logsumexp[sequence][:, rows].to(products)
        found = torch.where(products == float("-inf"), 0.0, (products - lse).exp())
        digits = (products.abs() + lse.abs()) * torch.finfo(lse.dtype).eps
        weights[part] = found.T
        error[part] = torch.where(found == 0, 0.0, found * digits).T
    return weights, error


def _from_rows(
    call: AttentionCall, sequence: int, heads: Tensor, queries: Tensor, keys: Tensor
) -> Tensor:
    """Return the weights of pairs for some heads, from all products of their queries."""
    rows, where = queries.unique_consecutive(return_inverse=True)
    size = max(1, CHUNK // max(1, len(heads) * call.positions[1]))
    found = []
    for begin in range(0, len(rows), size):
        chosen = rows[begin : begin + size]
        products = _row_products(call, sequence, heads, chosen)
        inside = (where >= begin) & (where < begin + size)
        row, column = where[inside] - begin, keys[inside]
        beyond = column >= products.shape[2]
        column = column.masked_fill(beyond, 0)
        weights = products.softmax(-1)[:, row, column]
        hidden = beyond | (products[:, row, column] == float("-inf"))
        found.append(torch.where(hidden, 0.0, weights).T)
    return torch.cat(found) if found else call.output.new_empty(0, len(heads))


def _row_products(call: AttentionCall, sequence: int, heads: Tensor, rows: Tensor) -> Tensor:
    """Return the scaled and masked products of some queries with all keys, [heads, rows, keys].

    Where attention is causal, keys behind the last of the queries are left out.
    """
    query, key = _of(call, sequence)
    if call.causal:
        key = key[:, : int(rows[-1]) + 1]
    group = len(query) // len(key)
    products = query[heads[:, None], rows] @ key[heads // group].transpose(1, 2)
    products *= call.scale
    mask = _mask_of(call, sequence)
    bias = None if mask is None else mask[:, _at(rows, mask, 1), : key.shape[1]]
    if bias is not None and len(bias) > 1:
        bias = bias[heads]
    columns = torch.arange(key.shape[1], device=rows.device)
    _mask(products, bias, columns > rows[:, None] if call.causal else None)
    return products


def _mask(products: Tensor, bias: Tensor | None, later: Tensor | None) -> None:
    """Put a mask and causality on products, in place."""
    if later is not None:
        products.masked_fill_(later, float("-inf"))
    if bias is not None and bias.dtype == torch.bool:
        products.masked_fill_(~bias, float("-inf"))
    elif bias is not None:
        products += bias


def allowed(call: AttentionCall, sequence: int, queries: Tensor, keys: Tensor) -> Tensor:
    """Return whether the mask lets queries attend to keys, BoolTensor `[pairs, heads or 1]`."""
    free = torch.ones(len(queries), 1, dtype=torch.bool, device=call.output.device)
    if call.causal:
        free &= (keys <= queries)[:, None]
    mask = _mask_of(call, sequence)
    if mask is not None:
        free = free & _lets_through(mask[:, _at(queries, mask, 1), _at(keys, mask, 2)].T)
    return free


def keys_allowed(call: AttentionCall, sequence: int) -> Tensor:
    """Return to how many keys each query may attend, int64 `[queries, heads or 1]`."""
    queries, keys = call.positions
    device = call.output.device
    mask = _mask_of(call, sequence)
    rows = torch.arange(queries, device=device)
    if mask is None:
        return (rows + 1 if call.causal else rows.new_full((queries,), keys))[:, None]
    columns = torch.arange(keys, device=device)
    size = max(1, CHUNK // max(1, keys * mask.shape[0]))
    found = []
    for part in rows.split(size):
        free = _lets_through(mask[:, _at(part, mask, 1)]).expand(-1, len(part), keys)
        if call.causal:
            free = free & (columns <= part[:, None])
        found.append(free.sum(-1))
    return torch.cat(found, dim=1).T


def _of(call: AttentionCall, sequence: int) -> tuple[Tensor, Tensor]:
    """Return queries [heads, queries, d] and keys [heads or groups of them, keys, d]."""
    assert call.query is not None and call.key is not None
    query, key = call.query[sequence], call.key[sequence]
    return (query, key) if query.dtype == torch.float64 else (query.float(), key.float())


def _mask_of(call: AttentionCall, sequence: int) -> Tensor | None:
    """Return the mask of one sequence, [heads or 1, queries or 1, keys or 1]."""
    mask = call.mask
    if mask is None:
        return None
    while mask.dim() < 4:
        mask = mask[None]
    return mask[sequence if mask.shape[0] > 1 else 0]


def _at(positions: Tensor, mask: Tensor, axis: int) -> Tensor:
    return positions if mask.shape[axis] > 1 else torch.zeros_like(positions)


def _lets_through(mask: Tensor) -> Tensor:
    return mask if mask.dtype == torch.bool else mask > FORBIDDEN
