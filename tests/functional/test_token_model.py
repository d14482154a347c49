"""Running a model on tokens, and reading what it returns."""

from dataclasses import dataclass
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dynamo_probe.functional.logits import token_losses
from dynamo_probe.functional.token_model import logits_of, run_on
from dynamo_probe.functional.unmeasurable import Unmeasurable
from tests.attention_models import VOCAB, Tiny

TOKENS = torch.arange(12).view(2, 6)
LOGITS = torch.randn(2, 6, 20)


@dataclass
class Output:
    """As Hugging Face returns it."""

    logits: Tensor
    hidden: Tensor | None = None


@pytest.mark.parametrize(
    "output",
    [
        LOGITS,
        (LOGITS,),
        (torch.tensor(1.0), LOGITS),
        [LOGITS, None, "more"],
        (LOGITS, (torch.randn(2, 6, 20), torch.randn(2, 6, 20))),
        {"logits": LOGITS, "loss": None},
        Output(LOGITS, torch.randn(2, 6, 8)),
        SimpleNamespace(logits=LOGITS),
    ],
)
def test_logits_are_found_in_every_kind_of_output(output: object):
    assert logits_of(output, TOKENS) is LOGITS


@pytest.mark.parametrize(
    "output",
    [None, 3.0, "logits", {}, {"prediction": LOGITS}, (), (torch.tensor(1.0),), SimpleNamespace()],
)
def test_no_logits_is_an_error_that_names_the_type(output: object):
    with pytest.raises(ValueError, match=f"returned a {type(output).__name__} without logits"):
        logits_of(output, TOKENS)


@pytest.mark.parametrize("logits", [LOGITS.long(), LOGITS[0], LOGITS[..., None]])
def test_what_is_not_logits_for_sequences_is_an_error(logits: Tensor):
    with pytest.raises(ValueError, match="without logits"):
        logits_of(logits, TOKENS)


@pytest.mark.parametrize("part", [slice(5, 6), slice(0, 5)])
def test_logits_for_the_last_token_alone_are_an_error_with_advice(part: slice):
    with pytest.raises(ValueError, match="only the last one unless they are given targets"):
        logits_of(LOGITS[:, part], TOKENS)


def test_sequence_first_logits_are_an_error():
    with pytest.raises(ValueError, match="not one for each token"):
        logits_of(LOGITS.transpose(0, 1), TOKENS)


def test_several_tensors_are_not_guessed_among():
    with pytest.raises(ValueError, match="which are the logits"):
        logits_of((torch.randn(2, 6, 64), LOGITS), TOKENS)


def test_fewer_logits_than_ids_are_an_error_before_a_kernel_sees_them():
    with pytest.raises(ValueError, match="ids up to 11 .* 11 logits .* lower vocab_size"):
        logits_of(LOGITS[..., :11], TOKENS)
    assert logits_of(LOGITS[..., :12], TOKENS).shape[2] == 12


def test_probabilities_are_not_taken_for_logits():
    with pytest.raises(ValueError, match="returned probabilities"):
        logits_of(LOGITS.softmax(-1), TOKENS)
    logits_of(LOGITS.log_softmax(-1), TOKENS)  # are logits
    logits_of(torch.zeros_like(LOGITS), TOKENS)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_losses_are_those_of_a_loop_in_float64(dtype: torch.dtype):
    logits = LOGITS.to(dtype)
    found = token_losses(logits, TOKENS)
    assert found.shape == (2, 5)
    assert found.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    for b in range(2):
        for p in range(1, 6):
            row = logits[b, p - 1].double()
            want = row.exp().sum().log() - row[TOKENS[b, p]]
            assert float(found[b, p - 1]) == pytest.approx(float(want), abs=1e-6)


# --- running ---


def test_the_mask_and_the_call_are_handed_on():
    seen = []

    class Model(nn.Module):
        def forward(self, tokens: Tensor, attention_mask: Tensor | None = None) -> Tensor:
            seen.append(attention_mask)
            return tokens

    model, mask = Model(), torch.ones(2, 6)
    run_on(model, TOKENS)
    run_on(model, TOKENS, mask)
    assert seen == [None, mask]
    assert run_on(model, TOKENS, None, lambda m, t: (m, t)) == (model, TOKENS)


@pytest.mark.parametrize("name", ["max_position_embeddings", "n_positions", "n_ctx", "block_size"])
def test_a_context_that_the_configuration_names_is_respected(name: str):
    model = nn.Identity()
    model.config = SimpleNamespace(**{name: 5})
    with pytest.raises(ValueError, match="6 tokens and the model's context is 5; lower period"):
        run_on(model, TOKENS)
    model.config = SimpleNamespace(**{name: 6})
    assert run_on(model, TOKENS) is TOKENS


def test_a_model_that_fails_is_a_value_error_with_its_cause_and_advice():
    with pytest.raises(ValueError, match=r"shape \[2, 6\] .*lower vocab_size") as caught:
        run_on(Tiny(context=4), TOKENS)
    assert isinstance(caught.value.__cause__, RuntimeError)

    class Other(nn.Module):
        def forward(self, tokens: Tensor, memory: Tensor) -> Tensor:
            return tokens

    with pytest.raises(ValueError, match="give call=lambda model, tokens"):
        run_on(Other(), TOKENS)


def test_float16_that_the_cpu_has_no_kernel_for_says_so():
    class Half(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.zeros(2, dtype=torch.float16))

        def forward(self, tokens: Tensor) -> Tensor:
            raise RuntimeError("\"kernel\" not implemented for 'Half'")

    with pytest.raises(ValueError, match="use bfloat16 or float32"):
        run_on(Half(), TOKENS)


def test_what_cannot_be_measured_is_not_taken_for_a_failure_of_the_model():
    def call(model: nn.Module, tokens: Tensor) -> None:
        raise Unmeasurable("told so")

    with pytest.raises(Unmeasurable, match="^told so$"):
        run_on(Tiny(), TOKENS, None, call)


def test_an_interrupt_goes_through():
    def call(model: nn.Module, tokens: Tensor) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_on(Tiny(), TOKENS, None, call)


def test_the_losses_are_those_of_torch():
    model = Tiny()
    with torch.no_grad():
        logits = model(TOKENS)
    assert logits.shape[2] == VOCAB
    want = F.cross_entropy(logits[:, :-1].mT, TOKENS[:, 1:], reduction="none")
    torch.testing.assert_close(token_losses(logits, TOKENS), want)
