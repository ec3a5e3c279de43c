"""For the generated Python reference: in this code, the comment above a field says what the field means."""

from __future__ import annotations

from typing import Any

import griffe


class FieldComments(griffe.Extension):
    """Makes the comment above a class's field the docstring of the field."""

    def on_attribute_instance(self, *, attr: griffe.Attribute, **_: Any) -> None:
        parent, line = attr.parent, attr.lineno
        if attr.docstring or line is None or parent is None or not parent.is_class:
            return
        source = attr.lines_collection[attr.filepath]  # type: ignore[index]
        first = line - 1
        while first > 0 and source[first - 1].lstrip().startswith("#"):
            first -= 1
        text = " ".join(comment.strip().lstrip("# ") for comment in source[first : line - 1])
        if text:
            attr.docstring = griffe.Docstring(text, lineno=first + 1, endlineno=line - 1, parent=attr)
