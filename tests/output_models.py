"""Small language models whose output matrices are spelled in many ways, and copying by loops."""

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dynamo_probe.functional.output_circuit import CopyingScores, copying_scores

VOCAB, WIDTH, HEADS, PERIOD = 40, 16, 4, 9
SETTINGS: dict[str, Any] = {"vocab_size": VOCAB, "period": PERIOD, "sequences": 3}


def by_loops(values: Tensor, output: Tensor, direct: Tensor, ids: list[int]) -> list[list[float]]:
    """Ratio of each head at each position, from the definition.

    Args:
        values: `[heads, positions, features]`.
        output: the output matrix `[written, heads * features]`.
        direct: what takes what is written to logits `[vocabulary, written]`.
        ids: token at each position.
    """
    values, output, direct = values.detach(), output.detach(), direct.detach()
    size = values.shape[2]
    ratios = []
    for head in range(values.shape[0]):
        matrix = direct @ output[:, head * size : (head + 1) * size]
        row = []
        for at in range(len(ids)):
            logits = [float(matrix[token] @ values[head, at]) for token in ids]
            mean = math.fsum(logits) / len(logits)
            raised = [max(0.0, logit - mean) for logit in logits]
            row.append(raised[at] / math.fsum(raised))
        ratios.append(row)
    return ratios


def folded(unembedding: Tensor, norm: nn.Module, *, centred: bool) -> Tensor:
    """The unembedding behind a norm, its positive scale left out."""
    gain, width = norm.weight, unembedding.shape[1]
    assert isinstance(gain, Tensor)
    centre = torch.eye(width).double() - (1 / width if centred else 0.0)
    return unembedding.double() @ torch.diag(gain.double()) @ centre


def shaken(model: Any, seed: int = 0) -> Any:
    """The model in float64 with every weight random, norms and biases as well."""
    torch.manual_seed(seed)
    model = model.double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn_like(parameter) * 0.5 + 0.1)
    return model


def expected(
    model: nn.Module,
    scores: CopyingScores,
    layers: list[tuple[nn.Module, Callable[[Tensor], Tensor], Tensor]],
    direct: Tensor,
    begin: int = 0,
) -> Tensor:
    """Scores by loops, of models whose attention modules are given their input as first argument.

    Args:
        model: run on each sequence, to see what goes into the attention modules.
        scores: for their tokens.
        layers: (module, input `[positions, width]` to values `[heads, positions, features]`, output
            matrix).
        direct: see `by_loops`.
        begin: first position that is scored.
    """
    inputs: dict[int, Tensor] = {}

    def keep(layer: int) -> Callable[..., None]:
        def hook(module: nn.Module, args: Any, kwargs: Any) -> None:
            inputs[layer] = args[0] if args else kwargs["hidden_states"]

        return hook

    handles = [
        module.register_forward_pre_hook(keep(i), with_kwargs=True)
        for i, (module, _, _) in enumerate(layers)
    ]
    rows: list[list[tuple[float, ...]]] = [[] for _ in layers]
    for tokens in scores.tokens:
        model.eval()(tokens[None])
        ids = tokens[begin:].tolist()
        for i, (_, values, output) in enumerate(layers):
            found = values(inputs[i].detach().reshape(len(tokens), -1))[:, begin:]
            rows[i] += zip(*by_loops(found, output, direct, ids), strict=True)
    for handle in handles:
        handle.remove()
    return torch.tensor(rows, dtype=torch.float64).mean(1)


def agree(found: Tensor, wanted: Tensor) -> None:
    torch.testing.assert_close(found, wanted, rtol=1e-8, atol=1e-11)


class Spelled(nn.Module):
    """Two layers of attention on a stream, in float64, whose parts can be replaced.

    Attributes:
        values: of the last pass, `[heads, positions, features]` for each layer.
    """

    def __init__(self, *, bias: bool = True, seed: int = 0) -> None:
        super().__init__()
        self.embedding = nn.Embedding(VOCAB, WIDTH)
        self.mixed = nn.ModuleList(nn.Linear(WIDTH, 3 * WIDTH) for _ in range(2))
        self.out = nn.ModuleList(nn.Linear(WIDTH, WIDTH, bias=bias) for _ in range(2))
        self.mlp = nn.ModuleList(nn.Linear(WIDTH, WIDTH) for _ in range(2))
        self.gain = nn.Parameter(torch.empty(WIDTH))
        self.head = nn.Linear(WIDTH, VOCAB)
        shaken(self, seed)
        self.values: list[Tensor] = []

    def attend(self, layer: int, x: Tensor) -> Tensor:
        """What the heads of a layer give, `[batch, heads, positions, features]`."""
        parts = self.mixed[layer](x / x.norm(dim=-1, keepdim=True)).chunk(3, dim=-1)
        query, key, value = (part.unflatten(-1, (HEADS, -1)).transpose(1, 2) for part in parts)
        self.values.append(value[0].detach())
        return F.scaled_dot_product_attention(query, key, value, is_causal=True)

    def write(self, layer: int, heads: Tensor) -> Tensor:
        return self.out[layer](heads.transpose(1, 2).flatten(2))

    def block(self, layer: int, x: Tensor) -> Tensor:
        x = x + self.write(layer, self.attend(layer, x))
        return x + torch.relu(self.mlp[layer](x))

    def logits(self, x: Tensor) -> Tensor:
        return self.head(x)

    def forward(self, tokens: Tensor) -> Tensor:
        self.values = []
        x = self.embedding(tokens)
        for layer in range(2):
            x = self.block(layer, x)
        return self.logits(x)


def wanted(model: Spelled, direct: Tensor, outputs: list[Tensor] | None = None) -> Tensor:
    """Scores by loops over the values that the model itself kept."""
    tokens = copying_scores(model, **SETTINGS).tokens
    outputs = outputs or [layer.weight for layer in model.out]  # type: ignore[misc]
    rows: list[list[tuple[float, ...]]] = [[], []]
    for row in tokens:
        model.eval()(row[None])
        for i, output in enumerate(outputs):
            found = by_loops(model.values[i], output, direct, row.tolist())
            rows[i] += zip(*found, strict=True)
    return torch.tensor(rows, dtype=torch.float64).mean(1)


class InPlace(Spelled):
    def block(self, layer: int, x: Tensor) -> Tensor:
        x += F.dropout(self.write(layer, self.attend(layer, x)), 0.5, self.training)
        x.add_(torch.relu_(self.mlp[layer](x)))
        return x
