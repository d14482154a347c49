"""The GPT of the experiments: causal, as large as scaling laws count, rotary positions relative."""

import pytest
import torch

from benchmarks.papers.models.gpt import GPT, Shape, rotated


@pytest.mark.parametrize("mlp", [False, True])
@pytest.mark.parametrize("rope", [False, True])
def test_a_token_changes_nothing_before_it(mlp, rope):
    torch.manual_seed(0)
    model = GPT(Shape(20, 12, width=16, heads=2, mlp=mlp, rope=rope))
    tokens = torch.randint(20, (3, 12))
    changed = tokens.clone()
    changed[:, 7] = (changed[:, 7] + 1) % 20
    before, after = model(tokens), model(changed)
    assert before.shape == (3, 12, 20)
    assert torch.equal(before[:, :7], after[:, :7])
    assert (before[:, 7:] != after[:, 7:]).any(dim=-1).all()


def test_the_size_is_twelve_squares_of_the_width_a_layer_and_a_little():
    # 4 d^2 of attention and 8 d^2 of MLP; 5 d of its biases, 2 d of each of 2 norms, once 2 d.
    model = GPT(Shape(65, 64, width=64, layers=2))
    assert model.size == 2 * (12 * 64**2 + 9 * 64) + 2 * 64
    assert GPT(Shape(65, 64, width=64, layers=2, mlp=False)).size == 2 * (4 * 64**2 + 128) + 128


def test_rotated_products_depend_on_the_distance_alone():
    torch.manual_seed(0)
    query, key = torch.randn(2, 8, dtype=torch.float64)
    queries, keys = rotated(query.expand(30, 8)), rotated(key.expand(30, 8))
    products = queries @ keys.T
    for distance in range(-20, 21):
        diagonal = products.diagonal(distance)
        assert torch.allclose(diagonal, diagonal[:1].expand_as(diagonal), atol=1e-5)
    assert products[0, 0].item() == pytest.approx((query @ key).item(), abs=1e-6)
    assert not torch.allclose(products[0], products[0, :1].expand(30))


def test_rope_has_no_positions_to_learn():
    names = [
        name for name, _ in GPT(Shape(20, 12, width=16, heads=2, rope=True)).named_parameters()
    ]
    assert not any("position" in name for name in names)


def test_what_does_not_fit_is_refused():
    with pytest.raises(ValueError, match="13 tokens; the context is 12"):
        GPT(Shape(20, 12))(torch.zeros(1, 13, dtype=torch.long))
    with pytest.raises(ValueError, match="give a multiple of 4"):
        Shape(20, 12, width=30)
    with pytest.raises(ValueError, match="give a multiple of 8"):
        Shape(20, 12, width=12, rope=True)
