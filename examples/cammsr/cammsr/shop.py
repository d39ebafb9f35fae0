r"""The planted truth behind the generated catalogue, and the oracle that knows it.

**Items.** An item has a category, a *wording* :math:`t`, a *look* :math:`v` (both are directions in
three dimensions), a *tone* :math:`\tau` of plus or minus 1, and an appeal. Its text shows wording
and tone, its image shows the look.

**Wishes.** Each item leaves a wish for the next one. Which, the *driver* of its category says:

====== ================= =======================================================
driver the item's wish   in words
====== ================= =======================================================
text   the wording t     more of the same wording; the look only distracts
image  the look v        more of the same look; the wording only distracts
both   tone times look   the tone says: more of the same look, or of its opposite
====== ================= =======================================================

Under *both*, the tone alone says nothing about the next item, and the look alone leaves a coin toss
between its like and its opposite. Their product decides: no sum of a text score and an image score
can follow it.

**Users.** A user's wish is the sum of the wishes of all items so far, each step back counting
``MEMORY`` times as much. The first item follows from the user's *taste*: the wish of an ideal item
that the shop does not sell. Nothing is taken twice. At every step

1. the next category follows a sparse Markov chain: stay, or go to one of two others;
2. inside it, the chance of item j is proportional to
   :math:`\exp(sharpness \cdot \cos(wish, [t_j; v_j]) + appeal_j)`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Generator, Tensor
from torch.nn.functional import normalize, one_hot

from cammsr.dataset import Dataset
from cammsr.floors import last_item

__all__ = ["CATEGORIES", "DRIVERS", "NUM_ITEMS", "Oracle", "Shop", "driver", "oracle", "plant"]

CATEGORIES = ("Bowl", "Chair", "Clock", "Lamp", "Mirror", "Rug", "Shelf", "Table", "Vase")
DRIVERS = ("text", "image", "both")
NUM_ITEMS = 1600

LATENT = 3  # dimensions of a wording and of a look
SHARPNESS = 12.0  # how strictly users follow their wish
MEMORY = 0.5  # how much an item's wish counts one step later
STAY = 0.5  # the chance of staying in the category
APPEAL = 0.3  # standard deviation of the items' appeal
WORDS = {-1.0: ("Dark", "Deep", "Muted"), 1.0: ("Amber", "Clear", "Pale")}


@dataclass(frozen=True, eq=False)
class Shop:
    """What is true of each item, and where users go from each category."""

    category: Tensor  # (V,) int64
    wording: Tensor  # (V, 3) of length 1
    look: Tensor  # (V, 3) of length 1
    tone: Tensor  # (V, 1) plus or minus 1
    appeal: Tensor  # (V,)
    chain: Tensor  # (C, C) the chance of the next category, rows sum to 1

    def wishes(self, item: Tensor) -> Tensor:  # (B, 6)
        """The wishes that these items (B,) leave."""
        return wishes(self.category[item], self.wording[item], self.look[item], self.tone[item])

    def chances(self, wish: Tensor, category: Tensor, seen: Tensor) -> Tensor:
        """The exact chance of each item to be the next one.

        Args:
            wish: the user's wish (B, 6).
            category: the category of the last item (B,).
            seen: the items that the user has taken already, (B, V) bool.

        Returns:
            Chances (B, V); a row sums to 1 unless a category is sold out.
        """
        similarity = normalize(wish, dim=1) @ torch.cat([self.wording, self.look], dim=1).T
        weight = (SHARPNESS * similarity + self.appeal).exp().masked_fill(seen, 0)
        inside = one_hot(self.category, len(CATEGORIES)).to(weight.dtype)  # (V, C)
        total = (weight @ inside).clamp(min=1e-12)  # (B, C)
        return weight * (self.chain[category] / total)[:, self.category]


@dataclass(frozen=True, eq=False)
class Oracle:
    """A scorer that knows the truth: on average no model can do better."""

    shop: Shop

    def scores(self, items: Tensor, valid: Tensor) -> Tensor:
        """The exact chance of each item to be the next one, (B, V)."""
        shop = self.shop
        wish = torch.zeros(len(items), 2 * LATENT)
        seen = torch.zeros(len(items), len(shop.category), dtype=torch.bool)
        for item, real in zip(items.T, valid.T, strict=True):
            wish = torch.where(real[:, None], MEMORY * wish + shop.wishes(item), wish)
            seen[real, item[real]] = True
        return shop.chances(wish, shop.category[last_item(items, valid)], seen)


def driver(category: Tensor) -> Tensor:
    """The position in ``DRIVERS`` of each category's driver; each drives every third category."""
    return category % len(DRIVERS)


