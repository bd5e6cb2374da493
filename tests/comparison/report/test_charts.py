import re
import warnings
from xml.etree import ElementTree

import matplotlib
import pytest

from alloykit.comparison.report.charts import barrier_curve, barrier_domain, error_top, reliability
from alloykit.comparison.report.cost_chart import CostAxis, Point, ScoreAxis, pareto, scatter
from alloykit.comparison.report.data import Barrier
from alloykit.comparison.report.placing import Place, place_labels
from alloykit.comparison.report.ranges import focus, outside, range_svg
from alloykit.comparison.report.svg import CARD, GRID, INK, SERIES, SOFT, Canvas, drawing, shortened
from alloykit.types import Interval
from report_sample import done

TIME = CostAxis("time per example", timed=True)
ACCURACY = ScoreAxis("accuracy", True, (0.8, 1.0), 2000, 0.85)
NASTY = "<script>alert(1)</script> & $x_1$ \N{HIRAGANA LETTER A}"


def points(*names):
    return [
        Point(name, "member", 0.001 * (i + 1), 0.85 + 0.01 * i, 2) for i, name in enumerate(names)
    ]


def drawn(*names, **changed):
    arguments = {"name": "cost", "width": 600, "height": 400} | changed
    return scatter(points(*names), TIME, ACCURACY, **arguments)


def barrier(first="a", second="b", losses=(0.4, 2.0, 0.5), mended=None, errors=None):
    return Barrier(first, second, (0.0, 0.5, 1.0), losses, mended, "A hill.", errors)


ALL = {
    "scatter": lambda: drawn("a", "b", "c"),
    "reliability": lambda: reliability(
        done("a", "member", 0.9, 0.3, 0.02, 1).calibration, name="r", title="a"
    ),
    "barrier": lambda: barrier_curve(barrier(mended=(0.4, 0.5, 0.5)), (0.0, 2.0), name="b"),
    "barrier with errors": lambda: barrier_curve(
        barrier(errors=(0.1, 0.3, 0.2)), (0.0, 2.0), name="b"
    ),
}


@pytest.mark.parametrize("draw", ALL.values(), ids=ALL)
class TestEveryChart:
    def test_is_well_formed_and_scales_with_the_page(self, draw):
        root = ElementTree.fromstring(draw())
        assert root.tag == "svg"
        assert root.get("viewBox", "").startswith("0 0 ")
        assert root.get("role") == "img"
        assert root.get("aria-label")

    def test_takes_all_colours_from_the_theme(self, draw):
        text = draw()
        assert set(re.findall(r"#[0-9a-fA-F]{6}\b", text)) == set()
        assert "var(--ink)" in text or "var(--soft)" in text

    def test_is_the_same_twice(self, draw):
        assert draw() == draw()

    def test_leaves_the_settings_of_matplotlib_alone(self, draw):
        before = dict(matplotlib.rcParams)
        draw()
        assert dict(matplotlib.rcParams) == before

    def test_ignores_the_settings_of_the_reader(self, draw):
        plain = draw()
        with matplotlib.rc_context(
            {"svg.fonttype": "path", "axes.linewidth": 9, "xtick.major.pad": 30}
        ):
            assert draw() == plain

    def test_brings_no_style_sheet_or_font_of_its_own(self, draw):
        text = draw()
        assert "<style" not in text
        assert "font-family" not in text
        assert "DOCTYPE" not in text


def ids(text):
    return [e.get("id") for e in ElementTree.fromstring(text).iter() if e.get("id")]


def test_ids_are_prefixed_and_every_reference_is_met():
    text = drawn("a", "b", name="one")
    found = ids(text)
    assert found
    assert len(found) == len(set(found))
    assert all(each.startswith("one-") for each in found)
    referred = set(re.findall(r"(?:url\(|href=\")#([\w.-]+)", text))
    assert referred == set(found)


def test_names_are_neither_markup_nor_mathematics():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        text = drawn(NASTY, "b")
    assert "<script" not in text
    shown = [e.text for e in ElementTree.fromstring(text).iter("text")]
    assert any(str(t).startswith("<script>alert(1)") for t in shown)
    titles = [e.text for e in ElementTree.fromstring(text).iter("title")]
    assert f"{NASTY}: 85.0\N{NO-BREAK SPACE}%, 1.00\N{NO-BREAK SPACE}ms" in titles


def test_canvas_swaps_sentinels_for_variables():
    with drawing():
        canvas = Canvas("c", 100, 100)
        axes = canvas.axes()
        for colour in (INK, SOFT, GRID, CARD, *SERIES):
            axes.plot([0, 1], [0, 1], color=colour)
        text = canvas.svg("lines")
    for name in ("ink", "soft", "grid", "card", "series-1", "series-2", "series-3", "series-4"):
        assert f"var(--{name})" in text


def test_pareto_keeps_what_nothing_beats_on_both():
    crowd = [
        Point("cheap", "", 1, 0.80),
        Point("same cost, worse", "", 1, 0.70),
        Point("dear, no better", "", 3, 0.80),
        Point("best", "", 4, 0.95),
        Point("dearer than best", "", 9, 0.95),
    ]
    assert [p.name for p in pareto(crowd, higher_is_better=True)] == ["cheap", "best"]
    assert [p.name for p in pareto(crowd, higher_is_better=False)] == ["same cost, worse"]


