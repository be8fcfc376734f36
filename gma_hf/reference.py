"""
The definition of Gaussian Mixture Attention, slow and clear: plain loops over batch, heads and tokens, in whatever
dtype the inputs have. Every fast path of `gma_hf.model` is tested against it.

Shapes: B batch, H heads, N tokens, K components, d_r routing width, d_v value width.
"""

import torch


def reference_responsibilities(
    x: torch.Tensor,
    means: torch.Tensor,
    variances: torch.Tensor,
    prior_logits: torch.Tensor,
    temperature: torch.Tensor | None = None,
    mask: torch.Tensor | None = None,
) -> torch.Tensor:
    """
    `gamma_k(x) = softmax_k(temperature * (log pi_k + log N(x; mu_k, diag(sigma_k^2))))` (paper eq. 2), with the
    logarithm of the Gaussian density written out.

    Args:
        x: `[B, H, N, d_r]`.
        means, variances: `[H, K, d_r]`.
        prior_logits: `[H, K]`, with `pi = softmax(prior_logits)`.
        temperature: `[H]`, or None for 1.
        mask: `[B, N]`, False where the responsibilities are to be zero.

    Returns:
        `[B, H, N, K]`.
    """
    difference = x[:, :, :, None, :] - means[None, :, None]
    log_density = -0.5 * (difference**2 / variances[:, None] + torch.log(2 * torch.pi * variances[:, None])).sum(-1)
    scores = prior_logits.log_softmax(-1)[:, None] + log_density
    if temperature is not None:
        scores = scores * temperature[:, None, None]
    gamma = scores.softmax(-1)
    return gamma if mask is None else gamma * mask[:, None, :, None].to(gamma.dtype)


def reference_mix(
    query_gamma: torch.Tensor,
    key_gamma: torch.Tensor,
    values: torch.Tensor,
    epsilon: float,
    causal: bool,
    state: torch.Tensor | None = None,
    log_decay: torch.Tensor | None = None,
    read_exponent: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """
    `M = GammaK^T V`, `z = GammaK^T 1`, `O = GammaQ M / (GammaQ z + eps)`, over all tokens (bidirectional) or over
    j <= i (causal, paper 3.6), one token at a time. Or, with a read exponent, what `reference_read` says.

    Args:
        query_gamma, key_gamma: `[B, H, N, K]`.
        values: `[B, H, N, d_v]`.
        epsilon: eps of the read.
        causal: whether a token reads only what is not after it.
        state: memory and mass before the first token, `[B, H, K, d_v + 1]`, or None for zeros.
        log_decay: causal only: log of the forget gate, `[B, H, N]`, or None for no forgetting.
        read_exponent: p of each head, `[H]`, or None for the paper's read.

    Returns:
        The output `[B, H, N, d_v]` and the state after the last token.
    """
    batch, heads, length, components = key_gamma.shape
    outputs, states = torch.empty_like(values), []
    for b in range(batch):
        for h in range(heads):
            memory = values.new_zeros(components, values.shape[-1])
            mass = values.new_zeros(components)
            if state is not None:
                memory, mass = state[b, h, :, :-1], state[b, h, :, -1]
            exponent = None if read_exponent is None else read_exponent[h]
            rows = []
            for i in range(length):
                if log_decay is not None:
                    memory, mass = memory * log_decay[b, h, i].exp(), mass * log_decay[b, h, i].exp()
                memory = memory + torch.outer(key_gamma[b, h, i], values[b, h, i])
                mass = mass + key_gamma[b, h, i]
                if causal:
                    rows.append(reference_read(query_gamma[b, h, i], memory, mass, epsilon, exponent))
            if not causal:
                rows = [reference_read(gamma, memory, mass, epsilon, exponent) for gamma in query_gamma[b, h]]
            outputs[b, h] = torch.stack(rows)
            states.append(torch.cat([memory, mass[:, None]], dim=-1))
    return outputs, torch.stack(states).unflatten(0, (batch, heads))


def reference_read(
    query_gamma: torch.Tensor,
    memory: torch.Tensor,
    mass: torch.Tensor,
    epsilon: float,
    exponent: torch.Tensor | None = None,
) -> torch.Tensor:
    """
    What one query reads: `O = r M / (r z + eps)`, where r is gamma in the paper and, with a read exponent p, `r_k =
    gamma_k (z_k + eps)^(-p)`, divided by its sum over k (so that `r z + eps = r (z + eps)`). With p = 0 that is the
    paper's again; with p = 1 each component answers with the mean of what it holds, `sum_k gamma_k M_k / (z_k + eps)`.

    Args:
        query_gamma: `[K]`.
        memory: `[K, d_v]`.
        mass: `[K]`.
        epsilon: eps of the read.
        exponent: p, or None for the paper's read.

    Returns:
        `[d_v]`.
    """
    weights = query_gamma
    if exponent is not None:
        weights = query_gamma * (mass + epsilon) ** -exponent
        weights = weights / weights.sum()
    return weights @ memory / (weights @ mass + epsilon)


def reference_convolution(
    x: torch.Tensor, weight: torch.Tensor, causal: bool, mask: torch.Tensor | None = None
) -> torch.Tensor:
    """
    `x + weight * x` over the real tokens of each row, the padding between them taken out; padding gives zeros.

    Args:
        x: `[B, N, C]`.
        weight: `[C, W]`; its last tap (causal) or its middle one (centred) falls on the token itself.
        mask: `[B, N]`, True at real tokens, or None for all.

    Returns:
        `[B, N, C]`.
    """
    output, width = torch.zeros_like(x), weight.shape[-1]
    reach = width - 1 if causal else width // 2
    for b in range(len(x)):
        real = range(x.shape[1]) if mask is None else mask[b].nonzero()[:, 0].tolist()
        for place, token in enumerate(real):
            output[b, token] = x[b, token]
            for tap in range(width):
                other = place + tap - reach
                if 0 <= other < len(real):
                    output[b, token] += weight[:, tap] * x[b, real[other]]
    return output
