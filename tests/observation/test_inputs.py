"""Which forward passes count, which argument the tokens are, and what their losses are."""

import copy
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from dynamo_probe.observation.inputs import InputTap, find_tokens
from dynamo_probe.observation.token_losses import token_losses


class Net(nn.Module):
    def __init__(self, form: Callable[[Tensor], Any] = lambda logits: logits) -> None:
        super().__init__()
        self.embed, self.out = nn.Embedding(20, 8), nn.Linear(8, 20)
        self.form = form

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Any:
        return self.form(self.out(self.embed(input_ids)))


def tapped(model: nn.Module) -> InputTap:
    tap = InputTap()
    tap.put_on(model)
    return tap


def ids(seed: int = 0, rows: int = 2) -> Tensor:
    return torch.randint(20, (rows, 6), generator=torch.Generator().manual_seed(seed))


def seen(tap: InputTap) -> list[list[list[int]]]:
    return [one.tokens.tolist() for one in tap.take()]


def test_micro_batches_count_each_and_in_forward_order() -> None:
    net = Net()
    tap = tapped(net)
    first, second, third = ids(0), ids(1), ids(2, rows=3)
    net(first).sum().backward()
    later = net(second).sum()
    latest = net(third).sum()
    latest.backward()
    later.backward()
    assert seen(tap) == [first.tolist(), second.tolist(), third.tolist()]
    assert seen(tap) == []


def test_evaluation_and_passes_without_a_backward_pass_do_not_count() -> None:
    net = Net()
    tap = tapped(net)
    with torch.no_grad():
        net(ids())
    net(ids())  # with gradients, as some loops evaluate
    loss = net(ids(3)).sum()
    loss.backward(retain_graph=True)
    loss.backward()
    assert seen(tap) == [ids(3).tolist()]


@pytest.mark.parametrize("reentrant", [False, True])
def test_recomputation_under_checkpointing_counts_once(reentrant: bool) -> None:
    net = Net()
    tap = tapped(net)
    weight = torch.ones((), requires_grad=True)  # a reentrant checkpoint needs one among its inputs
    out = checkpoint(lambda x, w: net(x) * w, ids(), weight, use_reentrant=reentrant)
    assert isinstance(out, Tensor)
    out.sum().backward()
    assert seen(tap) == [ids().tolist()]


def test_a_buffer_that_the_loop_fills_again_does_not_change_what_was_seen() -> None:
    net = Net()
    tap = tapped(net)
    buffer = ids()
    net(buffer).sum().backward()
    buffer.zero_()
    assert seen(tap) == [ids().tolist()]


def test_copies_of_the_model_do_not_report_and_closing_leaves_nothing() -> None:
    net = Net()
    tap = tapped(net)
    copy.deepcopy(net)(ids()).sum().backward()
    assert seen(tap) == []
    tap.close()
    assert not net._forward_hooks and not net._forward_hooks_with_kwargs
    loss = net(ids()).sum()
    loss.backward()
    assert seen(tap) == []


def test_passes_that_an_instrument_makes_do_not_count() -> None:
    net, busy = Net(), [True]
    tap = InputTap()
    tap.put_on(net, lambda: busy[0])
    net(ids()).sum().backward()
    assert seen(tap) == []
    busy[0] = False
    net(ids()).sum().backward()
    assert seen(tap) == [ids().tolist()]


def test_the_mask_is_taken_where_it_has_the_shape_of_the_tokens() -> None:
    net = Net()
    tap = tapped(net)
    mask = torch.tensor([[1, 1, 1, 1, 0, 0], [1] * 6])
    net(ids(), attention_mask=mask).sum().backward()
    net(ids(), attention_mask=mask[:, None]).sum().backward()
    first, second = tap.take()
    assert first.mask is not None and torch.equal(first.mask, mask.bool())
    assert second.mask is None


def test_a_failure_in_the_hook_does_not_reach_the_training() -> None:
    class Trap(dict):
        def items(self):
            raise RuntimeError("a strange mapping")

    class Takes(Net):
        def forward(self, batch: Any) -> Tensor:  # type: ignore[override]
            return super().forward(ids())

    net = Takes()
    tap = tapped(net)
    net(Trap()).sum().backward()
    with pytest.raises(RuntimeError, match="strange mapping"):
        tap.take()


