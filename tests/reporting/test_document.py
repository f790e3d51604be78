"""The complete page: self-contained, safe against its content, and rendered by a real browser."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import pytest
from PIL import Image

from signllm.errors import UsageError
from signllm.reporting import write_report
from signllm.reporting.tables import score_table

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


class Page(HTMLParser):
    """Collects elements, and whether every one is closed in its turn."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.text: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in ("meta", "img", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text.append(data)

    def titles(self) -> list[str]:
        return [attributes["id"] or "" for name, attributes in self.elements if name == "section"]


def report_page(folder: Path) -> Page:
    page = Page(write_report(folder).read_text(encoding="utf-8"))
    assert page.open == []
    return page


def test_a_demo_shows_everything(demo_folder: Path) -> None:
    page = report_page(demo_folder)
    kinds = [title.split("-")[0] for title in page.titles()]
    assert kinds == [
        "result",
        "videos",
        "sentences",
        "scores",
        "scores",
        "stages",
        "stages",
        "stages",
        "details",
    ]
    text = " ".join(page.text)
    for expected in (
        "43.7",
        "91.3",
        "9.4",
        "19.9",
        "True signs instead of video",
        "71.0 %",
        "8 min 32 s",
        "96 chosen",
        "40.2 to 47.8",
        "By frequency of the words in training",
        "62.5 %",
    ):
        assert expected in text
    stages = [part for part in page.text if part.startswith("Stage ")]
    assert [part[6] for part in dict.fromkeys(stages)] == ["1", "2", "3"]


def test_texts_are_escaped(run_folder: Path) -> None:
    page = report_page(run_folder)
    assert not [name for name, _ in page.elements if name == "script"]
    assert "<script>alert('x')</script>" in "".join(page.text)
    assert not [key for _, attributes in page.elements for key in attributes if key.startswith("on")]


def test_nothing_is_fetched(demo_folder: Path) -> None:
    page = report_page(demo_folder)
    linked = [
        value
        for _, attributes in page.elements
        for key, value in attributes.items()
        if key in ("src", "href", "srcset")
    ]
    assert linked
    assert all(str(value).startswith(("#", "data:")) for value in linked)
    assert {name for name, _ in page.elements}.isdisjoint(
        {"link", "iframe", "object", "script", "base", "form"}
    )
    text = (demo_folder / "report.html").read_text()
    assert not re.search(r"url\(|@import|https?://", text)
    policy = next(a["content"] for n, a in page.elements if n == "meta" and "http-equiv" in a)
    assert policy == "default-src 'none'; style-src 'unsafe-inline'; img-src data:"


def test_links_lead_to_sections_and_pictures_have_labels(demo_folder: Path) -> None:
    page = report_page(demo_folder)
    ids = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
    assert len(set(ids)) == len(ids)
    assert {a["href"] for n, a in page.elements if n == "a"} == {f"#{name}" for name in ids}
    pictures = [a for n, a in page.elements if n == "svg" and "aria-hidden" not in a]
    assert len(pictures) > 10
    assert all(a["role"] == "img" and a["aria-label"] for a in pictures)


@pytest.mark.parametrize(
    "lost",
    [
        "config.json",
        "log.jsonl",
        "words.json",
        "words.safetensors",
        "hypotheses.test.jsonl",
        "scores.test.json",
    ],
)
def test_any_file_may_be_missing(run_folder: Path, lost: str) -> None:
    complete = report_page(run_folder).titles()
    (run_folder / lost).unlink()
    titles = report_page(run_folder).titles()
    assert set(titles) <= set(complete)
    assert len(titles) >= 3


def test_damage_is_named_and_the_rest_is_shown(run_folder: Path) -> None:
    (run_folder / "scores.test.json").write_text("[1, 2")
    log = run_folder / "log.jsonl"
    log.write_text(log.read_text() + '{"stage": "finetune", "step": 3010, "lo')  # a writer that was killed
    (run_folder / "words.json").write_text("{}")
    page = report_page(run_folder)
    text = " ".join(page.text)
    assert "scores.test.json" in text
    assert "word codebook" in text
    assert "log.jsonl" not in text
    assert "From video to text" in text


def test_values_that_are_not_finite_are_counted(run_folder: Path) -> None:
    with (run_folder / "log.jsonl").open("a") as log:
        log.write('{"stage": "finetune", "step": 3010, "loss": NaN}\n')
    assert "1 values are not finite" in report_page(run_folder).text