def wishes(
    category: Tensor,  # (N,)
    wording: Tensor,  # (N, 3)
    look: Tensor,  # (N, 3)
    tone: Tensor,  # (N, 1)
) -> Tensor:  # (N, 6)
    """The wording and the look that the next item should have, zero where it does not matter."""
    text, _, both = (driver(category)[:, None] == kind for kind in range(len(DRIVERS)))
    return torch.cat([wording * text, look * torch.where(both, tone, 1.0) * ~text], dim=1)


def plant(*, seed: int = 0, num_items: int = NUM_ITEMS) -> Shop:
    """Draw the truth of a shop; the same arguments give the same shop."""
    generator = torch.Generator().manual_seed(seed)
    return Shop(
        category=torch.randperm(num_items, generator=generator) % len(CATEGORIES),
        wording=draw_directions(num_items, generator),
        look=draw_directions(num_items, generator),
        tone=draw_signs(num_items, generator),
        appeal=APPEAL * torch.randn(num_items, generator=generator),
        chain=_draw_chain(generator),
    )


def oracle(dataset: Dataset, *, seed: int = 0, num_items: int = NUM_ITEMS) -> Oracle:
    """The oracle of a generated dataset, with the arguments that it was written with.

    Items are found by their titles, so it works after :func:`cammsr.dataset.k_core` too. There the
    oracle misses the items that were dropped from the histories.
    """
    shop = plant(seed=seed, num_items=num_items)
    position = {title: i for i, title in enumerate(item_titles(shop))}
    strange = [title for title in dataset.titles if title not in position]
    if strange:
        raise ValueError(
            f"'{strange[0]}' is not sold in the shop of seed {seed} with {num_items} items. "
            "Give the arguments that the catalogue was written with."
        )
    rows = torch.tensor([position[title] for title in dataset.titles])
    of_items = ("category", "wording", "look", "tone", "appeal")
    return Oracle(replace(shop, **{name: getattr(shop, name)[rows] for name in of_items}))


def item_titles(shop: Shop) -> tuple[str, ...]:
    """A word for the tone and the wording, the category, and a number within the category."""
    count = [0] * len(CATEGORIES)
    titles = []
    axes = shop.wording.abs().argmax(1).tolist()
    for category, tone, axis in zip(
        shop.category.tolist(), shop.tone[:, 0].tolist(), axes, strict=True
    ):
        count[category] += 1
        titles.append(f"{WORDS[tone][axis]} {CATEGORIES[category]} {count[category]}")
    return tuple(titles)


def draw_directions(count: int, generator: Generator) -> Tensor:  # (count, 3)
    """Vectors of length 1."""
    return normalize(torch.randn(count, LATENT, generator=generator), dim=1)


def draw_signs(count: int, generator: Generator) -> Tensor:  # (count, 1)
    """Plus or minus 1."""
    return 2.0 * torch.randint(0, 2, (count, 1), generator=generator) - 1


def _draw_chain(generator: Generator) -> Tensor:
    """Stay in the category, or go to one of the next two on a ring of random order."""
    ring = torch.randperm(len(CATEGORIES), generator=generator)
    chain = STAY * torch.eye(len(CATEGORIES))
    for step in (1, 2):
        chain[ring, ring.roll(step)] = (1 - STAY) / 2
    return chain
