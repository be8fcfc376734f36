"""
Gaussian Mixture Attention as pure functions on tensors: responsibilities, mixing over a sequence, one-token step.

Shapes, throughout: B batch, H heads, N tokens, K components, d_r routing width, d_v value width. A *state* is one
tensor `[B, H, K, d_v + 1]`: the memory M in its first d_v columns and the mass z in the last one. Responsibilities and
states are float32, whatever the dtype of the inputs (float64 for float64 inputs).
"""

import torch
import torch.nn.functional as F


# exp(-20) = 2e-9 forgets everything that float32 can tell apart. The bound keeps sums of log decays over a chunk small
# enough for their differences to be good to 5e-4 in the worst case of a chunk of 256 closed gates.
MIN_LOG_DECAY = -20.0


def routing_dtype(x: torch.Tensor) -> torch.dtype:
    """The dtype in which `x` is routed and remembered: float64 for float64, float32 for everything else."""
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def responsibilities(
    x: torch.Tensor,
    means: torch.Tensor,
    variances: torch.Tensor,
    prior_logits: torch.Tensor,
    temperature: torch.Tensor | None = None,
    mask: torch.Tensor | None = None,
) -> torch.Tensor:
    """
    Posterior responsibilities `gamma_k(x) = softmax_k(log pi_k + log N(x; mu_k, diag(sigma_k^2)))` (paper eq. 2).

    The scores come out of one matrix product of `[x * x, x]`. What is the same for all components of a head drops out
    of the softmax, so a common centre is taken off x and the means and a common precision off the squares: expanding
    `(x - mu)^2` without that cancels badly in float32.

    Args:
        x: queries or keys, `[B, H, N, d_r]`.
        means: mu, `[H, K, d_r]`.
        variances: sigma^2, `[H, K, d_r]`, positive.
        prior_logits: alpha with `pi = softmax(alpha)`, `[H, K]`.
        temperature: factor on the scores of a head, `[H]`, or None for 1.
        mask: `[B, N]`, False where a token must not write; its responsibilities become zero.

    Returns:
        `[B, H, N, K]`, float32 (float64 for float64 inputs), each row summing to one, or to zero where masked.
    """
    with torch.autocast(device_type=x.device.type, enabled=False):
        dtype = routing_dtype(x)
        means, variances, prior_logits = means.to(dtype), variances.to(dtype), prior_logits.to(dtype)
        centre = means.mean(dim=1, keepdim=True)
        x, means = x.to(dtype) - centre, means - centre
        precision = variances.reciprocal()
        quadratic = -0.5 * (precision - precision.mean(dim=1, keepdim=True))
        linear = means * precision
        constant = prior_logits - 0.5 * (variances.log() + means * linear).sum(dim=-1)
        if temperature is not None:
            scale = temperature.to(dtype)[:, None, None]
            quadratic, linear, constant = quadratic * scale, linear * scale, constant * scale[..., 0]
        weights = torch.cat([quadratic, linear], dim=-1)
        scores = torch.cat([x * x, x], dim=-1) @ weights.transpose(-1, -2) + constant[:, None, :]
        gamma = scores.softmax(dim=-1)
        return gamma if mask is None else gamma * mask[:, None, :, None]


def append_ones(values: torch.Tensor) -> torch.Tensor:
    """Values `[B, H, N, d_v]` with a column of ones, `[B, H, N, d_v + 1]`, in the dtype of the state."""
    return F.pad(values.to(routing_dtype(values)), (0, 1), value=1.0)


def read(weighted: torch.Tensor, epsilon: float) -> torch.Tensor:
    """`GammaQ M / (GammaQ z + eps)` from `GammaQ [M, z]`, `[..., d_v + 1]` to `[..., d_v]`."""
    return weighted[..., :-1] / (weighted[..., -1:] + epsilon)