def test_both_phases_of_fine_tuning_have_their_curves(run_folder: Path) -> None:
    (run_folder / "frozen").mkdir()
    (run_folder / "frozen" / "log.jsonl").write_text((run_folder / "log.jsonl").read_text())
    before = report_page(run_folder).text
    assert before.index("First phase: frozen encoder") < before.index("Second phase: joint training")
    assert before.count("Translation loss") == 2


def test_a_folder_without_results_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="nothing to report") as raised:
        write_report(tmp_path)
    assert raised.value.remedy
    with pytest.raises(UsageError, match="no such run folder"):
        write_report(tmp_path / "none")
    assert list(tmp_path.iterdir()) == []


def test_a_second_report_replaces_the_first(run_folder: Path) -> None:
    first = write_report(run_folder)
    (run_folder / "scores.test.json").write_text(json.dumps({"bleu4": 12.34}))
    assert write_report(run_folder) == first == run_folder / "report.html"
    assert "12.34" in first.read_text()
    assert not list(run_folder.glob(".*"))


@pytest.mark.skipif(CHROMIUM is None, reason="no chromium on this machine: rendering is not checked")
@pytest.mark.parametrize("dark", [False, True])
def test_a_browser_renders_it(demo_folder: Path, tmp_path: Path, dark: bool) -> None:
    picture = tmp_path / "page.png"
    options = "--headless --no-sandbox --disable-gpu --disable-background-networking --no-first-run"
    subprocess.run(
        [
            CHROMIUM, *options.split(), *(["--force-dark-mode"] if dark else []),
            f"--user-data-dir={tmp_path / 'profile'}", "--window-size=1200,1600",
            f"--screenshot={picture}", write_report(demo_folder).resolve().as_uri(),
        ],
        check=True, capture_output=True, timeout=90,
    )  # fmt: skip
    with Image.open(picture) as screenshot:
        page, grey = screenshot.convert("RGB"), screenshot.convert("L")
    assert (sum(page.getpixel((3, 3))) < 150) == dark
    assert (
        len(set(page.resize((300, 400)).getdata())) > 200
    )  # token blocks, bars and texts, not an empty page
    low, high = grey.getextrema()
    assert high - low > 150


STRANGE = [None, "text", -1, 1e400, [], {}, [1, "a"], {"bleu4": "x"}, True, "<b>", [10**6], float("nan")]


@pytest.mark.parametrize("strange", STRANGE, ids=repr)
def test_breakdowns_of_other_types_do_not_break_the_page(run_folder: Path, strange: object) -> None:
    (run_folder / "log.jsonl").unlink()  # breakdowns are shown without curves too
    path = run_folder / "scores.test.json"
    record = json.loads(path.read_text())
    group = dict.fromkeys(("group", "samples", "words", "wer", "missed", "bleu4"), strange)
    for breakdowns in (
        {"signer": strange},
        {"signer": [strange, group]},
        {"frequency": [group]},
        {"other": [group]},
    ):
        path.write_text(json.dumps(record | {"breakdowns": breakdowns, "intervals": {"bleu4": strange}}))
        report_page(run_folder)


@pytest.mark.parametrize("strange", STRANGE, ids=repr)
def test_values_of_other_types_do_not_break_the_page(demo_folder: Path, strange: object) -> None:
    for file in ("config.json", "scores.test.json"):
        path = demo_folder / "finetune" / file
        path.write_text(json.dumps(dict.fromkeys(json.loads(path.read_text()), strange)))
    for file in ("log.jsonl", "hypotheses.test.jsonl"):
        path = demo_folder / "finetune" / file
        records = [json.loads(line) for line in path.read_text().splitlines()[:9]]
        changed = [record | {key: strange} for record in records for key in record]
        path.write_text("".join(json.dumps(record) + "\n" for record in records + changed))
    report_page(demo_folder)
    for file in demo_folder.glob("*/*"):  # the summary is shown without them too
        file.unlink()
    (demo_folder / "finetune" / "words.json").write_text("{}")
    summary = json.loads((demo_folder / "summary.json").read_text())
    for changed in ({key: strange} for key in summary):
        (demo_folder / "summary.json").write_text(json.dumps(summary | changed))
        report_page(demo_folder)
    (demo_folder / "summary.json").write_text(json.dumps({key: {"bleu4": strange} for key in summary}))
    report_page(demo_folder)


def test_word_coverage_is_a_column_if_it_is_known() -> None:
    table = score_table({"dev": {"bleu4": 12.34}})
    assert table
    assert "Covered by words" not in table.head
    table = score_table({"dev": {"bleu4": 12.34, "covered": 0.876}, "test": {"bleu4": 12.34}})
    assert table
    column = table.head.index("Covered by words")
    assert [row.cells[column].text for row in table.rows] == ["87.6 %", "–"]
