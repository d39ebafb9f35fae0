"""The embedded dataset: a generated shop in the dataset folder's format, without any download.

:mod:`cammsr.shop` tells what is planted: in a third of the categories the text says what users
take next, in a third the image, in a third only both together. Here users walk through that shop,
and what is known of its items is written down:

* text and image features are random linear maps of (what the modality shows, the category) plus
  noise; the category shows faintly, in a modality that does not drive it more faintly still;
* some items lack the image, some the text (none lacks both), and some the category.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Generator, Tensor
from torch.nn.functional import one_hot

from cammsr.dataset import UNKNOWN, Dataset, write_folder
from cammsr.shop import (
    CATEGORIES,
    DRIVERS,
    MEMORY,
    NUM_ITEMS,
    Oracle,
    Shop,
    draw_directions,
    draw_signs,
    driver,
    item_titles,
    oracle,
    plant,
    wishes,
)

__all__ = ["Oracle", "oracle", "write_catalogue"]

WIDTHS = {"text": 48, "image": 64}
SHORTEST = 5  # interactions of a user
CLEAR = 0.3  # how strongly a modality that drives a category shows it
FAINT = 0.05  # how strongly the one that does not
NOISE = 0.3  # standard deviation of the features' noise
DAY = 86_400


def write_catalogue(
    path: str | Path,
    *,
    seed: int = 0,
    num_users: int = 2400,
    num_items: int = NUM_ITEMS,
    mean_length: float = 9.0,
    without_image: float = 0.10,
    without_text: float = 0.05,
    without_category: float = 0.05,
) -> None:
    """Write a generated dataset folder; the same arguments write the same values.

    Args:
        path: the folder to write.
        seed: the seed of everything that is drawn.
        num_users: users, each with at least five interactions.
        num_items: items, shared evenly by the nine categories.
        mean_length: the mean number of interactions of a user.
        without_image: the share of items whose image is absent.
        without_text: the share of items whose text is absent.
        without_category: the share of items whose category is unknown.
    """
    shop = plant(seed=seed, num_items=num_items)
    generator = torch.Generator().manual_seed(seed + 1)
    lengths = _draw_lengths(num_users, mean_length, generator)
    walks, days = _draw_walks(shop, lengths, generator)
    taken = torch.arange(walks.shape[1]) < lengths[:, None]  # (U, longest)

    features = {name: _draw_features(shop, name, generator) for name in WIDTHS}
    order = torch.randperm(num_items, generator=generator)
    images, texts = round(without_image * num_items), round(without_text * num_items)
    features["image"][order[:images]] = 0
    features["text"][order[images : images + texts]] = 0
    unknown = torch.randperm(num_items, generator=generator)[: round(without_category * num_items)]
    category = shop.category.index_fill(0, unknown, UNKNOWN)

    dataset = Dataset(
        name=Path(path).name,
        user_ids=taken.nonzero()[:, 0],
        item_ids=walks[taken],
        timestamps=1_600_000_000 + DAY * days[taken],
        features=features,
        categories=CATEGORIES,
        labels=category[:, None] == torch.arange(len(CATEGORIES)),
        category=category,
        titles=item_titles(shop),
    )
    write_folder(dataset, path)


def _draw_lengths(num_users: int, mean_length: float, generator: Generator) -> Tensor:  # (U,)
    if mean_length < SHORTEST:
        raise ValueError(f"Expected mean_length to be at least {SHORTEST}, got {mean_length}.")
    more = torch.full((num_users,), mean_length - SHORTEST)
    return SHORTEST + torch.poisson(more, generator=generator).long()


def _draw_walks(shop: Shop, lengths: Tensor, generator: Generator) -> tuple[Tensor, Tensor]:
    """Every user's items and their days, (U, longest); beyond a user's length they do not count."""
    num_users, longest = len(lengths), int(lengths.max())
    smallest = len(shop.category) // len(CATEGORIES)
    if longest >= smallest:
        raise ValueError(
            f"A user takes {longest} items, which can sell out a category of {smallest}. "
            f"Expected num_items of more than {(longest + 1) * len(CATEGORIES)} or shorter walks."
        )
    wish, category = _draw_tastes(num_users, generator)
    seen = torch.zeros(num_users, len(shop.category), dtype=torch.bool)
    walks = torch.zeros(num_users, longest, dtype=torch.int64)
    for step in range(longest):
        chances = shop.chances(wish, category, seen)
        item = torch.multinomial(chances, 1, generator=generator)  # (U, 1)
        seen.scatter_(1, item, True)
        walks[:, step] = item[:, 0]
        category = shop.category[walks[:, step]]
        memory = MEMORY if step > 0 else 0.0  # the taste decides on the first item only
        wish = memory * wish + shop.wishes(walks[:, step])
    days = torch.randint(1, 30, walks.shape, generator=generator).cumsum(1)
    return walks, days


def _draw_tastes(num_users: int, generator: Generator) -> tuple[Tensor, Tensor]:
    """The wish (U, 6) and the category (U,) of each user's ideal item."""
    category = torch.randint(0, len(CATEGORIES), (num_users,), generator=generator)
    wording, look = (draw_directions(num_users, generator) for _ in range(2))
    return wishes(category, wording, look, draw_signs(num_users, generator)), category


def _draw_features(shop: Shop, modality: str, generator: Generator) -> Tensor:  # (V, D_m)
    """A random linear map of what the modality shows and of the category, plus noise."""
    shown = torch.cat([shop.wording, shop.tone], dim=1) if modality == "text" else shop.look
    other = "image" if modality == "text" else "text"
    faint = driver(shop.category) == DRIVERS.index(other)
    strength = torch.where(faint, FAINT, CLEAR)[:, None]
    hidden = torch.cat([shown, strength * one_hot(shop.category, len(CATEGORIES))], dim=1)
    shape = hidden.shape[1], WIDTHS[modality]
    noise = NOISE * torch.randn(len(hidden), WIDTHS[modality], generator=generator)
    return hidden @ torch.randn(shape, generator=generator) + noise
