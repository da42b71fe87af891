"""The pages of the site: every link leads to a file there, and every page is in its contents."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[2]


@pytest.fixture
def site_pages() -> ModuleType:
    spec = importlib.util.spec_from_file_location("site_pages", ROOT / "scripts" / "site_pages.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def pages_in(contents: Any) -> list[str]:
    """The pages that a part of `nav` names."""
    if isinstance(contents, str):
        return [contents]
    parts = contents.values() if isinstance(contents, dict) else contents
    return [page for part in parts for page in pages_in(part)]


def test_gather__every_link_leads_to_a_file(site_pages: ModuleType, tmp_path: Path) -> None:
    site_pages.gather(tmp_path / "pages")
    links = [
        (page, link)
        for page in (tmp_path / "pages").rglob("*.md")
        for link in site_pages.LINK.findall(page.read_text(encoding="utf-8"))
    ]
    assert len(links) > 20
    assert [(page.name, link) for page, link in links if not (page.parent / link).is_file()] == []


def test_gather__readme_is_the_first_page_and_other_files_are_copied(
    site_pages: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    repository = tmp_path / "repository"
    (repository / "docs" / "images").mkdir(parents=True)
    (repository / "README.md").write_text("[a](docs/a.md#b) ![i](docs/images/i.png) [w](https://a.b/c.md) [s](#s)")
    (repository / "CONTRIBUTING.md").write_text("[r](README.md)")
    (repository / "docs" / "a.md").write_text("[r](../README.md) [c](../CONTRIBUTING.md) [e](../x/e.yaml)")
    (repository / "docs" / "images" / "i.png").write_bytes(b"png")
    (repository / "x").mkdir()
    (repository / "x" / "e.yaml").write_text("key: 1")
    monkeypatch.setattr(site_pages, "ROOT", repository)
    site_pages.gather(tmp_path / "pages")
    written = {
        path.relative_to(tmp_path / "pages").as_posix(): path.read_text()
        for path in (tmp_path / "pages").rglob("*.*")
        if path.is_file()
    }
    assert written == {
        "index.md": "[a](a.md#b) ![i](images/i.png) [w](https://a.b/c.md) [s](#s)",
        "contributing.md": "[r](index.md)",
        "a.md": "[r](index.md) [c](contributing.md) [e](repository/x/e.yaml)",
        "images/i.png": "png",
        "repository/x/e.yaml": "key: 1",
    }
    (repository / "docs" / "a.md").write_text("[gone](gone.md)")
    with pytest.raises(SystemExit, match=r"docs/a\.md: links to gone\.md, which is no file of the repository"):
        site_pages.gather(tmp_path / "pages")


def test_site__every_page_is_in_its_contents(site_pages: ModuleType) -> None:
    named = pages_in(yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))["nav"])
    docs = [path.relative_to(ROOT).as_posix() for path in (ROOT / "docs").rglob("*.md")]
    assert sorted(named) == sorted(site_pages.place(file) for file in [*site_pages.PLACES, *docs])
