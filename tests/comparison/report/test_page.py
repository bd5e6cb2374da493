import base64
import hashlib
import re
from dataclasses import replace
from html.parser import HTMLParser

import pytest

from alloykit.comparison.report.headline import cost_phrase, figures, headline
from alloykit.comparison.report.page import (
    Agreement,
    Barrier,
    ReportData,
    render_report,
    write_report,
)
from alloykit.comparison.report.panels import member_table
from alloykit.comparison.report.table import leaderboard, score_domain
from alloykit.comparison.report.wording import SPACE
from alloykit.errors import DataError, OutputExists
from alloykit.types import Interval, Row
from report_sample import MEMBERS, done, sample

NASTY = "<script>alert(1)</script>\"'&"
VOID = {"meta", "link", "br", "img", "input", "hr"}


class Page(HTMLParser):
    """The page as elements: fails where tags do not match."""

    def __init__(self, text):
        super().__init__()
        self.open, self.elements, self.scripts = [], [], []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] == "script":
            self.scripts.append(data)


@pytest.fixture(scope="module")
def page():
    return render_report(sample())


def sentence(data):
    return str(headline(data)).replace(SPACE, " ")


def with_improvement(value, half):
    better = Interval(value, value - half, value + half)
    data = sample()
    rows = [
        replace(r, improvement=better) if r.candidate == data.recommendation else r
        for r in data.rows
    ]
    return replace(data, rows=tuple(rows))


def test_headline_answers_in_one_sentence():
    assert sentence(sample()) == (
        "Ship ‘average of probabilities’: 93.1 % accuracy on test, +4.2 points over the best "
        "single member (95 % interval +3.1 to +5.3), at 4× its cost."
    )


def test_headline_says_when_nothing_beats_the_best_single_member():
    text = sentence(sample(recommendation=MEMBERS[3]))
    assert text.startswith("Ship ‘seed 4 (augmented)’, the best single member: 88.9 % accuracy")
    assert text.endswith("No combination is worth shipping instead.")
    assert "‘average of probabilities’" in headline(sample(recommendation=MEMBERS[3])).more


def test_headline_says_when_a_gain_may_be_chance():
    text = sentence(with_improvement(0.002, 0.007))
    assert text.startswith("No clear gain: ‘average of probabilities’ reaches 93.1 %")
    assert "that may be chance (95 % interval −0.5 to +0.9)" in text


def test_headline_says_when_the_choice_did_worse_on_test():
    text = sentence(with_improvement(-0.02, 0.01))
    assert text.startswith("Ship nothing new: ‘average of probabilities’ was best on validation")
    assert "−2.0 points" in text


def test_headline_without_any_finished_candidate():
    data = sample(rows=(Row("a", "member", "failed", "No."),), best_single="", recommendation="")
    assert sentence(data) == "Nothing can be recommended: no candidate could be scored."
    assert figures(data) == []


def test_headline_of_losses_speaks_of_better_not_of_signs():
    single = Row("a", "member", "done", validation={"rmse": 2.0}, test={"rmse": 2.1})
    both = Row("a + b", "weights", "done", validation={"rmse": 1.8}, test={"rmse": 1.85},
               improvement=Interval(0.25, 0.1, 0.4))  # fmt: skip
    data = sample(rows=(single, both), metric="rmse", higher_is_better=False, task="regression",
                  metrics=(("rmse", False),), best_single="a", recommendation="a + b")  # fmt: skip
    assert sentence(data) == (
        "Ship ‘a + b’: RMSE 1.850 on test, 0.250 better than the best single member "
        "(95 % interval +0.100 to +0.400)."
    )


def test_costs_that_differ_by_noise_are_the_same():
    one, two = done("a", "member", 0.9, 0.3, 0, 1), done("b", "soup", 0.9, 0.4, 0, 1)
    assert cost_phrase(two, one) == ", at the same cost"


def test_page_is_well_formed_and_complete(page):
    parsed = Page(page)
    anchors = {attrs.get("id") for _, attrs in parsed.elements}
    assert {
        "leaderboard", "cost", "calibration", "reliance", "learning", "barriers", "agreement",
        "members", "left-out",
        "reproduce", "warnings", "setting",
    } <= anchors  # fmt: skip
    for text in ("Ship ", "resnet18-1.safetensors", "It takes exactly 2 models. Got 4.",
                 "Align these two", "alloykit compare study.yaml", "resamples"):  # fmt: skip
        assert text in page


