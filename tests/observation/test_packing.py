"""Masks as bits: what goes in comes out, at an eighth of a byte a weight."""

import io
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dynamo_probe.observation.packing import pack, packed, unpack, unpacked

SHAPES = st.lists(st.integers(0, 9), max_size=4).map(tuple)


@given(shape=SHAPES, seed=st.integers(0, 10**6), density=st.floats(0, 1))
def test_a_mask_comes_out_of_its_bits_as_it_went_in(
    shape: tuple[int, ...], seed: int, density: float
) -> None:
    mask = torch.rand(shape, generator=torch.Generator().manual_seed(seed)) < density
    bits = pack(mask)
    assert bits.dtype == torch.uint8 and bits.shape == (math.ceil(math.prod(shape) / 8),)
    back = unpack(bits, shape)
    assert back.dtype == torch.bool and back.shape == shape
    assert torch.equal(back, mask)
    assert torch.equal(unpacked(packed(mask)), mask)


def test_the_first_flag_is_the_highest_bit() -> None:
    mask = torch.tensor([[True, False, True], [False, False, False], [False, True, True]])
    assert pack(mask).tolist() == [0b10100001, 0b10000000]


def test_a_mask_with_other_strides_is_packed_by_index() -> None:
    torch.manual_seed(0)
    mask = torch.rand(5, 7) < 0.5
    assert torch.equal(pack(mask.t()), pack(mask.t().contiguous()))
    channels_last = (torch.rand(2, 3, 4, 4) < 0.5).contiguous(memory_format=torch.channels_last)
    assert torch.equal(unpack(pack(channels_last), (2, 3, 4, 4)), channels_last)


def test_either_ors_of_bits_are_those_of_masks() -> None:
    torch.manual_seed(0)
    one, other = (torch.rand(37) < 0.3 for _ in range(2))
    assert torch.equal(unpack(pack(one) | pack(other), (37,)), one | other)


def test_a_checkpoint_takes_an_eighth_of_a_byte_a_weight() -> None:
    torch.manual_seed(0)
    saved = packed(torch.rand(512, 512) < 0.1)
    assert saved["shape"] == [512, 512]
    assert saved["bits"].numel() * saved["bits"].element_size() == 512 * 512 // 8
    file = io.BytesIO()
    torch.save(saved, file)
    assert file.tell() < 512 * 512 / 8 + 4096
    file.seek(0)
    assert torch.equal(unpacked(torch.load(file, weights_only=True)), unpacked(saved))


def test_what_is_unpacked_can_be_written_to() -> None:
    mask = unpack(pack(torch.zeros(9, dtype=torch.bool)), (9,))
    mask[3] = True
    assert mask.sum() == 1


@pytest.mark.parametrize(
    "bits",
    [
        torch.zeros(2, dtype=torch.uint8),
        torch.zeros(4, dtype=torch.uint8),
        torch.zeros(1, 3, dtype=torch.uint8),
        torch.zeros(3, dtype=torch.int32),
        torch.zeros((), dtype=torch.uint8),
    ],
)
def test_bits_that_do_not_fit_are_refused(bits: torch.Tensor) -> None:
    with pytest.raises(ValueError, match=r"a packed mask of shape \(4, 5\) is 3 bytes, and this"):
        unpack(bits, (4, 5))
