"""A page as a test reads it: tags in order, tables by caption, texts of pictures."""

from __future__ import annotations

import re
from html.parser import HTMLParser

__all__ = ["Page"]

VOID = ("meta",)


class Page(HTMLParser):
    """Parses a page, and raises where a tag is not closed by its own end."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.source = text
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str]]] = []
        self.texts: list[tuple[str, str]] = []  # (tag, text)
        self.tables: dict[str, list[list[str]]] = {}  # by caption, the head first
        self.bold: list[str] = []
        self._rows: list[list[str]] = []
        self._caption = ""
        self.feed(text)
        self.close()
        assert not self.open, f"not closed: {self.open}"

    def handle_starttag(self, tag, attrs):
        names = [name for name, _ in attrs]
        assert len(names) == len(set(names)), f"an attribute twice in <{tag}>"
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)
        if tag == "table":
            self._rows, self._caption = [], ""
        if tag == "tr":
            self._rows.append([])
        if tag in {"th", "td"}:
            self._rows[-1].append("")

    def handle_endtag(self, tag):
        assert self.open, f"</{tag}> closes nothing"
        assert self.open.pop() == tag, f"</{tag}> closes another tag"
        if tag == "table":
            assert self._caption not in self.tables
            self.tables[self._caption] = self._rows

    def handle_data(self, data):
        if self.open:
            self.texts.append((self.open[-1], data))
        if "caption" in self.open:
            self._caption += data
        elif {"th", "td"} & set(self.open):
            self._rows[-1][-1] += data
            if self.open[-1] == "strong":
                self.bold.append(data)

    @property
    def words(self) -> str:
        """All text that is shown."""
        return " ".join(text for tag, text in self.texts if tag != "style")

    def values(self, name: str) -> list[str]:
        """An attribute of all tags that have it."""
        return [attributes[name] for _, attributes in self.tags if name in attributes]

    def pictures(self) -> list[str]:
        """What is said of every picture."""
        return [attributes["aria-label"] for tag, attributes in self.tags if tag == "svg"]

    def links(self) -> list[str]:
        """All that an attribute or the style refers to."""
        every = [value for _, attributes in self.tags for value in attributes.values() if value]
        places = self.values("href") + self.values("src") + self.values("action")
        return places + [found for value in every for found in re.findall(r"url\(([^)]*)\)", value)]
