"""Tells the builder of these pages that docstrings say `Example:` where it knows `Examples:`."""

import re
from typing import Any

import griffe


class Examples(griffe.Extension):
    """Reads `Example:` as the section of examples, so that their code is shown as code."""

    def on_object(self, *, obj: griffe.Object, **kwargs: Any) -> None:
        """Rename the section of an object."""
        if obj.docstring is not None:
            text = obj.docstring.value
            obj.docstring.value = re.sub(r"^(\s*)Example:$", r"\1Examples:", text, flags=re.M)
