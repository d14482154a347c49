"""Python code in Markdown, found and run: the README's and that of the documentation."""

import re


def python_blocks(text: str) -> list[str]:
    """Return what stands in the ```python fences of a page, in order."""
    return re.findall(r"^```python\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)


def run_blocks(blocks: list[str], where: str, names: dict[str, object] | None = None) -> dict:
    """Run blocks one after the other in one namespace, and return it.

    Args:
        blocks: the code.
        where: the page, for tracebacks.
        names: what is known before; None starts with nothing.
    """
    namespace = {} if names is None else names
    for number, block in enumerate(blocks, 1):
        exec(compile(block, f"{where}, block {number}", "exec"), namespace)
    return namespace
