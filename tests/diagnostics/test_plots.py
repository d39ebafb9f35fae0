"""Tests for mmfuse.diagnostics.plots."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from unittest import mock

import pytest
import torch
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from mmfuse.diagnostics import CategoryContributions, plot_contributions

NAMES = ["text", "image"]


@pytest.fixture(autouse=True)
def close() -> Iterator[None]:
    yield
    plt.close("all")


def numbers(
    mean: list[list[float]], std: float = 0.3, counts: int | list[list[int]] = 9
) -> CategoryContributions:
    means = torch.tensor(mean)
    many = torch.tensor(counts).expand(means.shape)
    return CategoryContributions(means, torch.full_like(means, std), many)


def written(ax: Axes) -> dict[tuple[int, int], str]:
    """The text of each cell (row, column)."""
    return {
        (int(text.get_position()[1]), int(text.get_position()[0])): text.get_text()
        for text in ax.texts
    }


def ticks(ax: Axes) -> tuple[list[str], list[str]]:
    rows = [label.get_text() for label in ax.get_yticklabels()]
    return rows, [label.get_text() for label in ax.get_xticklabels()]


def unit(ax: Axes) -> str:
    """The label of the colour bar."""
    label: str = ax.figure.axes[-1].get_ylabel()
    return label


def colours(ax: Axes) -> Tensor:  # (C, M, 4)
    return torch.as_tensor(ax.images[0].to_rgba(ax.images[0].get_array()))


def test_cells_hold_mean_and_standard_error() -> None:
    ax = plot_contributions(numbers([[0.75, 0.25], [0.5, 0.125]]), modalities=NAMES)
    shown = torch.as_tensor(ax.images[0].get_array().filled(torch.nan))
    torch.testing.assert_close(shown.tolist(), [[0.75, 0.25], [0.5, 0.125]])
    assert written(ax) == {
        (0, 0): "0.75 ± 0.10",
        (0, 1): "0.25 ± 0.10",
        (1, 0): "0.50 ± 0.10",
        (1, 1): "0.12 ± 0.10",
    }


def test_rows_and_columns_have_names() -> None:
    by_category = numbers([[0.75, 0.25], [0.5, 0.125], [0.0, 1.0]])
    ax = plot_contributions(by_category, modalities=NAMES, categories=["hats", "$hoes$", "c_d"])
    assert ticks(ax) == (["hats", "$hoes$", "c_d"], NAMES)
    top, bottom = sorted(ax.get_ylim())
    assert ax.get_ylim() == (bottom, top) == (2.5, -0.5)  # the first row is on top
    ax.figure.canvas.draw()  # a dollar begins no formula
    numbered = plot_contributions(by_category, modalities=NAMES)
    assert ticks(numbered) == (["0", "1", "2"], NAMES)


def test_one_row_has_no_standard_error_and_none_has_no_cell() -> None:
    by_category = numbers([[0.75, 0.25], [0.5, 0.0]], counts=[[9, 1], [2, 0]])
    ax = plot_contributions(by_category, modalities=NAMES)
    assert written(ax) == {(0, 0): "0.75 ± 0.10", (0, 1): "0.25", (1, 0): "0.50 ± 0.21"}
    assert ax.images[0].get_array().mask.tolist() == [[False, False], [False, True]]
    assert colours(ax)[1, 1, 3] == 0  # transparent


def test_colours_go_from_zero_up() -> None:
    ax = plot_contributions(numbers([[0.75, 0.25]]), modalities=NAMES)
    assert ax.images[0].get_clim() == (0, 0.75)
    assert ax.images[0].get_cmap().name == "viridis"


def test_colours_of_signed_means_are_white_at_zero() -> None:
    ax = plot_contributions(numbers([[0.5, -0.75, 0.0]]), modalities=[*NAMES, "id"])
    assert ax.images[0].get_clim() == (-0.75, 0.75)
    (red, _, blue), (minus_red, _, minus_blue), zero = colours(ax)[0, :, :3]
    assert red < blue
    assert minus_red > minus_blue
    assert (zero > 0.95).all()
    assert written(ax)[0, 1] == "-0.75 ± 0.10"


def test_text_differs_from_its_ground() -> None:
    ax = plot_contributions(numbers([[1.0, 0.0]]), modalities=NAMES)
    assert [text.get_color() for text in ax.texts] == ["black", "white"]


@pytest.mark.parametrize(
    ("factor", "text"),
    [(0.1, "0.075 ± 0.010"), (1.0, "0.75 ± 0.10"), (10.0, "7.5 ± 1.0"), (1e3, "750 ± 100")],
)
def test_digits_fit_the_size_of_the_numbers(factor: float, text: str) -> None:
    by_category = numbers([[0.75 * factor, 0.0]], std=0.3 * factor)
    ax = plot_contributions(by_category, modalities=NAMES)
    assert written(ax)[0, 0] == text
    assert unit(ax) == "mean contribution"


@pytest.mark.parametrize(
    ("mean", "error", "text", "scale"),
    [
        (11.8, 0.25, "11.80 ± 0.25", ""),
        (99.96, 0.25, "99.96 ± 0.25", ""),
        (0.7, 0.0996, "0.70 ± 0.10", ""),
        (9876.0, 1.5, "9876.0 ± 1.5", ""),
        (1.2e-5, 3.4e-7, "1.200 ± 0.034", " (× 1e-5)"),
        (-1.2e-5, 1e-5, "-1.2 ± 1.0", " (× 1e-5)"),
        (1.25e6, 2e4, "1.250 ± 0.020", " (× 1e6)"),
        (9.96e5, 2e4, "0.996 ± 0.020", " (× 1e6)"),
        (0.5, 0.0, "0.50 ± 0.00", ""),
        (0.0, 3e-7, "0.0 ± 3.0", " (× 1e-7)"),
        (-1e-3, 0.25, "0.00 ± 0.25", ""),
        (0.75, 1e-12, "0.75000 ± 0.00000", ""),
    ],
)
def test_the_standard_error_has_two_digits(
    mean: float, error: float, text: str, scale: str
) -> None:
    by_category = CategoryContributions(
        torch.tensor([[mean]]).double(), torch.tensor([[3 * error]]), torch.tensor([[9]])
    )
    ax = plot_contributions(by_category, modalities=["text"])
    assert written(ax)[0, 0] == text
    assert unit(ax) == "mean contribution" + scale
    power = float(scale[4:-1] or 1)
    assert float(ax.images[0].get_array()[0, 0]) == pytest.approx(mean / power)


def test_the_smallest_standard_error_decides_and_without_any_the_largest_mean() -> None:
    means, std = torch.tensor([[25.0, 3.0]]), torch.tensor([[3.0, 0.36]])
    several = CategoryContributions(means, std, torch.tensor([[9, 9]]))
    ax = plot_contributions(several, modalities=NAMES)
    assert written(ax) == {(0, 0): "25.00 ± 1.00", (0, 1): "3.00 ± 0.12"}
    single = plot_contributions(several._replace(counts=torch.tensor([[1, 1]])), modalities=NAMES)
    assert written(single) == {(0, 0): "25", (0, 1): "3"}


@pytest.mark.parametrize("counts", [0, 3])
def test_nothing_to_show_can_be_drawn(counts: int) -> None:
    ax = plot_contributions(numbers([[0.0, 0.0]], std=0.0, counts=counts), modalities=NAMES)
    ax.figure.canvas.draw()
    assert written(ax) == ({(0, 0): "0.00 ± 0.00", (0, 1): "0.00 ± 0.00"} if counts else {})


def test_what_is_no_number_says_so() -> None:
    ax = plot_contributions(numbers([[float("nan"), 0.5]]), modalities=NAMES)
    ax.figure.canvas.draw()
    assert written(ax)[0, 0] == "nan ± 0.10"
    assert ax.images[0].get_clim() == (0, 0.5)


def test_many_categories_have_room() -> None:
    by_category = numbers([[0.1, 0.2, 0.3, 0.4]] * 20)
    ax = plot_contributions(by_category, modalities=["text", "image", "audio", "id"])
    ax.figure.canvas.draw()
    boxes = [text.get_window_extent() for text in ax.texts]
    assert len(boxes) == 80
    assert not any(a.overlaps(b) for i, a in enumerate(boxes) for b in boxes[:i])


def test_axes_of_the_caller_are_used() -> None:
    figure = Figure()
    left, right = figure.subplots(1, 2)
    ax = plot_contributions(numbers([[0.75, 0.25]]), modalities=NAMES, ax=right)
    assert ax is right
    assert not left.images
    assert len(figure.axes) == 3  # the colour bar
    assert figure.axes[-1].get_ylabel() == "mean contribution"
    assert not plt.get_fignums()


def test_tensors_with_a_graph_and_of_half_precision_are_drawn() -> None:
    mean = torch.tensor([[0.75, 0.25]], dtype=torch.bfloat16, requires_grad=True)
    by_category = CategoryContributions(mean, 0.4 * mean, torch.tensor([[9, 9]]))
    ax = plot_contributions(by_category, modalities=NAMES)
    assert written(ax) == {(0, 0): "0.750 ± 0.100", (0, 1): "0.250 ± 0.033"}


# -- errors ----------------------------------------------------------------------------------------


def test_rejects_a_wrong_number_of_names() -> None:
    by_category = numbers([[0.75, 0.25]])
    with pytest.raises(ValueError, match=r"Expected 2 names of modalities, got 1\."):
        plot_contributions(by_category, modalities=["text"])
    with pytest.raises(ValueError, match=r"Expected 1 names of categories, got 2\."):
        plot_contributions(by_category, modalities=NAMES, categories=["hats", "shoes"])


def test_rejects_what_is_no_summary() -> None:
    message = r"by_category as CategoryContributions, as .* returns, got Tensor\."
    with pytest.raises(ValueError, match=message):
        plot_contributions(torch.ones(1, 2), modalities=NAMES)


def test_without_matplotlib_the_error_names_the_extra() -> None:
    with (
        mock.patch.dict(sys.modules, {"matplotlib": None}),
        pytest.raises(ModuleNotFoundError, match=r"matplotlib .* pip install 'mmfuse\[plot\]'\."),
    ):
        plot_contributions(numbers([[0.75, 0.25]]), modalities=NAMES)
