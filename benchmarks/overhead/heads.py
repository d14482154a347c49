"""What scoring attention heads costs, against patterns that are stored.

`python -m benchmarks.overhead.heads [--rounds N] [--lengths 512 2048] [--widths 768 192]` prints
Markdown tables: time of scoring every head of a GPT-2 of transformers, in one interleaved run, with
one thread, in CPU time; memory of tensors at the peak; and a training step between probes. Run it
with a Python that has transformer-lens < 3 for that row: later versions have no HookedTransformer,
and what they have instead asks the network for a tokenizer.
"""

from __future__ import annotations

import argparse
import datetime
import os
import statistics
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import GPT2Config, GPT2LMHeadModel

from benchmarks.overhead.interleaved import ratios, seconds, spread
from dynamo_probe.functional.heads import head_scores
from dynamo_probe.functional.repeated_tokens import SCORES, pairs_of, repeated_tokens

VOCAB = 1000
Action = Callable[[], object]


def gpt2(width: int, layers: int, context: int, implementation: str) -> GPT2LMHeadModel:
    """Return a GPT-2 with 12 heads and random weights, the same at every call."""
    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=VOCAB,
        n_embd=width,
        n_layer=layers,
        n_head=12,
        n_positions=context,
        bos_token_id=None,
        eos_token_id=None,
        attn_implementation=implementation,
    )
    model = GPT2LMHeadModel(config).eval()
    for name, parameter in model.named_parameters():
        if name.endswith("c_attn.weight"):  # as it is initialised, all attention is uniform
            parameter.data *= 4
    return model


