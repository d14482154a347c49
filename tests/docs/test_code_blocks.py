"""Every Python block of the documentation runs, page by page, and does what the page says."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.code_blocks import python_blocks, run_blocks

DOCS = Path(__file__).parent.parent.parent / "docs"
PAGES = sorted(str(page.relative_to(DOCS)) for page in DOCS.rglob("*.md"))
WITH_CODE = [page for page in PAGES if python_blocks((DOCS / page).read_text())]
ON_THE_TUTORIALS_LOOP = ("probes/", "treatments/", "how-to/")
"""Their pages say that `model`, `optimizer` and `train` are the tutorial's."""
NEEDED = {
    "how-to/accelerate.md": ("accelerate",),
    "how-to/lightning.md": ("lightning",),
    "how-to/sinks.md": ("matplotlib",),
    "how-to/sweeps.md": ("pandas",),
    "how-to/hugging-face.md": ("transformers", "accelerate"),
    "how-to/stable-baselines3.md": ("stable_baselines3",),
}


def steps(names: dict[str, Any], tag: str) -> list[int]:
    return names["watch"].history.series(tag)[0].tolist()


def latest(names: dict[str, Any], tag: str) -> Any:
    return names["watch"].history.latest(tag)


SAID: dict[str, Callable[[dict[str, Any]], bool]] = {
    "tutorial.md": lambda n: list(Path("runs/tutorial").glob("events*")) != [],
    "how-to/accelerate.md": lambda n: n["watch"].step == 10,
    "how-to/compile.md": lambda n: "already run" in str(n["told"][0].message),
    "how-to/resume.md": lambda n: steps(n, "dormancy/tau=0.1") == [1, 50, 100, 150, 200],
    "how-to/stable-baselines3.md": lambda n: n["again"].watch.step > n["callback"].watch.step,
    "probes/repetition.md": lambda n: latest(n, "repetition/fraction") == 1.0,
    "treatments/index.md": lambda n: steps(n, "redo/recycled") == [20, 40],
    "treatments/plasticity-injection.md": lambda n: n["agent"][2].injected,
}
"""What the text says of the names that a page's code leaves."""


def forget_accelerate() -> None:
    """Accelerate keeps the settings of a process's first accelerator, maybe another test's."""
    state = pytest.importorskip("accelerate.state")
    for kept in (state.AcceleratorState, state.GradientState, state.PartialState):
        kept._reset_state()


@pytest.mark.parametrize("page", WITH_CODE)
# Lightning asks torch's pytree in a way that newer versions of torch call outdated.
@pytest.mark.filterwarnings(r"ignore:.*isinstance\(treespec, LeafSpec\).*")
# Its advice to give the loaders more workers does not fit data of a few rows.
@pytest.mark.filterwarnings("ignore:The '.*_dataloader' does not have many workers")
def test_the_blocks_of_a_page_run_one_after_the_other(
    page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for package in NEEDED.get(page, ()):
        pytest.importorskip(package)
    if "accelerate" in NEEDED.get(page, ()):
        forget_accelerate()
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    names: dict[str, object] = {"__name__": "page"}
    if page.startswith(ON_THE_TUTORIALS_LOOP):
        run_blocks(python_blocks((DOCS / "tutorial.md").read_text())[:1], "tutorial.md", names)
    run_blocks(python_blocks((DOCS / page).read_text()), page, names)
    assert page not in SAID or SAID[page](names)


def test_every_page_of_a_probe_or_treatment_shows_code() -> None:
    about = [
        page
        for page in PAGES
        if page.startswith(("probes/", "treatments/")) and not page.endswith("index.md")
    ]
    assert about
    assert [page for page in about if page not in WITH_CODE] == []


def test_no_block_hides_behind_another_spelling() -> None:
    fences = [
        (page, line)
        for page in PAGES
        for line in (DOCS / page).read_text().splitlines()
        if line.lstrip().startswith(("```py", "~~~", "``` py")) and line != "```python"
    ]
    assert fences == []