def test_which_argument_is_taken() -> None:
    tokens, floats, flags = ids(), torch.randn(2, 6), torch.ones(2, 6, dtype=torch.bool)
    image = torch.zeros(2, 3, 4, 4, dtype=torch.uint8)
    labels = torch.zeros(2, 6, dtype=torch.int64)
    cases: list[tuple[tuple[Any, ...], dict[str, Any], Tensor | None]] = [
        ((tokens, labels), {}, tokens),
        ((floats, flags, tokens), {}, tokens),
        ((labels,), {"input_ids": tokens}, tokens),
        ((OrderedDict(labels=labels, input_ids=tokens),), {}, tokens),
        ((), {"labels": labels, "x": tokens}, tokens),
        ((), {"labels": labels, "position_ids": labels, "attention_mask": labels}, None),
        ((floats, flags, image, torch.tensor(3)), {}, None),
        ((tokens[0],), {}, tokens[:1]),
        ((), {"input_ids": floats}, None),
    ]
    for args, kwargs, expected in cases:
        found = find_tokens(args, kwargs)
        if expected is None:
            assert found is None
        else:
            assert found is not None and torch.equal(found, expected)


def test_without_tokens_the_problem_is_said_with_advice() -> None:
    net = nn.Linear(4, 2)
    tap = tapped(net)
    net(torch.randn(3, 4)).sum().backward()
    assert tap.take() == []
    assert tap.problem is not None and "give tokens=" in tap.problem


@dataclass
class Output:
    hidden: Tensor
    logits: Tensor


FORMS: dict[str, Callable[[Tensor], Any]] = {
    "tensor": lambda logits: logits,
    "tuple": lambda logits: (logits.sum(), logits, None),
    "mapping": lambda logits: {"loss": logits.sum(), "logits": logits},
    "dataclass": lambda logits: Output(logits[..., :3], logits),
}


@pytest.mark.parametrize("form", FORMS)
def test_losses_are_the_cross_entropy_of_the_next_token_in_every_form_of_output(form) -> None:
    net = Net(FORMS[form])
    tap = tapped(net)
    tap.read_losses = True
    before = torch.get_rng_state()
    out = net(ids())
    logits = out if isinstance(out, Tensor) else next(t for t in _tensors(out) if t.dim() == 3)
    logits.sum().backward()
    (inputs,) = tap.take()
    assert inputs.losses is not None and torch.equal(before, torch.get_rng_state())
    scores = net.out(net.embed(ids())).detach().double()
    for row in range(2):
        assert inputs.losses[row, 0].isnan()
        for t in range(1, 6):
            expected = -scores[row, t - 1].log_softmax(0)[ids()[row, t]]
            assert float(inputs.losses[row, t]) == pytest.approx(float(expected), rel=1e-5)


def _tensors(out: Any) -> list[Tensor]:
    values = out if isinstance(out, tuple) else out.values() if isinstance(out, dict) else None
    values = vars(out).values() if values is None else values
    return [v for v in values if isinstance(v, Tensor) and (v.dim() != 3 or v.shape[-1] == 20)]


def test_losses_in_chunks_are_those_of_the_whole(monkeypatch) -> None:
    from dynamo_probe.functional import logits as module

    logits, tokens = torch.randn(5, 6, 20), ids(rows=5)
    whole = token_losses(logits, tokens)
    monkeypatch.setattr(module, "CHUNK", 6 * 20 * 2)
    parts = token_losses(logits, tokens)
    assert isinstance(whole, Tensor) and isinstance(parts, Tensor)
    assert torch.equal(whole[:, 1:], parts[:, 1:])
    mean = F.cross_entropy(logits[:, :-1].flatten(0, 1), tokens[:, 1:].flatten())
    torch.testing.assert_close(whole[:, 1:].mean(), mean)


def test_what_cannot_give_losses_says_why() -> None:
    tokens = ids()
    assert "without logits" in str(token_losses(torch.randn(2, 3), tokens))
    assert "without logits" in str(token_losses(object(), tokens))
    few = token_losses(torch.randn(2, 6, 4), tokens)
    assert isinstance(few, str) and "4 logits for each token" in few and "losses=" in few
    last_only = token_losses((torch.randn(2, 1, 20), None), tokens)
    assert isinstance(last_only, str)
