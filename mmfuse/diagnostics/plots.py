"""Pictures of diagnostics; they need the ``plot`` extra."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
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
    smallest standard error has two significant digits, as long as the largest number has not more
    than five; without any error, the largest mean has two. Where the numbers are very large or
    small, all are divided by one power of ten, which stands at the colour bar. The colours go from
    zero up, or, where a mean is negative, from red over white at zero to blue. A cell without data
    stays empty.

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
        ValueError: If ``by_category`` is of another kind, or there are more or fewer names than
            rows or columns.
        ModuleNotFoundError: If matplotlib is not installed.

    Example:
        >>> from matplotlib.figure import Figure
        >>> mean, counts = torch.tensor([[0.7, 0.3]]), torch.tensor([[9, 9]])
        >>> by_category = CategoryContributions(mean, torch.tensor([[0.3, 0.1]]), counts)
        >>> ax = plot_contributions(
        ...     by_category, modalities=["text", "image"], ax=Figure().subplots()
        ... )
        >>> [text.get_text() for text in ax.texts]
        ['0.700 ± 0.100', '0.300 ± 0.033']
    """
    _check_kind(by_category)
    mean, std, counts = (part.detach().cpu().double() for part in by_category)
    num_categories, num_modalities = mean.shape
    if categories is None:
        categories = [str(number) for number in range(num_categories)]
    _check_names("categories", categories, num_categories)
    _check_names("modalities", modalities, num_modalities)
    if ax is None:
        ax = _new_axes(num_categories, num_modalities)
    mean = mean.where(counts > 0, torch.nan)
    error = (std / counts.sqrt()).where(counts > 1, torch.nan)
    power, digits = _precision(mean, error)
    mean, error = mean / 10.0**power, error / 10.0**power
    image = _draw_cells(ax, mean)
    ax.set_xticks(range(num_modalities), modalities, parse_math=False)
    ax.set_yticks(range(num_categories), categories, parse_math=False)
    texts = {
        (row, column): f"{mean[row, column]:z.{digits}f}"
        + (f" ± {error[row, column]:.{digits}f}" if counts[row, column] > 1 else "")
        for row, column in (counts > 0).nonzero().tolist()
    }
    _write_cells(ax, image, mean, texts)
    unit = f" (× 1e{power})" if power else ""
    ax.figure.colorbar(image, ax=ax, label="mean contribution" + unit)
    return ax


def _check_kind(by_category: object) -> None:
    if not isinstance(by_category, CategoryContributions):
        raise ValueError(
            "Expected by_category as CategoryContributions, as contributions_by_category returns, "
            f"got {type(by_category).__name__}."
        )


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


def _precision(mean: Tensor, error: Tensor) -> tuple[int, int]:
    """The power of ten to divide by, and the digits after the point that are then written."""
    errors = error[error.isfinite() & (error > 0)]
    sizes = torch.cat([mean[mean.isfinite()].abs(), errors])
    if not sizes.any():
        return 0, 2
    largest = _exponent(float(sizes.max()))
    power = largest if largest < -2 or largest > 3 else 0
    last = _exponent(float(errors.min())) if len(errors) else largest
    return power, max(0, min(1 - last, 4 - largest) + power)


def _exponent(value: float) -> int:
    """The power of ten of the first of two significant digits."""
    return int(f"{value:.1e}".split("e")[1])


def _draw_cells(ax: Axes, mean: Tensor) -> AxesImage:
    """Colours of the means; NaN stays empty."""
    known = mean[mean.isfinite()]
    highest = float(known.abs().max()) if known.any() else 1.0  # all zero: any scale will do
    signed = bool((known < 0).any())
    cmap, lowest = ("RdBu", -highest) if signed else ("viridis", 0.0)
    return ax.imshow(mean.numpy(), aspect="auto", cmap=cmap, vmin=lowest, vmax=highest)


def _write_cells(
    ax: Axes, image: AxesImage, mean: Tensor, texts: Mapping[tuple[int, int], str]
) -> None:
    """Texts in black or white, whichever reads better on the colour."""
    colours = torch.as_tensor(image.to_rgba(mean.numpy()))
    light = colours[..., :3] @ colours.new_tensor([0.299, 0.587, 0.114]) > 0.5
    for (row, column), text in texts.items():
        colour = "black" if light[row, column] else "white"
        ax.text(column, row, text, ha="center", va="center", color=colour, fontsize="small")
