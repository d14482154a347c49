"""A ledger writes, and takes everything back in the right order when its block fails."""

import pytest
import torch

from dynamo_probe.functional.ledger import Ledger


def write_all(ledger, weight, step, state):
    ledger.write(weight, 0, torch.tensor([0, 2]), torch.full((2, 4), 7.0))
    ledger.write(weight, 1, torch.tensor([1, 3]), 0.0)  # crosses what was just written
    ledger.fill(step, 0)
    ledger.put(state, "step", 0)


def test_what_is_written_stays():
    weight, step, state = torch.ones(3, 4, requires_grad=True), torch.tensor(5.0), {"step": 5}
    with Ledger() as ledger:
        write_all(ledger, weight, step, state)
    assert weight.tolist() == [[7, 0, 7, 0], [1, 0, 1, 0], [7, 0, 7, 0]]
    assert step.item() == 0 and step.shape == () and state == {"step": 0}
    assert weight.requires_grad and weight.grad_fn is None


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_a_failure_takes_everything_back(error):
    weight, step, state = torch.randn(3, 4), torch.tensor(5.0), {"step": 5}
    before = weight.clone()
    with pytest.raises(error), Ledger() as ledger:
        write_all(ledger, weight, step, state)
        raise error
    assert torch.equal(weight, before)
    assert step.item() == 5 and state == {"step": 5}


def test_values_are_brought_to_the_type_of_the_tensor():
    weight = torch.zeros(3, dtype=torch.bfloat16)
    with Ledger() as ledger:
        ledger.write(weight, 0, torch.tensor([1]), torch.tensor([1.5], dtype=torch.float64))
    assert weight.tolist() == [0, 1.5, 0]
