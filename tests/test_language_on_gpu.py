"""On a GPU: heads and repeated data are read as on the CPU, and training stays bit-identical."""

from collections.abc import Iterator

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import dynamo_probe as dp
from dynamo_probe.functional import ablate_heads, copy_loss, head_scores
from tests.models import GPT
from tests.training import everything, identical, seeded, train

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")

WORDS = 60


@pytest.fixture(autouse=True)
def full_precision() -> Iterator[None]:
    before = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = False
    yield
    torch.backends.cuda.matmul.allow_tf32 = before


def model() -> nn.Module:
    seeded()
    return GPT(vocabulary=WORDS)


def test_scores_and_copy_loss_are_those_of_the_cpu() -> None:
    here = head_scores(model(), WORDS)
    there = head_scores(model().cuda(), WORDS)
    for name in ("prefix_matching", "previous_token", "duplicate_token", "sink"):
        torch.testing.assert_close(getattr(there, name), getattr(here, name), rtol=0, atol=1e-5)
    with ablate_heads(ours := model(), [(0, 1)], "mean"):
        wanted = copy_loss(ours, WORDS).loss
    with ablate_heads(theirs := model().cuda(), [(0, 1)], "mean"):
        assert copy_loss(theirs, WORDS).loss == pytest.approx(wanted, abs=1e-4)


def test_training_with_the_probes_is_bit_identical_and_the_tokens_are_all_seen() -> None:
    runs, readings = [], []
    for device, watched in (("cuda", False), ("cuda", True), ("cpu", True)):
        net = model().to(device)
        optimizer = torch.optim.Adam(net.parameters(), 1e-3)
        drawn = torch.Generator().manual_seed(1)

        def loss(net: nn.Module, device: str = device, drawn: torch.Generator = drawn) -> Tensor:
            tokens = torch.randint(WORDS, (4, 32), generator=drawn)
            tokens[0] = torch.arange(32)
            tokens = tokens.to(device)
            return F.cross_entropy(net(tokens)[:, :-1].flatten(0, 1), tokens[:, 1:].flatten())

        probes = [dp.Induction(every=10), dp.Repetition(every=1, ngram=8)]
        watch = dp.watch(net, optimizer, probes, on_error="raise") if watched else None
        train(net, optimizer, loss, 20)
        if watch is not None:
            watch.close()
            readings.append(watch.history.series("repetition/fraction")[1].tolist())
        if device == "cuda":
            runs.append(everything([net], [optimizer]))
    assert identical(*runs)
    assert readings[0] == readings[1] and readings[0][1:] == [0.25] * 19
