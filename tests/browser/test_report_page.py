"""The report as a reader meets it: opened from a file, in a browser that is watched."""

import os
import re
import shutil
from pathlib import Path

import pytest

from alloykit.comparison.report.page import write_report
from report_sample import MEMBERS, sample

NAMES = ("chromium", "chromium-browser", "google-chrome")
ARGUMENTS = [
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking",
    "--disable-component-update", "--disable-sync", "--no-first-run",
]  # fmt: skip
WIDE, NARROW = 1280, 390
LOG_LOSS = 6
"""The column's place: after validation, test, gain, p, time and size."""

SHORT = 12
EVERY_LETTER = "run 'a b' \"c\" `d` $HOME \\\n    --x='<i>&amp;</i>' && echo ‘é’  two  \t| cat"
ANSWER = re.compile("Copied|Press")
pytestmark = pytest.mark.browser


@pytest.fixture(scope="module")
def browser():
    executable = next((path for name in NAMES if (path := shutil.which(name))), None)
    if executable is None:
        pytest.skip(f"No browser on this machine: none of {', '.join(NAMES)} is installed.")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as play:
        browser = play.chromium.launch(executable_path=executable, args=ARGUMENTS)
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    return write_report(sample(), tmp_path_factory.mktemp("report") / "report.html")


@pytest.fixture(scope="module")
def screenshots(tmp_path_factory):
    given = os.environ.get("ALLOYKIT_SCREENSHOTS")
    folder = Path(given) if given else tmp_path_factory.mktemp("shots") / "screenshots"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


@pytest.fixture
def visit(browser, report):
    """Opens the report and, at the end, insists that it stayed silent and alone."""
    contexts, visited, heard, asked = [], set(), [], []

    def visit(path=report, width=WIDE, **settings):
        context = browser.new_context(viewport={"width": width, "height": 900}, **settings)
        contexts.append(context)
        page = context.new_page()
        page.on("console", lambda message: heard.append(message.text))
        page.on("pageerror", lambda error: heard.append(str(error)))
        page.on("dialog", lambda dialog: (heard.append(dialog.message), dialog.dismiss()))
        page.on("request", lambda request: asked.append(request.url))
        visited.add(path.as_uri())
        page.goto(path.as_uri())
        return page

    yield visit
    for context in contexts:
        context.close()
    assert heard == []
    assert set(asked) == visited


def names(page):
    return page.locator("#board tbody tr:visible th bdi").all_inner_texts()


def header(page, title):
    return page.locator("#board thead th", has=page.get_by_role("button", name=title, exact=True))


def background(page):
    return page.evaluate("getComputedStyle(document.body).backgroundColor")


def test_a_click_sorts_by_the_column_and_a_second_one_reverses(visit):
    page = visit()
    before = names(page)
    assert before[0] == "average of probabilities"
    loss = header(page, "Log loss")
    loss.get_by_role("button").click()
    assert loss.get_attribute("aria-sort") == "ascending"
    assert page.locator("#board [aria-sort]").count() == 1
    values = [
        float(row.locator("td").nth(LOG_LOSS).inner_text())
        for row in page.locator("#board tbody tr").all()
    ]
    assert values == sorted(values)
    assert names(page) != before
    loss.get_by_role("button").click()
    assert loss.get_attribute("aria-sort") == "descending"
    assert names(page)[0] == "uniform soup"


def test_names_sort_by_the_alphabet_and_missing_values_stand_last(visit):
    page = visit()
    header(page, "Candidate").get_by_role("button").click()
    assert names(page) == sorted(names(page))
    for _ in range(2):
        header(page, "p").get_by_role("button").click()
        assert names(page)[-1] == MEMBERS[3]


def test_every_column_sorts_by_keyboard(visit):
    page = visit()
    for button in page.locator("#board thead button").all():
        button.focus()
        page.keyboard.press("Enter")
        assert button.locator("..").get_attribute("aria-sort") in ("ascending", "descending")