def test_scatter_says_where_the_front_is():
    label = ElementTree.fromstring(drawn("a", "b")).get("aria-label")
    assert label.startswith("accuracy against time per example of 2 candidates.")
    assert "a 85.0" in label


def test_scatter_draws_a_wide_span_of_costs_on_a_logarithmic_axis():
    few = [Point("a", "soup", 1.0, 0.9), Point("b", "soup", 64.0, 0.95)]
    text = scatter(
        few, CostAxis("forward passes", timed=False), ACCURACY, name="c", width=600, height=400
    )
    marks = {e.text for e in ElementTree.fromstring(text).iter("text")}
    assert {"1", "10"} <= marks


def test_scatter_writes_the_value_of_points_off_the_axis():
    off = [Point("fell apart", "soup", 1.0, 0.1, 2), Point("fine", "soup", 2.0, 0.9, 2)]
    text = scatter(
        off, CostAxis("forward passes", timed=False), ACCURACY, name="c", width=600, height=400
    )
    assert "fell apart (10.0\N{NO-BREAK SPACE}%)" in text


def test_scatter_writes_no_name_across_the_reference_line():
    two = [Point("on it", "member", 1.0, 0.85, 2), Point("off it", "member", 2.0, 0.95, 2)]
    costs = CostAxis("forward passes", timed=False)
    root = ElementTree.fromstring(scatter(two, costs, ACCURACY, name="c", width=600, height=400))
    spots = [float(next(g.iter("use")).get("y")) for g in root.iter("g") if g.get("class")]
    lines = {t.text: float(t.get("y")) for t in root.iter("text")}
    assert abs(lines["on it"] - spots[0]) > 6
    assert abs(lines["off it"] - spots[1]) < 6


@pytest.mark.parametrize("higher_is_better", [True, False])
def test_scatter_puts_the_better_one_higher(higher_is_better):
    scores = ScoreAxis("m", higher_is_better, (0.0, 1.0), 0)
    costs = CostAxis("forward passes", timed=False)
    two = [Point("low", "soup", 1.0, 0.2), Point("high", "soup", 2.0, 0.8)]
    root = ElementTree.fromstring(scatter(two, costs, scores, name="c", width=600, height=400))
    marks = [g for g in root.iter("g") if g.get("class") == "hover"]
    low, high = (float(next(mark.iter("use")).get("y")) for mark in marks)
    assert (high < low) == higher_is_better  # SVG counts from the top


def test_reliability_leaves_out_empty_bins():
    text = reliability([(0.1, 0.0, 0), (0.9, 0.8, 50)], name="r", title="a")
    titles = [e.text for e in ElementTree.fromstring(text).iter("title")]
    assert titles == ["said 90%, was right 80%: 50 examples"]


def test_barriers_share_one_axis_of_losses():
    domain = barrier_domain([barrier(), barrier(losses=(0.3, float("inf"), 0.4))])
    assert domain == (0.0, 2.0)
    assert barrier_domain([barrier(losses=(5.0, 5.2, 5.1))])[0] > 4.9
    assert barrier_domain([barrier(losses=(float("nan"),) * 3)]) == (0.0, 1.0)


def test_barrier_draws_the_second_curve_only_where_there_is_one():
    assert "re-estimated" not in barrier_curve(barrier(), (0.0, 2.0), name="b")
    assert "re-estimated: 0.500" in barrier_curve(
        barrier(mended=(0.4, 0.5, 0.5)), (0.0, 2.0), name="b"
    )


def test_barrier_survives_losses_that_are_not_finite():
    text = barrier_curve(barrier(losses=(0.4, float("nan"), 0.5)), (0.0, 1.0), name="b")
    assert "highest as averaged: 0.500" in text


def marks(text, words):
    """Where the points whose hover text holds these words were drawn, from left to right."""
    found = [
        g for g in ElementTree.fromstring(text).iter("g")
        if (title := g.find("title")) is not None and words in title.text
    ]  # fmt: skip
    return [
        (float(u.get("x")), float(u.get("y")))
        for g in found
        if (u := next(g.iter("use"))) is not None
    ]


def test_barrier_draws_wrong_predictions_below_the_loss():
    text = barrier_curve(barrier(losses=(2.0, 1.0, 2.0), errors=(0.1, 0.3, 0.1)), (0, 2), name="b")
    wrong, loss = marks(text, "wrong predictions"), marks(text, "loss as averaged")
    assert [x for x, _ in wrong] == [x for x, _ in loss]
    # SVG counts from the top: the loss has a hollow where the errors have a hill.
    assert loss[1][1] > loss[0][1]
    assert wrong[1][1] < wrong[0][1]
    assert max(y for _, y in loss) < min(y for _, y in wrong)
    titles = [e.text for e in ElementTree.fromstring(text).iter("title")]
    assert "alpha 0.5, wrong predictions: 30.0\N{NO-BREAK SPACE}%" in titles
    label = ElementTree.fromstring(text).get("aria-label").replace("\N{NO-BREAK SPACE}", " ")
    assert label.endswith("Wrong predictions: 10.0 % and 10.0 % at the ends, at most 30.0 %.")


