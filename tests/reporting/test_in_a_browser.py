"""Report, comparison and ablations in a real browser: phone, dark mode, screen reader."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from signllm.experiments.ablation_files import write_table_files
from signllm.experiments.ablation_table import read_ablation_table
from signllm.metrics.hypotheses import Hypothesis, write_hypotheses_and_scores
from signllm.metrics.scores import score
from signllm.reporting import write_report
from signllm.reporting.compare import compare_runs
from signllm.reporting.compare_page import write_comparison

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no chromium on this machine: pages are not checked")

EXAMINE_PAGE = """() => {
  const luminance = (c) => {
    const [r, g, b] = c.match(/[\\d.]+/g).slice(0, 3).map((v) => v / 255)
      .map((v) => v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const background = (e) => {
    for (; e; e = e.parentElement) {
      const c = getComputedStyle(e).backgroundColor;
      if (!/rgba\\(.*, 0\\)|transparent/.test(c)) return c;
    }
    return 'rgb(255, 255, 255)';
  };
  const pale = [];
  const texts = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  for (let n; (n = texts.nextNode());) {
    const e = n.parentElement;
    if (!n.data.trim() || e.closest('svg') || !e.checkVisibility()) continue;
    const [a, b] = [luminance(getComputedStyle(e).color), luminance(background(e))];
    if ((Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05) < 4.5) pale.push(n.data.trim().slice(0, 40));
  }
  const all = (what) => [...document.querySelectorAll(what)];
  return {
    pale,
    wide: document.documentElement.scrollWidth > window.innerWidth,
    headings: all('h1,h2,h3,h4').map((h) => Number(h.tagName[1])),
    mute: all('img').filter((i) => !i.alt).length
      + all('svg').filter((s) => !s.hasAttribute('aria-hidden') && !s.getAttribute('aria-label')
        && !s.querySelector('title')).length,
    unscoped: all('th').filter((t) => !t.scope).length,
    language: document.documentElement.lang,
    main: all('main').length,
    title: document.title,
  };
}"""


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        yield browser
        browser.close()


def write_scores(run: Path, good: int, seed: int) -> Path:
    """Write a run with an evaluation and a logged loss."""
    references = ["heute regnet es im norden und osten", "morgen scheint die sonne im ganzen land"] * 6
    texts = [*references[:good], *["am abend schnee im norden und regen"] * (len(references) - good)]
    run.mkdir(parents=True)
    settings = {
        "sign_llm": {"language_model": {"path": "org/a-language-model"}},
        "training": {"seed": seed},
        "generation": {"language": "German"},
    }
    (run / "config.json").write_text(json.dumps({"stage": "finetune", "format": 1, "config": settings}))
    lines = [{"stage": "finetune", "step": n, "l_sim": 3.0 / n + seed / 10} for n in range(1, 9)]
    (run / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    hypotheses = [
        Hypothesis(place=n, id=f"v{n}", hypothesis=text, reference=references[n], characters=[], words=[])
        for n, text in enumerate(texts)
    ]
    write_hypotheses_and_scores(
        run, "dev", hypotheses, score(texts, references, bootstrap=50) | {"split": "dev"}
    )
    return run


@pytest.fixture(params=["report", "compare", "ablations"])
def page_file(request: pytest.FixtureRequest, demo_folder: Path, tmp_path: Path) -> Path:
    if request.param == "report":
        return write_report(demo_folder)
    cells = {("full", 0): 10, ("full", 1): 9, ("no_mmd", 0): 4, ("no_mmd", 1): 6}
    runs = [
        write_scores(tmp_path / name / f"seed-{seed}" / "finetune", good, seed)
        for (name, seed), good in cells.items()
    ]
    if request.param == "ablations":
        return write_table_files(read_ablation_table(tmp_path, "dev"), tmp_path)
    write_comparison(compare_runs(runs, "dev"), "dev", tmp_path / "runs.html")
    return tmp_path / "runs.html"


def test_pages_are_accessible_and_self_contained(browser: Any, page_file: Path, tmp_path: Path) -> None:
    for width, scheme in ((1200, "light"), (390, "dark")):
        page = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
        requests: list[str] = []
        messages: list[str] = []
        page.on("request", lambda request, requests=requests: requests.append(request.url))
        page.on("console", lambda message, messages=messages: messages.append(message.text))
        page.goto(page_file.resolve().as_uri())
        result = page.evaluate(EXAMINE_PAGE)
        page.close()
        assert messages == []
        assert [url for url in requests if not url.startswith(("file:", "data:"))] == []
        assert not result["wide"], f"{width} pixels"
        assert result["pale"] == []
        assert (result["mute"], result["unscoped"], result["main"]) == (0, 0, 1)
        assert result["language"] == "en"
        assert result["title"]
        levels = result["headings"]
        assert levels[0] == 1
        assert levels.count(1) == 1
        assert all(after - before <= 1 for before, after in pairwise(levels)), levels


def test_translations_are_marked_with_their_language_and_figures_with_their_split(tmp_path: Path) -> None:
    text = write_report(write_scores(tmp_path / "run", 8, 0)).read_text()
    assert re.search(r'<div lang="de">\s*<div class="scroll"><table', text)
    assert "BLEU-4, dev, phoenix2014t" in text
