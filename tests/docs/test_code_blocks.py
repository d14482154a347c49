"""Every Python block of the documentation runs, page by page."""

from pathlib import Path

import pytest
import torch

from tests.code_blocks import python_blocks, run_blocks

DOCS = Path(__file__).parent.parent.parent / "docs"
PAGES = sorted(str(page.relative_to(DOCS)) for page in DOCS.rglob("*.md"))
WITH_CODE = [page for page in PAGES if python_blocks((DOCS / page).read_text())]
ON_THE_TUTORIALS_LOOP = ("probes/", "treatments/", "how-to/")
"""Their pages say that `model`, `optimizer` and `train` are the tutorial's."""
NEEDED = {
    "how-to/lightning.md": ("lightning",),
    "how-to/hugging-face.md": ("transformers", "accelerate"),
    "how-to/stable-baselines3.md": ("stable_baselines3",),
}


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
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    names: dict[str, object] = {"__name__": "page"}
    if page.startswith(ON_THE_TUTORIALS_LOOP):
        run_blocks(python_blocks((DOCS / "tutorial.md").read_text())[:1], "tutorial.md", names)
    run_blocks(python_blocks((DOCS / page).read_text()), page, names)


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
