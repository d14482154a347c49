"""The picture shows the numbers: compared pixel by pixel with naive loops."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dynamo_probe.sinks.heatmap import MISSING, WIDTH, LayerFractions, colours, draw


def lightness(colour) -> float:
    """Return CIE 1976 L* of an sRGB colour (IEC 61966-2-1)."""
    linear = [
        c / 255 / 12.92 if c / 255 <= 0.04045 else ((c / 255 + 0.055) / 1.055) ** 2.4
        for c in map(float, colour)
    ]
    luminance = 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
    return 116 * np.cbrt(luminance) - 16 if luminance > 216 / 24389 else luminance * 24389 / 27


def test_the_scale_grows_evenly_lighter_so_that_it_reads_without_hue():
    scale = [lightness(colour) for colour in colours(np.linspace(0, 1, 101))]
    steps = np.diff(scale)
    assert steps.min() > 0
    straight = np.linspace(scale[0], scale[-1], 101)
    assert np.abs(scale - straight).max() < 3
    assert scale[-1] - scale[0] > 75


def test_what_was_not_read_is_grey_and_like_no_fraction():
    painted = colours(np.array([np.nan, 0.0, 1.0]))
    assert tuple(painted[0]) == MISSING
    distance = np.abs(colours(np.linspace(0, 1, 1001)).astype(int) - np.array(MISSING)).max(axis=1)
    assert distance.min() > 40


def test_the_ends_of_the_scale_are_held():
    values = np.array([-1.0, 0.0, 1.0, 2.0, -np.inf, np.inf])
    painted = colours(values)
    assert (painted[[0, 4]] == painted[1]).all()
    assert (painted[[3, 5]] == painted[2]).all()


@settings(max_examples=10)
@given(rows=st.integers(1, 40), columns=st.integers(1, 300), seed=st.integers(0, 2**32 - 1))
def test_every_pixel_of_the_area_has_the_colour_of_its_cell(rows, columns, seed):
    fractions = np.random.default_rng(seed).random((rows, columns))
    fractions[fractions > 0.9] = np.nan
    drawn = draw(fractions, [f"fc{n}" for n in range(rows)], range(1, columns + 1), "title")
    cells = colours(fractions)
    naive = np.empty((rows * drawn.row_height, WIDTH, 3), np.uint8)
    for x in range(WIDTH):
        # Cell c begins at c / columns of the width; of a pixel its left edge counts.
        cell = max(c for c in range(columns) if c * WIDTH <= x * columns)
        for row in range(rows):
            for y in range(row * drawn.row_height, (row + 1) * drawn.row_height):
                naive[y, x] = cells[row, cell]
    area = drawn.pixels[drawn.top : drawn.top + naive.shape[0], drawn.left : drawn.left + WIDTH]
    np.testing.assert_array_equal(area, naive)


@pytest.mark.parametrize(("layers", "readings"), [(1, 1), (3, 5), (24, 256), (150, 10), (1000, 2)])
def test_the_picture_has_a_readable_size(layers, readings):
    names = [f"module.backbone.encoder.layers.{n}.feed_forward.linear1" for n in range(layers)]
    height, width, channels = draw(
        np.zeros((layers, readings)), names, range(readings), "Dormant fraction by layer"
    ).pixels.shape
    assert channels == 3
    assert 400 <= width <= 900
    assert height <= 600 or layers > 200


def test_names_are_written_beside_their_rows():
    with_name = draw(np.zeros((2, 1)), ["aaaa", "aaaa"], [1], "t")
    without = draw(np.zeros((2, 1)), ["aaaa", "    "], [1], "t")
    assert with_name.left >= without.left
    labels = with_name.pixels[:, : with_name.left]
    first = slice(with_name.top, with_name.top + with_name.row_height)
    second = slice(first.stop, first.stop + with_name.row_height)
    assert (labels[first] < 100).any() and (labels[second] < 100).any()
    np.testing.assert_array_equal(labels[first], labels[second])


def test_names_beyond_the_font_do_not_fail():
    draw(np.zeros((1, 1)), ["层.ü"], [1], "t")


@pytest.mark.parametrize(
    ("shape", "layers", "updates"), [((2, 3), 2, 2), ((0, 3), 0, 3), ((1, 0), 1, 0)]
)
def test_a_matrix_that_does_not_fit_its_labels_is_refused(shape, layers, updates):
    with pytest.raises(ValueError, match="give one row for each"):
        draw(np.zeros(shape), ["a"] * layers, range(updates), "t")


def test_layers_keep_the_order_in_which_they_came_and_gaps_are_nan():
    fractions = LayerFractions()
    fractions.add(10, {"fc2": 0.5, "fc1": 0.25})
    fractions.add(20, {"fc1": 0.75, "conv": 1.0})
    matrix, layers, updates = fractions.matrix()
    assert layers == ["fc2", "fc1", "conv"] and updates == [10, 20]
    np.testing.assert_array_equal(matrix, [[0.5, np.nan], [0.25, 0.75], [np.nan, 1.0]])


def test_columns_are_bounded_and_cover_the_run():
    fractions = LayerFractions(readings=8)
    for update in range(1, 101):
        fractions.add(update, {"fc": update / 100})
    matrix, _, updates = fractions.matrix()
    assert updates == [1, 17, 33, 49, 65, 81, 97, 100]
    assert matrix[0].tolist() == [update / 100 for update in updates]


def test_what_came_after_a_resumed_update_is_forgotten():
    fractions = LayerFractions()
    for update in (10, 20, 30):
        fractions.add(update, {"fc": 0.1} if update < 30 else {"fc": 0.2, "late": 0.3})
    fractions.forget_after(20)
    fractions.add(25, {"fc": 0.4})
    matrix, layers, updates = fractions.matrix()
    assert (layers, updates) == (["fc"], [10, 20, 25])
    assert matrix.tolist() == [[0.1, 0.1, 0.4]]