def test_page_is_the_same_twice(page):
    assert render_report(sample()) == page


def test_page_asks_nobody_and_allows_nothing_else(page):
    parsed = Page(page)
    policy = next(a["content"] for t, a in parsed.elements if a.get("http-equiv"))
    assert policy.startswith("default-src 'none';")
    digest = base64.b64encode(hashlib.sha256("".join(parsed.scripts).encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}'" in policy
    for _, attrs in parsed.elements:
        assert "src" not in attrs
        assert not any(name.startswith("on") for name in attrs)
        assert attrs.get("href", "#").startswith("#")
    assert "http://" not in page
    assert "https://" not in page
    assert "@import" not in page


def test_ids_are_unique(page):
    found = [attrs["id"] for _, attrs in Page(page).elements if "id" in attrs]
    assert len(found) == len(set(found))


def test_table_has_headers_that_sort_and_say_so(page):
    parsed = Page(page)
    columns = [a for t, a in parsed.elements if t == "th" and "data-first" in a]
    assert len(columns) == 12
    assert [a["aria-sort"] for a in columns if "aria-sort" in a] == ["descending"]
    assert sum(a.get("scope") == "row" for t, a in parsed.elements if t == "th") == 22 + 4 + 4 + 4


def test_what_decides_stands_left_of_the_other_metrics():
    table = leaderboard(sample())
    assert [name for name, _ in table.groups] == [
        "Validation chose", "Test reports", "Cost", "Test, other metrics",
    ]  # fmt: skip
    assert [column.title for column in table.columns][4:7] == ["Time", "Size", "Log loss"]


def test_notes_are_footnotes_each_said_once():
    rows = [
        replace(done("a", "weights", 0.9, 0.3, 0, 1), notes=("second of two", "fitted here")),
        replace(done("b", "weights", 0.95, 0.3, 0, 1), notes=("fitted here",)),
        done("c", "weights", 0.8, 0.3, 0, 1),
    ]
    data = sample(rows=tuple(rows), best_single="", recommendation="")
    table = leaderboard(data)
    assert table.notes == ("Fitted here.", "Second of two.")
    assert [(line.row.candidate, line.notes) for line in table.lines] == [
        ("b", (1,)), ("a", (1, 2)), ("c", ()),
    ]  # fmt: skip
    text = render_report(data)
    assert text.count("</sup>Fitted here.</li>") == 1
    links = [a for t, a in Page(text).elements if t == "a" and "note-" in a.get("href", "")]
    assert [a["href"] for a in links] == ["#note-1", "#note-1", "#note-2"]
    assert links[0]["aria-label"] == "Note 1: Fitted here."
    assert {a.get("id") for _, a in Page(text).elements} >= {"note-1", "note-2"}


def test_without_notes_there_is_no_list_of_them():
    rows = tuple(replace(row, notes=()) for row in sample().rows)
    assert 'class="notes"' not in render_report(sample(rows=rows))


def test_axis_of_a_share_ends_within_nothing_and_all():
    rows = [done(n, "member", v, 0.3, 0, 1) for n, v in (("a", 0.999), ("b", 0.998))]
    assert score_domain(sample(rows=tuple(rows)), rows)[1] == 1.0
    losses = [replace(row, test={"log_loss": 1.5}, intervals={}) for row in rows]
    data = sample(rows=tuple(losses), metric="log_loss", higher_is_better=False)
    assert score_domain(data, losses)[1] > 1.5


def test_axis_follows_the_better_half():
    good = [done(f"g{i}", "soup", 0.95 + 0.001 * i, 0.3, 0, 1) for i in range(8)]
    bad = [done(f"b{i}", "soup", 0.1 + 0.1 * i, 0.3, 0, 1) for i in range(8)]
    data = sample(rows=(*good, *bad), best_single="g0", recommendation="g7")
    assert score_domain(data, [*bad, *good])[0] > 0.9
    data = replace(data, best_single="b3")
    assert score_domain(data, [*bad, *good])[0] < 0.4


def test_reason_keeps_numbers_with_their_units():
    text = render_report(
        sample(recommendation_reason="It gains 3.1 points (95 % sure, p < 0.001).")
    )
    assert f"It gains 3.1{SPACE}points (95{SPACE}% sure, p{SPACE}&lt;{SPACE}0.001)." in text


def test_barriers_speak_of_errors_only_where_there_are_some(page):
    assert "Loss and wrong predictions on the straight line" in page
    assert "</i>wrong predictions" in page
    bare = render_report(sample(barriers=tuple(replace(b, errors=None) for b in sample().barriers)))
    assert "The loss on the straight line" in bare
    assert "wrong predictions" not in bare.lower()


def test_every_drawing_has_words(page):
    for tag, attrs in Page(page).elements:
        if tag == "svg":
            assert attrs.get("aria-label") or attrs.get("aria-hidden") == "true"


def nasty():
    rows = [
        replace(done(NASTY + str(i), "weights", 0.9, 0.3, 0.02, 1 + i), notes=(NASTY,))
        for i in range(2)
    ]
    rows.append(Row(NASTY, "soup", "failed", NASTY))
    name = rows[0].candidate
    return ReportData(
        title=NASTY, task="classification", metric=NASTY, higher_is_better=True,
        metrics=((NASTY, True), ("accuracy", True)),
        splits=(("test", 10, NASTY),),
        rows=tuple(
            replace(r, validation={NASTY: 0.5}, test={NASTY: 0.5, "accuracy": 0.5}) for r in rows
        ),
        best_single=name, recommendation=rows[1].candidate, recommendation_reason=NASTY,
        members=(dict.fromkeys(("name", "source", "architecture", "dtype", "digest"), NASTY),),
        agreement=Agreement((NASTY, "b", "c"), ((1.0, 0.5, 0.4), (0.5, 1.0, 0.3), (0.4, 0.3, 1.0))),
        barriers=(Barrier(NASTY, NASTY, (0.0, 1.0), (1.0, 2.0), None, NASTY),),
        reproduce={name: NASTY}, command=NASTY, environment={NASTY: NASTY},
        settings={NASTY: NASTY}, warnings=(NASTY,), created=NASTY,
    )  # fmt: skip


def test_names_cannot_become_markup():
    text = render_report(nasty())
    assert text.count("<script") == 1
    assert "alert(1)" not in "".join(Page(text).scripts)
    assert "<script>alert" not in text
    assert "&lt;script&gt;alert(1)" in text
    for _, attrs in Page(text).elements:
        assert not any(name.startswith("on") for name in attrs)


def test_names_that_are_no_text_can_still_be_written(tmp_path):
    row = done("half \ud800 bell \x07 null \x00", "member", 0.9, 0.3, 0.02, 1)
    data = sample(rows=(row,), best_single="", recommendation=row.candidate, reproduce={})
    written = write_report(data, tmp_path / "report.html").read_text(encoding="utf-8")
    assert not re.search(r"[\x00-\x08\x0b-\x1f]", written)
    assert "half ? bell \N{REPLACEMENT CHARACTER} null" in written


def test_empty_parts_are_left_out():
    row = Row("only", "member", "done", validation={"accuracy": 0.9}, test={"accuracy": 0.9})
    text = render_report(
        ReportData(
            title="One", task="classification", metric="accuracy", higher_is_better=True,
            metrics=(("accuracy", True),), splits=(), rows=(row,), best_single="only",
            recommendation="only",
        )
    )  # fmt: skip
    anchors = {attrs.get("id") for _, attrs in Page(text).elements}
    assert "leaderboard" in anchors
    assert not anchors & {
        "cost", "calibration", "reliance", "learning", "barriers", "agreement", "members",
        "left-out", "reproduce",
        "warnings",
    }  # fmt: skip
    assert ">Gain<" not in text
    assert ">Time<" not in text
    assert 'class="chips"' not in text


def test_everything_skipped_still_explains_itself():
    rows = tuple(r for r in sample().rows if r.status != "done")
    text = render_report(
        sample(rows=rows, best_single="", recommendation="", reproduce={}, barriers=())
    )
    anchors = {attrs.get("id") for _, attrs in Page(text).elements}
    assert "left-out" in anchors
    assert not anchors & {"leaderboard", "cost"}
    assert "no candidate could be scored" in text


def test_regression_has_no_calibration_and_correlates_errors():
    rows = tuple(
        Row(n, "member", "done", validation={"r2": v}, test={"r2": v, "mae": 1 - v})
        for n, v in (("a", 0.8), ("b", 0.7))
    )
    text = render_report(
        sample(rows=rows, task="regression", metric="r2", metrics=(("r2", True), ("mae", False)),
               best_single="a", recommendation="a",
               agreement=Agreement(("a", "b"), ((1.0, -0.25), (-0.25, 1.0))))
    )  # fmt: skip
    assert 'id="calibration"' not in text
    assert "Correlation of the members’ errors" in text
    assert "−0.250" in text


def test_members_show_what_is_known_of_them():
    known = {"name": "a", "parameters": 1_234_567, "digest": "sha256:" + "ab" * 32}
    titles, lines = member_table([known, {"name": "b", "parameters": None}])
    assert titles == ["Member", "Parameters", "Digest"]
    assert lines == [
        [("a", ""), (f"1.23{SPACE}M", "1,234,567"), ("abababababab…", known["digest"])],
        [("b", ""), ("–", ""), ("–", "")],
    ]


def test_contradictions_are_all_listed():
    row = done("a", "member", 0.9, 0.3, 0.0, 1)
    data = sample(
        rows=(row, row), best_single="gone", recommendation="a", metric="f2",
        agreement=Agreement(("a", "b"), ((1.0, 0.5),)),
        barriers=(Barrier("a", "b", (0.0, 1.0), (1.0,), errors=(0.1, 0.2, 0.3)),),
    )  # fmt: skip
    with pytest.raises(DataError) as caught:
        render_report(data)
    for line in (
        "rows: 'a' is there twice",
        "best_single: 'gone' is not among the finished rows",
        "metric: 'f2' is not among metrics",
        "barrier a - b: 1 losses for 2 alphas",
        "barrier a - b: 3 errors for 2 alphas",
        "agreement: the matrix is not 2 x 2",
    ):
        assert line in str(caught.value)


def test_writing_replaces_only_when_asked(tmp_path):
    target = tmp_path / "report.html"
    data = sample(barriers=(), rows=sample().rows[:5])
    assert write_report(data, target) == target
    assert target.read_text(encoding="utf-8") == render_report(data)
    with pytest.raises(OutputExists):
        write_report(data, target)
    assert write_report(replace(data, title="Again"), target, overwrite=True) == target
    assert "Again" in target.read_text(encoding="utf-8")


def test_reliance_is_a_table_of_members_and_classes(page):
    section = page[page.index('id="reliance"') : page.index('id="learning"')]
    assert section.count('<th scope="row">') == 4
    assert section.count('<th scope="col">') == 10
    assert section.count("--shade") == 40
    assert "Believed most: ‘seed 1’ for" in section


def test_learning_curves_say_what_was_kept(page):
    section = page[page.index('id="learning"') : page.index('id="barriers"')]
    assert section.count("<svg") == 2
    assert "16 epochs in 22.4" in section
    assert "no better for 3 epochs; epoch 13 was kept." in section
    assert "epoch 13, validation accuracy" in section


def test_pages_without_trained_candidates_have_neither():
    plain = tuple(replace(row, history={}, reliance={}) for row in sample().rows)
    text = render_report(sample(rows=plain))
    assert 'id="reliance"' not in text
    assert 'id="learning"' not in text


def test_numbers_that_are_missing_leave_gaps():
    odd = {"epochs": [{"number": 1, "loss": None, "validation": None, "seconds": 0.1},
                      {"number": 2, "loss": 1.0, "validation": None, "seconds": 0.1}],
           "metric": "", "best": 2, "stopped": ""}  # fmt: skip
    empty = {"members": ["a"], "classes": ["0", "1"], "what": "x", "matrix": [[None, 0.5]]}
    last = next(row for row in sample().rows if row.family == "retrained")
    rows = (replace(last, history=odd, reliance=empty),)
    text = render_report(sample(rows=(*sample().rows[:6], *rows)))
    assert "2 epochs in" in text
    assert "nan" not in text.lower().replace("nano", "")