def test_barriers_share_one_axis_of_errors():
    few, many = barrier(errors=(0.1, 0.2, 0.1)), barrier(errors=(0.1, 0.8, float("nan")))
    assert error_top([few, many, barrier()]) == 0.8
    assert error_top([barrier()]) > 0
    alone = barrier_curve(few, (0.0, 2.0), name="b")
    beside = barrier_curve(few, (0.0, 2.0), name="b", errors_to=0.8)
    height = [p[1][1] - p[0][1] for p in (marks(alone, "wrong"), marks(beside, "wrong"))]
    assert height[0] == pytest.approx(4 * height[1], rel=0.01)


def test_barrier_survives_errors_that_are_not_finite():
    text = barrier_curve(barrier(errors=(float("nan"),) * 3), (0.0, 2.0), name="b")
    assert "Wrong predictions" not in text


def test_labels_do_not_cover_each_other():
    spots = [(50.0, 50.0), (52.0, 50.0), (54.0, 50.0)]
    found = place_labels(spots, [40.0] * 3, [0, 0, 0], (0, 0, 200, 100), 12.0)
    boxes = []
    for (x, y), place in zip(spots, found, strict=True):
        if place is not None:
            left = x + place.dx - {"left": 0, "center": 20, "right": 40}[place.side]
            boxes.append((left, y + place.dy - 6, left + 40, y + place.dy + 6))
    assert len(boxes) >= 2
    for i, a in enumerate(boxes):
        for b in boxes[i + 1 :]:
            assert a[2] <= b[0] or b[2] <= a[0] or a[3] <= b[1] or b[3] <= a[1]


def test_labels_without_room_are_dropped_unless_indispensable():
    tight = (0, 0, 10, 10)
    assert place_labels([(5.0, 5.0)], [80.0], [0], tight, 12.0) == [None]
    assert isinstance(place_labels([(5.0, 5.0)], [80.0], [2], tight, 12.0)[0], Place)


def test_labels_keep_off_lines():
    line = (51.0, 40.0, 100.0, 60.0)
    arguments = ([(50.0, 50.0)], [30.0], [1], (0, 0, 100, 100), 12.0)
    assert place_labels(*arguments)[0].side == "left"
    assert place_labels(*arguments, obstacles=[line])[0].side == "right"


def test_important_labels_choose_first():
    spots = [(50.0, 50.0), (50.0, 50.0)]
    found = place_labels(spots, [30.0, 30.0], [0, 1], (0, 0, 100, 100), 12.0)
    assert found[1] == Place(9.0, 0.0, "left")


def test_focus_leaves_what_fell_apart_to_the_edge():
    every = [Interval(v, v - 0.01, v + 0.01) for v in (0.1, 0.9, 0.91, 0.92, 0.93)]
    low, high = focus(every)
    assert 0.88 < low < 0.89
    assert 0.94 < high < 0.95
    assert outside(0.1, (low, high)) == -1
    assert focus(every, always=every[:1])[0] < 0.1
    assert outside(0.5, focus([Interval(0.5, 0.5, 0.5)])) == 0


def test_focus_draws_tukeys_fence():
    # The quartiles are 2 and 4: the fence stands at -1 and 7.
    every = [Interval(v, v, v) for v in (1.0, 2.0, 3.0, 4.0, 6.9)]
    assert outside(6.9, focus(every)) == 0
    assert outside(7.1, focus([*every[:4], Interval(7.1, 7.1, 7.1)])) == 1


def test_range_draws_dot_line_and_reference():
    text = range_svg(Interval(0.5, 0.4, 0.6), (0.0, 1.0), 0.25, "40 to 60 %")
    root = ElementTree.fromstring(text)
    middle = float(root.get("width")) / 2
    assert float(root.find("circle").get("cx")) == middle
    bar = root.find("line[@class='bar']")
    assert float(bar.get("x1")) < middle < float(bar.get("x2"))
    assert float(root.find("line[@class='ref']").get("x1")) < float(bar.get("x1"))
    assert root.find("title").text == "40 to 60 %"
    # The caps stand at the ends of the bar, and outside a dot that would cover a short one.
    caps = [float(x) for x in re.findall(r"M([\d.]+) ", root.find("path[@class='cap']").get("d"))]
    assert caps == [float(bar.get("x1")), float(bar.get("x2"))]
    assert "cap" not in range_svg(Interval(0.5, 0.5, 0.5), (0.0, 1.0), None, "")


def test_range_points_at_values_off_the_axis():
    text = range_svg(Interval(-1.0, -1.1, -0.9), (0.0, 1.0), None, "")
    assert 'class="off"' in text
    assert "circle" not in text


def test_long_names_are_cut_to_fit():
    assert shortened("average", 7) == "average"
    assert shortened("average of probabilities", 9) == "average…"