def mix_bidirectional(
    query_gamma: torch.Tensor,
    key_gamma: torch.Tensor,
    values: torch.Tensor,
    epsilon: float,
    state: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """
    Every token reads what all tokens wrote: `M = GammaK^T V`, `z = GammaK^T 1`, `O = GammaQ M / (GammaQ z + eps)`.

    Args:
        query_gamma, key_gamma: responsibilities `[B, H, N, K]`; masked keys have zero rows.
        values: `[B, H, N, d_v]`.
        epsilon: eps of the read.
        state: what else has been written, `[B, H, K, d_v + 1]`, or None for nothing.

    Returns:
        The output `[B, H, N, d_v]` (zeros for a row that has nothing to read) and the state with all tokens in it.
    """
    with torch.autocast(device_type=values.device.type, enabled=False):
        written = key_gamma.transpose(-1, -2) @ append_ones(values)
        state = written if state is None else state + written
        return read(query_gamma @ state, epsilon), state


def mix_causal(
    query_gamma: torch.Tensor,
    key_gamma: torch.Tensor,
    values: torch.Tensor,
    epsilon: float,
    chunk_size: int,
    state: torch.Tensor | None = None,
    log_decay: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """
    Token i reads what tokens j <= i wrote (paper 3.6): `state_i = exp(log_decay_i) state_{i-1} + gammaK_i^T v'_i`.

    Args:
        query_gamma, key_gamma: responsibilities `[B, H, N, K]`; masked keys have zero rows.
        values: `[B, H, N, d_v]`.
        epsilon: eps of the read.
        chunk_size: tokens per chunk; changes speed and memory, not the result.
        state: what was read before, `[B, H, K, d_v + 1]`, or None for nothing.
        log_decay: log of the forget gate, `[B, H, N]`, at most 0 (0 at masked tokens), or None for no forgetting.

    Returns:
        The output `[B, H, N, d_v]` and the state after the last token.
    """
    with torch.autocast(device_type=values.device.type, enabled=False):
        values = append_ones(values)
        if state is None:
            state = values.new_zeros(*values.shape[:2], key_gamma.shape[-1], values.shape[-1])
        if values.shape[2] == 1:
            weighted, state = _one_token(query_gamma, key_gamma, values, state, log_decay)
        else:
            weighted, state = _scan_chunks(query_gamma, key_gamma, values, state, log_decay, chunk_size)
        return read(weighted, epsilon), state


def _one_token(query_gamma, key_gamma, values, state, log_decay):
    if log_decay is not None:
        state = state * log_decay.exp()[..., None]
    state = state + key_gamma.transpose(-1, -2) * values
    return query_gamma @ state, state


def _scan_chunks(query_gamma, key_gamma, values, state, log_decay, chunk_size):
    """Inside a chunk a masked (or decay-weighted) product of responsibilities, across chunks a prefix of states."""
    length = values.shape[2]
    chunk_size = min(chunk_size, length)
    query_gamma, key_gamma, values = (_split(t, chunk_size) for t in (query_gamma, key_gamma, values))
    affinity = query_gamma @ key_gamma.transpose(-1, -2)
    if log_decay is None:
        affinity = affinity.tril()
        written = key_gamma.transpose(-1, -2) @ values
        after = written.cumsum(dim=2) + state[:, :, None]
        before = torch.cat([state[:, :, None], after[:, :, :-1]], dim=2)
        state = after[:, :, -1]
    else:
        elapsed = _split(log_decay[..., None], chunk_size)[..., 0].cumsum(dim=-1)
        affinity = affinity * _decay_between(elapsed)
        total = elapsed[..., -1:]
        written = (key_gamma * (total - elapsed).exp()[..., None]).transpose(-1, -2) @ values
        query_gamma = query_gamma * elapsed.exp()[..., None]
        before, state = _prefix_states(written, total.exp()[..., None], state)
    weighted = affinity @ values + query_gamma @ before
    return weighted.flatten(2, 3)[:, :, :length], state


def _split(x: torch.Tensor, chunk_size: int) -> torch.Tensor:
    """`[B, H, N, d]` to `[B, H, chunks, chunk_size, d]`, with zeros behind the last token."""
    x = F.pad(x, (0, 0, 0, -x.shape[2] % chunk_size))
    return x.unflatten(2, (-1, chunk_size))


def _decay_between(elapsed: torch.Tensor) -> torch.Tensor:
    """`exp(sum of log decays in (j, i])` for j <= i and 0 above the diagonal: `[..., C]` to `[..., C, C]`."""
    size = elapsed.shape[-1]
    future = torch.ones(size, size, dtype=torch.bool, device=elapsed.device).triu(1)
    return (elapsed[..., :, None] - elapsed[..., None, :]).masked_fill(future, float("-inf")).exp()


def _prefix_states(written, decay, state):
    """The state before each chunk, `[B, H, chunks, K, d_v + 1]`, and the state after the last one."""
    before = []
    for chunk_decay, chunk_written in zip(decay.unbind(2), written.unbind(2)):
        before.append(state)
        state = chunk_decay * state + chunk_written
    return torch.stack(before, dim=2), state


def log_forget_gate(logits: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
    """
    Log of the forget gate, `max(log sigmoid(logits), MIN_LOG_DECAY)`, and 0 where a token is masked.

    Args:
        logits: `[B, N, H]`.
        mask: `[B, N]`, False where a token must leave the state as it is.

    Returns:
        `[B, H, N]` in the dtype of the state.
    """
    log_gate = F.logsigmoid(logits.to(routing_dtype(logits))).clamp_min(MIN_LOG_DECAY)
    if mask is not None:
        log_gate = log_gate * mask[..., None]
    return log_gate.transpose(1, 2)


def affinity(
    query_gamma: torch.Tensor,
    key_gamma: torch.Tensor,
    epsilon: float,
    causal: bool,
    state: torch.Tensor | None = None,
    log_decay: torch.Tensor | None = None,
) -> torch.Tensor:
    """
    The affinity `A = diag(GammaQ z + eps)^-1 GammaQ GammaK^T` (with decays and the causal mask, if any), formed only
    for somebody who asks to look at it. With a `state`, rows fall short of one by what is read from the state.

    Returns:
        `[B, H, N, N]`.
    """
    with torch.autocast(device_type=query_gamma.device.type, enabled=False):
        weights = query_gamma @ key_gamma.transpose(-1, -2)
        elapsed = None if log_decay is None else log_decay.cumsum(dim=-1)
        if elapsed is not None:
            weights = weights * _decay_between(elapsed)
        elif causal:
            weights = weights.tril()
        mass = weights.sum(dim=-1, keepdim=True)
        if state is not None:
            old_mass = query_gamma @ state[..., -1:]
            mass = mass + (old_mass if elapsed is None else old_mass * elapsed.exp()[..., None])
        return weights / (mass + epsilon)


def short_convolution(
    x: torch.Tensor,
    weight: torch.Tensor,
    causal: bool,
    mask: torch.Tensor | None = None,
    tail: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """
    Depthwise convolution with a residual path, `x + weight * x`, over the real tokens of each row: masked ones are
    taken out before and put back after, so a row gives what it gives alone, wherever its padding is.

    Args:
        x: `[B, N, C]`.
        weight: `[C, W]`; the last tap is the current token (causal), or the middle one is (centred).
        causal: whether a token sees the W - 1 tokens before it, or (W - 1) / 2 on each side.
        mask: `[B, N]`, True at real tokens, or None for all.
        tail: causal only: the last W - 1 inputs before this call, `[B, W - 1, C]`, or None for zeros.

    Returns:
        `[B, N, C]`, and in the causal case the last W - 1 inputs including this call (else None).
    """
    batch, length, channels = x.shape
    width = weight.shape[-1]
    inputs = x
    if mask is not None:
        mask = mask.bool()
        order = mask.logical_not().long().argsort(dim=1, stable=True)  # real tokens first, in their order
        inputs = (x * mask[..., None]).gather(1, order[..., None].expand(-1, -1, channels))
    if causal:
        before = x.new_zeros(batch, width - 1, channels) if tail is None else tail.to(x.dtype)
        padded = torch.cat([before, inputs], dim=1)
        if mask is None:
            tail = padded[:, length:]
        else:
            last = mask.sum(dim=1, keepdim=True) + torch.arange(width - 1, device=x.device)
            tail = padded.gather(1, last[..., None].expand(-1, -1, channels))
    else:
        padded, tail = F.pad(inputs, (0, 0, width // 2, width // 2)), None
    mixed = F.conv1d(padded.transpose(1, 2), weight.to(x.dtype)[:, None], groups=channels).transpose(1, 2)
    if mask is not None:
        mixed = mixed.gather(1, order.argsort(dim=1)[..., None].expand(-1, -1, channels))
    return x + mixed, tail
