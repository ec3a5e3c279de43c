"""What building the site needs besides MkDocs: what fields mean, from where this code says it, and a fix of tables."""

from __future__ import annotations

import re
from typing import Any

import griffe


class FieldComments(griffe.Extension):
    """Makes the comment above a class's field its docstring, and shows an option's default as that of its field."""

    def on_attribute_instance(self, *, attr: griffe.Attribute, **_: Any) -> None:
        parent, line = attr.parent, attr.lineno
        if attr.docstring or line is None or parent is None or not parent.is_class:
            return
        if isinstance(attr.value, griffe.ExprCall) and str(attr.value.function) == "option":
            attr.value = attr.value.arguments[0]
        source = attr.lines_collection[attr.filepath]  # type: ignore[index]
        first = line - 1
        while first > 0 and source[first - 1].lstrip().startswith("#"):
            first -= 1
        text = " ".join(comment.strip().lstrip("# ") for comment in source[first : line - 1])
        if text:
            attr.docstring = griffe.Docstring(text, lineno=first + 1, endlineno=line - 1, parent=attr)


def on_page_content(html: str, **_: Any) -> str:
    """A hook of MkDocs: in the code of a table GitHub needs a bar escaped, and Python-Markdown shows how it is."""
    return re.sub(r"<td.*?</td>", lambda cell: cell[0].replace(r"\|", "|"), html, flags=re.DOTALL)
