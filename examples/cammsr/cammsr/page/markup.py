"""HTML from functions: what is not markup already is escaped, so data cannot become a tag."""

from __future__ import annotations

import html
from collections.abc import Sequence
from pathlib import Path

from cammsr.titles import CONTROL

__all__ = ["Markup", "command", "document", "element", "note", "table"]

STYLE = Path(__file__).with_name("style.css")
POLICY = "default-src 'none'; style-src 'unsafe-inline'"  # a browser loads and runs nothing


class Markup(str):
    """Text that is HTML already."""

    __slots__ = ()


def element(name: str, *children: str, **attributes: str) -> Markup:
    """``<name attributes>children</name>``; ``class_`` is class, and ``aria_label`` aria-label."""
    given = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{_escape(value)}"'
        for key, value in attributes.items()
    )
    inside = "".join(child if isinstance(child, Markup) else _escape(child) for child in children)
    return Markup(f"<{name}{given}>{inside}</{name}>")


def table(
    caption: str,
    head: Sequence[str],
    rows: Sequence[Sequence[str]],
    classes: Sequence[str] | None = None,
) -> Markup:
    """A table that scrolls where it is wider than the page; the first cell names its row."""
    columns = (element("th", cell, scope="col") for cell in head)
    body = [
        element(
            "tr",
            element("th", row[0], scope="row"),
            *(element("td", cell) for cell in row[1:]),
            **({"class_": name} if name else {}),
        )
        for row, name in zip(rows, classes or [""] * len(rows), strict=True)
    ]
    whole = element(
        "table",
        element("caption", element("span", caption)),
        element("thead", element("tr", *columns)),
        element("tbody", *(Markup(f"\n{row}") for row in body)),
    )
    return element("div", whole, class_="scroll", role="region", aria_label=caption, tabindex="0")


def note(*children: str) -> Markup:
    """A remark; its first letter is made a capital."""
    first, *others = children
    if not isinstance(first, Markup):
        first = first[:1].upper() + first[1:]
    return element("p", first, *others, class_="note")


def command(text: str) -> Markup:
    """Something to type."""
    return element("code", text)


def _section(name: str, title: str, *children: str) -> Markup:
    """A part of the page, which the contents at the top lead to."""
    heading = element("h2", title, id=f"{name}-title")
    return element(
        "section",
        heading,
        *(Markup(f"\n{child}") if isinstance(child, Markup) else child for child in children),
        id=name,
        aria_labelledby=f"{name}-title",
    )


def document(title: str, lead: str, sections: Sequence[tuple[str, str, Sequence[str]]]) -> str:
    """A whole page of (name, title, parts), with its style in it and its contents before it."""
    links = [element("li", element("a", heading, href=f"#{name}")) for name, heading, _ in sections]
    parts = [_section(name, heading, *children) for name, heading, children in sections]
    head = element(
        "head",
        Markup('<meta charset="utf-8">\n'),
        Markup(f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">\n'),
        Markup('<meta name="viewport" content="width=device-width, initial-scale=1">\n'),
        element("title", title),
        element("style", Markup("\n" + STYLE.read_text(encoding="utf-8"))),
    )
    body = element(
        "body",
        element("header", element("h1", title), element("p", lead)),
        element("nav", element("ul", *links), aria_label="Contents"),
        element("main", *(Markup(f"\n{part}\n") for part in parts)),
    )
    return f"<!DOCTYPE html>\n{element('html', head, Markup(chr(10)), body, lang='en')}\n"


def _escape(text: str) -> str:
    return html.escape(CONTROL.sub(" ", text))