def test_dark_and_light_follow_the_system_and_the_button(visit):
    page = visit(color_scheme="light")
    light = background(page)
    page.click("#theme")
    dark = background(page)
    assert dark != light
    page.wait_for_timeout(500)  # the browser keeps what is stored a moment later
    page.reload()
    assert background(page) == dark
    page.click("#theme")
    assert background(page) == light
    assert background(visit(color_scheme="dark")) == dark


def test_the_button_works_where_storage_is_forbidden(visit):
    page = visit()
    page.evaluate("Object.defineProperty(window, 'localStorage', {get() { throw Error('no'); }})")
    before = background(page)
    page.click("#theme")
    assert background(page) != before


def test_chips_show_one_family(visit):
    page = visit()
    page.get_by_role("button", name="Single members").click()
    assert sorted(names(page)) == sorted(MEMBERS)
    assert page.locator("#shown").inner_text() == "4 of 22 candidates shown"
    page.get_by_role("button", name=re.compile("^All")).click()
    page.get_by_role("button", name="Show all 22").click()
    assert len(names(page)) == 22


def test_a_long_leaderboard_is_cut_but_keeps_those_that_matter(visit):
    page = visit()
    fold = page.locator("#fold")
    # The best single member stands further down, and is kept.
    assert len(names(page)) == SHORT + 1
    assert MEMBERS[3] in names(page)
    assert fold.get_attribute("aria-expanded") == "false"
    # The best single member and the recommended one stay, whatever is on top.
    header(page, "Candidate").get_by_role("button").click()
    header(page, "Candidate").get_by_role("button").click()
    shown = names(page)
    assert shown[:SHORT] == sorted(shown, reverse=True)[:SHORT]
    assert "weighted average" in shown
    assert shown[SHORT:] == ["average of probabilities"]
    assert page.locator("#board tr.gap:visible bdi").all_inner_texts() == shown[SHORT:]
    fold.click()
    assert fold.get_attribute("aria-expanded") == "true"
    assert names(page) == sorted(names(page), reverse=True)
    assert len(names(page)) == 22
    assert page.locator("#board tr.gap").count() == 0
    page.get_by_role("button", name="Show the first 12").click()
    assert names(page) == shown


def test_a_filter_reaches_the_rows_that_were_cut_off(visit):
    page = visit()
    hidden = "uniform soup"
    assert hidden not in names(page)
    page.get_by_role("button", name="Soups").click()
    assert hidden in names(page)
    assert len(names(page)) == 4
    assert page.locator("#fold").is_hidden()
    header(page, "Log loss").get_by_role("button").click()
    assert names(page)[-1] == hidden


def test_paper_gets_all_rows(visit):
    page = visit()
    page.emulate_media(media="print")
    assert len(names(page)) == 22
    assert page.locator("#fold").is_hidden()


def test_a_short_leaderboard_is_not_cut(visit, tmp_path):
    data = sample(rows=sample().rows[: SHORT + 3])
    page = visit(write_report(data, tmp_path / "short.html"))
    assert len(names(page)) == SHORT + 3
    assert page.locator("#fold").is_hidden()


def test_a_footnote_leads_to_its_text(visit):
    page = visit()
    page.locator("#fold").click()
    mark = page.locator("#board sup a").first
    assert mark.get_attribute("title") == "BatchNorm statistics were averaged, not re-estimated."
    # The name that is sorted by, and read out, is without it.
    assert "linear" in names(page)
    page.evaluate("document.querySelector('#board sup a').click()")
    assert page.locator(".notes li:target").inner_text().endswith(mark.get_attribute("title"))


def test_all_rows_are_equally_high(visit):
    page = visit()
    page.locator("#fold").click()
    rows = page.locator("#board tbody tr").all()
    heights = [round(row.bounding_box()["height"]) for row in rows]
    assert max(heights) - min(heights) <= 1


def test_a_fading_edge_shows_that_the_table_goes_on(visit):
    box = visit().locator("#leaderboard .scroll")
    assert "more-right" in box.get_attribute("class")
    box.evaluate("box => { box.scrollLeft = box.scrollWidth; }")
    box.page.wait_for_selector("#leaderboard .scroll:not(.more-right)")


