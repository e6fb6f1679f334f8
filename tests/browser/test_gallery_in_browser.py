"""The gallery as a reader meets it: opened from disk, ordered, filtered, on a telephone, in the dark, on paper, unscripted."""

import re
from itertools import pairwise

import pytest
from report_folder_study import score

CARDS = "#all-items > li"
RATIO = """
(selector) => {
  const parse = (text) => text.match(/[\\d.]+/g).map(Number);
  const light = ([r, g, b]) => [r, g, b].map((v) => v / 255).map((v) => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4)
    .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
  const ground = (e) => { for (; e; e = e.parentElement) { const c = parse(getComputedStyle(e).backgroundColor);
    if (c.length < 4 || c[3] > 0) return c; } return [255, 255, 255]; };
  return Array.from(document.querySelectorAll(selector)).filter((e) => e.checkVisibility()).map((e) => {
    const [a, b] = [light(parse(getComputedStyle(e).color)), light(ground(e))];
    return (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05); });
}
"""


def numbers(opened) -> list[int]:
    """The items that are visible, in their order on the page."""
    return [int(text) for text in opened.page.eval_on_selector_all(CARDS, "all => all.map(e => e.dataset.order)")]


def choose(opened, **fields: str) -> None:
    for name, value in fields.items():
        place = opened.page.locator(f".controls [name={name}]")
        place.select_option(value) if place.evaluate("e => e.tagName") == "SELECT" else place.fill(value)
    opened.page.evaluate("new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))")


def count(opened) -> str:
    return opened.page.locator("#count").inner_text()


@pytest.mark.parametrize("width", [1280, 390])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_page_opens_from_disk_asks_nobody_and_fits_its_window(small, visit, width, scheme):
    opened = visit(small, width=width, color_scheme=scheme)
    assert opened.complaints == []
    assert opened.outside() == []
    assert opened.overflow() == 0
    assert count(opened) == "12 of 12"
    dark = (
        sum(int(v) for v in re.findall(r"\d+", opened.page.evaluate("getComputedStyle(document.body).backgroundColor")))
        < 200
    )
    assert dark == (scheme == "dark")
    assert min(opened.page.evaluate(RATIO, "p, span, b, a, h1, h2, h3, label, button, th, td, select")) >= 4.5, (
        "WCAG AA"
    )


def test_items_are_ordered_by_score_subject_and_concept(small, visit):
    opened = visit(small)
    assert numbers(opened) == list(range(12))
    best = sorted(range(12), key=lambda i: -score(i))
    choose(opened, order="best")
    assert numbers(opened) == best
    choose(opened, order="worst")
    assert numbers(opened) == best[::-1]
    choose(opened, run="B")  # whose scores are the complement
    assert numbers(opened) == best
    choose(opened, order="best", metric="mse", run="A")  # a tenth of the score, and lower is better
    assert numbers(opened) == best[::-1]
    choose(opened, order="subject")
    assert numbers(opened) == [0, 2, 4, 6, 8, 10, 1, 3, 5, 7, 9, 11]
    choose(opened, order="concept")  # blue_sphere, green_box, red_cone
    assert numbers(opened) == [2, 5, 8, 11, 1, 4, 7, 10, 0, 3, 6, 9]


def test_items_are_filtered_by_subject_concept_text_and_score_and_counted(small, visit):
    opened = visit(small)
    choose(opened, subject="02")
    assert (numbers(opened), count(opened)) == ([1, 3, 5, 7, 9, 11], "6 of 12")
    choose(opened, concept="green_box")
    assert (numbers(opened), count(opened)) == ([1, 7], "2 of 12")
    choose(opened, text="PICTURE-0007")
    assert (numbers(opened), count(opened)) == ([7], "1 of 12")
    opened.page.get_by_role("button", name="Reset").click()
    opened.page.wait_for_function("document.getElementById('count').textContent === '12 of 12'")
    choose(opened, low="0.5")
    assert numbers(opened) == [i for i in range(12) if score(i) >= 0.5]
    choose(opened, run="wrong EEG")
    assert (numbers(opened), count(opened)) == ([], "0 of 12"), "the control has 0.25 everywhere"


def test_the_number_below_a_picture_is_the_chosen_score(small, visit):
    opened = visit(small)
    shown = opened.page.locator("#all-items > li").nth(3).locator(".value")
    assert shown.all_inner_texts() == [f"{score(3):.3f}", f"{1 - score(3):.3f}", "0.250"]
    choose(opened, metric="mse")
    assert shown.all_inner_texts() == [f"{score(3) / 10:.3f}", f"{(1 - score(3)) / 10:.3f}", "0.025"]


def test_a_view_has_an_address(small, visit):
    opened = visit(small)
    choose(opened, order="best", subject="02")
    address = opened.page.evaluate("location.hash")
    again = visit(small, anchor=address)
    assert numbers(again) == numbers(opened)
    assert count(again) == "6 of 12"


def test_the_controls_are_reached_and_moved_by_keyboard(small, visit):
    opened = visit(small)
    opened.page.locator(".controls [name=subject]").focus()
    opened.page.keyboard.press("ArrowDown")
    opened.page.wait_for_function("document.getElementById('count').textContent === '6 of 12'")
    opened.page.keyboard.press("Tab")
    assert opened.page.evaluate("document.activeElement.name") == "concept"
    assert opened.page.evaluate("getComputedStyle(document.activeElement).outlineStyle") == "solid"


def test_without_scripts_every_card_can_be_read_and_no_control_is_shown(small, visit):
    opened = visit(small, java_script_enabled=False)
    cards = opened.page.locator("#all-items > li")
    assert cards.count() == 12
    assert cards.first.is_visible()
    assert not opened.page.locator(".controls").is_visible()
    assert not opened.page.locator(".solid button").first.is_visible()


def test_on_paper_there_are_cards_and_no_controls(small, visit):
    opened = visit(small, color_scheme="dark")
    opened.page.emulate_media(media="print", color_scheme="dark")
    assert not opened.page.locator(".controls").is_visible()
    assert not opened.page.locator("nav").is_visible()
    assert not opened.page.locator(".solid button").first.is_visible()
    assert opened.page.locator("#all-items > li").first.is_visible()
    assert opened.page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    style = "e => [getComputedStyle(e).breakInside, getComputedStyle(e).contentVisibility]"
    assert opened.page.locator("#all-items > li").first.evaluate(style) == ["avoid", "visible"]


def test_a_reader_who_does_not_see_it_finds_landmarks_labels_and_words(small, visit):
    page = visit(small).page
    for landmark in ("header", "nav[aria-label]", "main", "footer"):
        assert page.locator(landmark).count() == 1
    levels = [int(name[1]) for name in page.eval_on_selector_all("h1,h2,h3,h4,h5,h6", "all => all.map(e => e.tagName)")]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(after <= before + 1 for before, after in pairwise(levels))
    assert page.locator("img:not([alt]), img[alt='']").count() == 0
    assert page.eval_on_selector_all("select, input", "all => all.filter(e => !e.labels.length).length") == 0
    names = page.eval_on_selector_all(".solid button", "all => all.map(e => e.getAttribute('aria-label'))")
    assert len(set(names)) == len(names) == 6
    assert page.locator("th:not([scope])").count() == 0
    assert page.locator("#count").get_attribute("aria-live") == "polite"
    assert page.locator("html").get_attribute("lang") == "en"
    identifiers = page.eval_on_selector_all("[id]", "all => all.map(e => e.id)")
    assert len(set(identifiers)) == len(identifiers)
