"""Generated parts are up to date, versions agree, links lead somewhere."""

from __future__ import annotations

import importlib.util
import re
import tomllib
from pathlib import Path

import pytest
import yaml

import alloykit
from docs.pages import DOCS, ROOT

VERSION = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
ROOT_PAGES = ("README.md", "CONTRIBUTING.md", "SECURITY.md", "CHANGELOG.md")


@pytest.fixture(scope="module")
def generate():
    spec = importlib.util.spec_from_file_location("generate", DOCS / "generate.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_nothing_generated_is_stale(generate, capsys):
    assert generate.main(["--check"]) == 0, capsys.readouterr().out


def test_stale_parts_are_found_and_mended(generate, tmp_path, monkeypatch, capsys):
    (tmp_path / "docs").mkdir()
    (tmp_path / "README.md").write_text((ROOT / "README.md").read_text().replace("errors.py", "x"))
    monkeypatch.setattr(generate, "ROOT", tmp_path)
    assert generate.main(["--check"]) == 3  # README.md, and the two pages that are not there
    assert not (tmp_path / "docs" / "methods.md").exists()
    assert generate.main([]) == 0
    assert generate.main(["--check"]) == 0
    assert (tmp_path / "README.md").read_text() == (ROOT / "README.md").read_text()
    assert "stale: README.md" in capsys.readouterr().out


def test_every_key_of_a_study_is_explained(generate):
    page = generate.study_page()
    for model in (generate.Study, generate.MemberSpec, generate.DataSpec, generate.SplitSpec):
        for key in model.model_fields:
            assert re.search(rf"^\| `{key}` \|.*\| .+\. \|$", page, re.MULTILINE), key


def test_markers_are_needed_once(generate):
    with pytest.raises(SystemExit, match="once each"):
        generate.between_markers("no markers", "map", "text")


def test_the_change_log_begins_with_this_version():
    headings = re.findall(r"^## \[(.+?)\]", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert headings[0] == VERSION


def test_versions_agree():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert alloykit.__version__ == citation["version"] == VERSION


@pytest.mark.parametrize("name", ROOT_PAGES)
def test_relative_links_lead_somewhere(name: str):
    page = ROOT / name
    links = re.findall(r"\]\(([^)\s]+)\)", page.read_text())
    broken = [link for link in links if "://" not in link and not _leads_somewhere(page, link)]
    assert broken == []


def _leads_somewhere(page: Path, link: str) -> bool:
    file, _, anchor = link.partition("#")
    target = page.parent / file if file else page
    if not target.exists() or not anchor:
        return target.exists()
    text = target.read_text()
    explicit = re.findall(r"\{ #([\w-]+) \}", text)
    headings = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    implicit = [re.sub(r"[^\w -]", "", h).strip().lower().replace(" ", "-") for h in headings]
    return anchor in (*explicit, *implicit)