def tokens_of(length: int) -> Tensor:
    """Return one sequence of four copies, as Olsson et al. have it."""
    return repeated_tokens(VOCAB, period=length // 4, copies=4, sequences=1)


def from_patterns(patterns: list[Tensor], tokens: Tensor) -> Tensor:
    """Return the scores that `head_scores` gives, `[scores, layers, heads]`."""
    sums, counts = torch.zeros(len(SCORES), len(patterns), patterns[0].shape[1]).double(), 0
    for sequence, row in enumerate(tokens):
        pairs = pairs_of(row)
        counts = counts + pairs.counts[: len(SCORES)]
        for layer, pattern in enumerate(patterns):
            mass = pattern[sequence][:, pairs.queries, pairs.keys].double()
            sums[:, layer] += pairs.kinds[: len(SCORES)] @ mass.T
    return sums / torch.as_tensor(counts)[:, None, None]


def _without_logits(model: GPT2LMHeadModel, tokens: Tensor) -> object:
    return model.base_model(tokens, use_cache=False)


def ours(model: GPT2LMHeadModel, tokens: Tensor) -> Tensor:
    found = head_scores(model, VOCAB, tokens=tokens, call=_without_logits)
    return torch.stack([getattr(found, score) for score in SCORES])


@torch.no_grad()
def stored(model: GPT2LMHeadModel, tokens: Tensor) -> Tensor:
    output = model.base_model(tokens, output_attentions=True, use_cache=False)
    return from_patterns(list(output.attentions), tokens)


@torch.no_grad()
def bare(model: GPT2LMHeadModel, tokens: Tensor) -> None:
    model.base_model(tokens, use_cache=False)


def transformer_lens(model: GPT2LMHeadModel) -> Callable[[Tensor], Tensor] | None:
    """Return the same with a HookedTransformer of the same weights; None where there is none."""
    try:
        from transformer_lens import HookedTransformer, HookedTransformerConfig
        from transformer_lens.pretrained.weight_conversions import convert_gpt2_weights
    except ImportError:
        return None
    config = HookedTransformerConfig(
        n_layers=model.config.n_layer,
        d_model=model.config.n_embd,
        n_ctx=model.config.n_positions,
        d_head=model.config.n_embd // model.config.n_head,
        n_heads=model.config.n_head,
        d_mlp=4 * model.config.n_embd,
        d_vocab=VOCAB,
        act_fn="gelu_new",
        normalization_type="LN",
        device="cpu",
    )
    hooked = HookedTransformer(config)
    hooked.load_state_dict(convert_gpt2_weights(model, config), strict=False)
    hooked.eval()

    @torch.no_grad()
    def run(tokens: Tensor) -> Tensor:
        _, cache = hooked.run_with_cache(
            tokens,
            return_type=None,
            prepend_bos=False,
            names_filter=lambda name: name.endswith("hook_pattern"),
        )
        return from_patterns([cache["pattern", i] for i in range(config.n_layers)], tokens)

    return run


def actions(width: int, layers: int, length: int) -> dict[str, Action]:
    """Return what is compared, on the same weights and tokens."""
    kernel, eager = (gpt2(width, layers, length, how) for how in ("sdpa", "eager"))
    tokens = tokens_of(length)
    lens = transformer_lens(kernel)
    found: dict[str, Action] = {
        "forward pass": lambda: bare(kernel, tokens),
        "A/A": lambda: bare(kernel, tokens),
        "head_scores": lambda: ours(kernel, tokens),
        "eager, patterns stored": lambda: stored(eager, tokens),
    }
    if lens is not None:
        found["TransformerLens"] = lambda: lens(tokens)
    return found


def peak(action: Action) -> float:
    """Return MiB of tensors at the peak of an action, above what was there before it."""
    activities = [torch.profiler.ProfilerActivity.CPU]
    with torch.profiler.profile(activities=activities, profile_memory=True) as profile:
        action()
    events = profile.profiler.kineto_results.events()  # type: ignore[union-attr]
    events = sorted((e for e in events if e.name() == "[memory]"), key=lambda e: e.start_ns())
    now = most = 0
    for event in events:
        now += event.nbytes()
        most = max(most, now)
    return most / 2**20


def table(width: int, layers: int, length: int, rounds: int) -> dict[str, float]:
    """Print the table of one length; return the ratios to `head_scores`."""
    found = actions(width, layers, length)
    scores: dict[str, object] = {}

    def kept(name: str) -> Action:
        return lambda: scores.__setitem__(name, found[name]())

    memory = {name: peak(kept(name)) for name in found}
    want = scores["head_scores"]
    assert isinstance(want, Tensor)
    took = seconds(found, rounds)
    to_pass, to_ours = ratios(took, "forward pass"), ratios(took, "head_scores")
    low, high = spread([a / b for a, b in zip(took["A/A"], took["forward pass"], strict=True)])
    print(f"### {layers} layers, 12 heads of {width // 12}, T = {length}\n")
    print(
        f"{rounds} rounds, load {os.getloadavg()[0]:.1f}; A/A quartiles {low:.3f} to {high:.3f}.\n"
    )
    print(
        "| | time / forward pass | / head_scores | time beyond a forward pass / ours | MiB beyond |"
    )
    print("|---|---|---|---|---|")
    own = to_pass["head_scores"] - 1
    for name in found:
        beyond = f"{(to_pass[name] - 1) / own:.1f}" if name not in ("forward pass", "A/A") else "-"
        more = memory[name] - memory["forward pass"]
        print(f"| {name} | {to_pass[name]:.2f} | {to_ours[name]:.2f} | {beyond} | {more:+.1f} |")
    pass_seconds = statistics.median(took["forward pass"])
    stored_mib = layers * 12 * length**2 / 2**18
    print(f"\nA forward pass takes {pass_seconds:.2f} s, all patterns {stored_mib:.0f} MiB.")
    for name in found:
        got = scores.get(name)
        if isinstance(got, Tensor) and name != "head_scores":
            print(f"{name}: scores differ by at most {float((got - want).abs().max()):.1e}.")
    print(flush=True)
    return to_ours


def between_probes(rounds: int) -> dict[str, float]:
    """Return a training step's time after a probe over one of a model that never had one."""

    def training(probed: bool) -> Action:
        model = gpt2(192, 2, 64, "sdpa").train()
        optimizer = torch.optim.AdamW(model.parameters(), 1e-4)
        tokens = torch.randint(VOCAB, (4, 64), generator=torch.Generator().manual_seed(0))

        def step() -> None:
            logits = model(tokens).logits
            F.cross_entropy(logits[:, :-1].flatten(0, 1), tokens[:, 1:].flatten()).backward()
            optimizer.step()
            optimizer.zero_grad()

        if probed:
            step()
            head_scores(model, VOCAB, period=16)
        hooks = sum(
            len(m._forward_hooks) + len(m._forward_pre_hooks) + len(m._backward_hooks)
            for m in model.modules()
        )
        assert hooks == 0 and torch._C._len_torch_function_stack() == 0
        return step

    steps = {"never": training(False), "A/A": training(False), "after a probe": training(True)}
    return ratios(seconds(steps, rounds), "never")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--lengths", type=int, nargs="+", default=[512, 2048])
    parser.add_argument("--widths", type=int, nargs="+", default=[192, 768])
    parser.add_argument("--layers", type=int, default=12)
    given = parser.parse_args()
    torch.set_num_threads(1)
    print(f"{datetime.date.today()}, torch {torch.__version__}\n")
    for width in given.widths:
        for length in given.lengths:
            table(width, given.layers, length, given.rounds)
    result = between_probes(3 * given.rounds)
    print("Training step: " + ", ".join(f"{name} {value:.3f}" for name, value in result.items()))


if __name__ == "__main__":
    main()
