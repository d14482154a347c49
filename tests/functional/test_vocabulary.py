"""The size of a vocabulary is seen, or not guessed."""

import torch
from torch import Tensor, nn
from transformers import GPT2Config, GPT2LMHeadModel

from dynamo_probe.functional.vocabulary import vocabulary_of
from tests.models import GPT, mlp


def test_a_hugging_face_model_says_which_embedding_is_of_tokens() -> None:
    ends = {"bos_token_id": 0, "eos_token_id": 0}
    config = GPT2Config(n_layer=1, n_head=1, n_embd=8, vocab_size=70, n_positions=90, **ends)
    assert vocabulary_of(GPT2LMHeadModel(config)) == 70


def test_the_only_embedding_is_of_tokens() -> None:
    assert vocabulary_of(GPT(vocabulary=13)) == 13


class Positioned(nn.Module):
    """Learned positions, an output that is not tied, and an MLP as wide as there are positions."""

    def __init__(self, outputs: int) -> None:
        super().__init__()
        self.tokens, self.positions = nn.Embedding(30, 4), nn.Embedding(90, 4)
        self.wide, self.head = nn.Linear(4, 90), nn.Linear(90, outputs)
        self.drop = nn.Dropout(0.5)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.tokens(tokens) + self.positions(torch.arange(tokens.shape[1]))
        return self.head(self.drop(self.wide(x)))


def test_of_several_embeddings_the_one_with_as_many_rows_as_logits_is_of_tokens() -> None:
    assert vocabulary_of(Positioned(30)) == 30
    assert vocabulary_of(Positioned(31)) is None


def test_to_look_leaves_no_trace() -> None:
    model = Positioned(30)
    before, modes = torch.get_rng_state(), [m.training for m in model.modules()]
    vocabulary_of(model)
    assert torch.equal(before, torch.get_rng_state())
    assert modes == [m.training for m in model.modules()]


def test_a_model_that_cannot_be_run_on_two_tokens_has_to_be_told() -> None:
    model = nn.ModuleDict({"tokens": nn.Embedding(30, 4), "positions": nn.Embedding(90, 4)})
    assert vocabulary_of(model) is None
    ran = vocabulary_of(model, lambda model, tokens: torch.randn(1, 2, 30))
    assert ran == 30


def test_without_an_embedding_it_is_not_known() -> None:
    assert vocabulary_of(mlp(3, 4, 1)) is None
    assert vocabulary_of(nn.Sequential(nn.LazyLinear(3), nn.Identity())) is None
