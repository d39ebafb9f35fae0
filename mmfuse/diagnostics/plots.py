"""Pictures of diagnostics; they need the ``plot`` extra."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from mmfuse.diagnostics.summary import CategoryContributions

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.image import AxesImage

__all__ = ["plot_contributions"]


def plot_contributions(
    by_category: CategoryContributions,
    *,
    modalities: Sequence[str],
    categories: Sequence[str] | None = None,
    ax: Axes | None = None,
) -> Axes:
    r"""Draw contributions by category: one row a category, one column a modality.

    A cell shows

    .. math::
        \mu_{cm} \pm \frac{\sigma_{cm}}{\sqrt{n_{cm}}}

    the mean and its standard error (for two rows or more), on a colour that tells the mean. The
    colours go from zero up, or, where a mean is negative, from red over white at zero to blue. A
    cell without data stays empty.

    Args:
        by_category: What :func:`contributions_by_category` returned.
        modalities: Names of the modalities, in their order.
        categories: Names of the categories; ``None`` means their numbers.
        ax: Where to draw; ``None`` means a new figure, high enough for its rows.

    Shape:
        - by_category: :math:`(C, M)` each

    Returns:
        The axes; their figure can be saved, and is the caller's to close.

    Raises:
        ValueError: If there are more or fewer names than rows or columns.
        ModuleNotFoundError: If matplotlib is not installed.

    Example:
        >>> from matplotlib.figure import Figure
        >>> mean, counts = torch.tensor([[0.7, 0.3]]), torch.tensor([[9, 9]])
        >>> by_category = CategoryContributions(mean, torch.tensor([[0.3, 0.1]]), counts)
        >>> ax = plot_contributions(
        ...     by_category, modalities=["text", "image"], ax=Figure().subplots()
        ... )
        >>> [text.get_text() for text in ax.texts]
        ['0.70 ± 0.10', '0.30 ± 0.03']
    """
    mean, std, counts = (part.detach().cpu().double() for part in by_category)
    num_categories, num_modalities = mean.shape
    if categories is None:
        categories = [str(number) for number in range(num_categories)]
    _check_names("categories", categories, num_categories)
    _check_names("modalities", modalities, num_modalities)
    if ax is None:
        ax = _new_axes(num_categories, num_modalities)
    image = _draw_cells(ax, mean.where(counts > 0, torch.nan))
    ax.set_xticks(range(num_modalities), modalities, parse_math=False)
    ax.set_yticks(range(num_categories), categories, parse_math=False)
    _write_cells(ax, image, mean, std, counts)
    ax.figure.colorbar(image, ax=ax, label="mean contribution")
    return ax


def _check_names(what: str, names: Sequence[str], number: int) -> None:
    if len(names) != number:
        raise ValueError(f"Expected {number} names of {what}, got {len(names)}.")


def _new_axes(num_categories: int, num_modalities: int) -> Axes:
    try:
        from matplotlib import pyplot as plt  # noqa: PLC0415
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "Expected matplotlib for plots, got none: pip install 'mmfuse[plot]'."
        ) from error
    size = (2.5 + 1.2 * num_modalities, 1.2 + 0.32 * num_categories)
    return plt.subplots(figsize=size, layout="constrained")[1]


def _draw_cells(ax: Axes, mean: Tensor) -> AxesImage:
    """Colours of the means; NaN stays empty."""
    known = mean[mean.isfinite()]
    highest = float(known.abs().max()) if known.any() else 1.0  # all zero: any scale will do
    signed = bool((known < 0).any())
    cmap, lowest = ("RdBu", -highest) if signed else ("viridis", 0.0)
    return ax.imshow(mean.numpy(), aspect="auto", cmap=cmap, vmin=lowest, vmax=highest)


def _write_cells(ax: Axes, image: AxesImage, mean: Tensor, std: Tensor, counts: Tensor) -> None:
    """Numbers in black or white, whichever reads better on the colour."""
    error = std / counts.sqrt()
    colours = torch.as_tensor(image.to_rgba(mean.numpy()))
    digits = max(0, 2 - math.ceil(math.log10(image.get_clim()[1])))  # two, of the largest mean
    light = colours[..., :3] @ colours.new_tensor([0.299, 0.587, 0.114]) > 0.5
    for row, column in (counts > 0).nonzero().tolist():
        text = f"{mean[row, column]:.{digits}f}"
        if counts[row, column] > 1:
            text += f" ± {error[row, column]:.{digits}f}"
        colour = "black" if light[row, column] else "white"
        ax.text(column, row, text, ha="center", va="center", color=colour, fontsize="small")
