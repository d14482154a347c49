"""The size of a vocabulary is seen, or not guessed."""

from torch import nn
from transformers import GPT2Config, GPT2LMHeadModel

from dynamo_probe.functional.vocabulary import vocabulary_of
from tests.models import GPT, mlp


def test_a_hugging_face_model_says_which_embedding_is_of_tokens() -> None:
    ends = {"bos_token_id": 0, "eos_token_id": 0}
    config = GPT2Config(n_layer=1, n_head=1, n_embd=8, vocab_size=70, n_positions=90, **ends)
    assert vocabulary_of(GPT2LMHeadModel(config)) == 70


def test_the_only_embedding_is_of_tokens() -> None:
    assert vocabulary_of(GPT(vocabulary=13)) == 13


def test_of_two_embeddings_the_one_that_has_an_output_layer_is_of_tokens() -> None:
    model = nn.ModuleDict({"tokens": nn.Embedding(30, 4), "positions": nn.Embedding(90, 4)})
    assert vocabulary_of(model) is None
    model["head"] = nn.Linear(4, 30)
    assert vocabulary_of(model) == 30
    model["wide"] = nn.Linear(4, 90)  # now it could be the other as well
    assert vocabulary_of(model) is None


def test_without_an_embedding_it_is_not_known() -> None:
    assert vocabulary_of(mlp(3, 4, 1)) is None
    assert vocabulary_of(nn.Sequential(nn.LazyLinear(3), nn.Identity())) is None