def pasted(page):
    page.evaluate(
        "document.body.prepend(Object.assign(document.createElement('textarea'), {id: 'in'}))"
    )
    page.focus("#in")
    page.keyboard.press("Control+V")
    return page.input_value("#in")


@pytest.mark.parametrize("allowed", [True, False])
def test_what_is_copied_is_exactly_what_was_given(visit, tmp_path, allowed):
    data = sample(command=EVERY_LETTER, reproduce={"linear": EVERY_LETTER + "!"})
    page = visit(write_report(data, tmp_path / "quotes.html"))
    if not allowed:
        page.evaluate(
            "Object.defineProperty(navigator, 'clipboard',"
            " {value: {writeText: () => Promise.reject(Error('denied'))}})"
        )
    for index, text in enumerate((EVERY_LETTER, EVERY_LETTER + "!")):
        button = page.locator(".copy").nth(index)
        button.click()
        button.filter(has_text=ANSWER).wait_for()
        assert button.inner_text() == "Copied"
        assert pasted(page) == text


def test_copying_works_without_permission_and_says_what_it_did(visit):
    page = visit()
    page.evaluate(
        "Object.defineProperty(navigator, 'clipboard',"
        " {value: {writeText: () => Promise.reject(Error('denied'))}})"
    )
    button = page.locator(".copy").first
    button.click()
    button.filter(has_text=ANSWER).wait_for()
    assert button.inner_text() in ("Copied", "Press Ctrl+C")
    assert page.evaluate("getSelection().toString()").strip().startswith("alloykit compare")


@pytest.mark.parametrize("width", [NARROW, 640, 820, WIDE, 1920])
def test_the_page_never_scrolls_sideways(visit, width):
    page = visit(width=width)
    assert page.evaluate("document.documentElement.scrollWidth") <= width


def test_a_long_title_does_not_squeeze_the_button(visit, tmp_path):
    data = sample(title="Four models of two architectures, trained on skewed partitions")
    wide = visit().locator("#theme").bounding_box()
    narrow = visit(write_report(data, tmp_path / "long.html"), width=NARROW)
    assert narrow.locator("#theme").bounding_box()["height"] == wide["height"]


def test_it_can_be_read_without_script(visit):
    page = visit(java_script_enabled=False)
    assert len(names(page)) == 22
    assert page.locator("button:visible").count() == page.locator("#board thead button").count()


def test_names_that_look_like_markup_do_nothing(visit, tmp_path):
    bad = "<img src=x onerror=alert(1)><script>alert(2)</script>"
    data = sample(title=bad, recommendation_reason=bad, warnings=(bad,), command=bad)
    page = visit(write_report(data, tmp_path / "bad.html"))
    assert page.locator(".title").inner_text() == bad
    assert page.locator("img").count() == 0


def luminance(colour):
    parts = [int(c) / 255 for c in re.findall(r"\d+", colour)[:3]]
    linear = [c / 12.92 if c <= 0.03928 else ((c + 0.055) / 1.055) ** 2.4 for c in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one, other):
    bright, dark = sorted((luminance(one), luminance(other)), reverse=True)
    return (bright + 0.05) / (dark + 0.05)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_stands_out_from_its_background(visit, scheme):
    page = visit(color_scheme=scheme)
    # rgb() of each variable as the browser computes it.
    colour = page.evaluate(
        """() => { const probe = document.body.appendChild(document.createElement("i"));
        const found = {};
        for (const name of ["ink", "soft", "card", "paper", "accent", "on-accent", "warn", "bad"]) {
            probe.style.color = `var(--${name})`; found[name] = getComputedStyle(probe).color; }
        probe.remove(); return found; }"""
    )
    for ground in ("card", "paper"):
        for text in ("ink", "soft", "accent", "warn", "bad"):
            assert contrast(colour[text], colour[ground]) >= 4.5, (text, ground)
    assert contrast(colour["on-accent"], colour["accent"]) >= 4.5


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [NARROW, WIDE])
def test_screenshots_for_people(visit, screenshots, scheme, width):
    target = screenshots / f"report-{scheme}-{width}.png"
    visit(width=width, color_scheme=scheme).screenshot(path=target, full_page=True)
    assert target.read_bytes()[:4] == b"\x89PNG"
