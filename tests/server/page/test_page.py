"""The four views in a real Chromium: by mouse and by keyboard, streamed, narrow and dark, and read by machines."""

import re
from itertools import pairwise

import pytest

from demur.server.feedback.store import Store

pytest.importorskip("playwright.sync_api", reason="playwright is not installed; make setup installs it")
from playwright.sync_api import expect

VIEWS = {"": "Play", "features": "Features", "trade-off": "Trade-off", "appeals": "Appeals"}


def test_the_address_alone_leads_to_the_page(browser, server):
    page = browser.new_page()
    page.goto(f"{server.url}/")
    expect(page).to_have_title("Play · demur")
    page.close()


def test_both_answers_are_written_piece_by_piece_and_explained(visit):
    page = visit()
    page.get_by_label("What do you want to ask?").fill("Hello there")
    texts = page.locator(".answer .text")
    # Whatever is written into the second column, one entry a change.
    page.evaluate(
        """() => { window.seen = []; const place = document.querySelectorAll('.answer .text')[1];
        new MutationObserver(() => window.seen.push(place.textContent))
            .observe(place, {childList: true, characterData: true, subtree: true}); }"""
    )
    page.get_by_role("button", name="Ask", exact=True).click()
    expect(page.locator(".badge", has_text="steered")).to_be_visible()
    seen = page.evaluate("window.seen.filter(text => text)")
    assert len(set(seen)) >= 3
    assert all(later.startswith(sooner) for sooner, later in pairwise(seen))
    assert texts.nth(0).inner_text().strip()
    assert texts.nth(1).inner_text().strip() == seen[-1].strip()
    why = page.get_by_role("region", name="Why")
    expect(why).to_contain_text("the gate opened")
    tokens = why.locator("button.token")
    assert tokens.count() > 0
    tokens.last.click()
    expect(tokens.last).to_have_attribute("aria-pressed", "true")
    expect(why.locator(".aside")).to_contain_text("to the score")


def test_it_is_asked_and_appealed_by_keyboard_alone(visit, server):
    page = visit()
    expect(page.locator(".level .stops")).to_contain_text("strict")
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.textContent") == "Skip to the view"
    page.get_by_label("What do you want to ask?").focus()
    page.keyboard.type("By keyboard")
    page.keyboard.press("Control+Enter")
    button = page.get_by_role("button", name="This should not have been refused")
    expect(button).to_be_visible()
    button.focus()
    page.keyboard.press("Enter")
    dialog = page.get_by_role("dialog", name="Appeal against this answer")
    expect(dialog).to_be_visible()
    dialog.get_by_label("Why should it be answered?").focus()
    page.keyboard.type("It is harmless.")
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    expect(dialog).to_contain_text("Filed as appeal-")
    page.keyboard.press("Escape")
    expect(dialog).to_be_hidden()
    store = Store.open(server.store)
    filed = [c for c in store.cases("open")[0] if c.appeal.argument == "It is harmless."]
    store.close()
    assert [c.answer.messages[0].content for c in filed] == ["By keyboard"]


def test_the_slider_chooses_the_level(visit):
    page = visit()
    slider = page.get_by_role("slider", name="Level")
    expect(page.locator(".level")).to_contain_text("opens on everything")
    expect(slider).to_have_attribute("aria-valuetext", "standard")
    slider.focus()
    page.keyboard.press("ArrowRight")
    expect(slider).to_have_attribute("aria-valuetext", "strict")
    page.get_by_label("What do you want to ask?").fill("Strictly")
    page.keyboard.press("Control+Enter")
    expect(page.get_by_role("heading", name="Steered: strict")).to_be_visible()
    expect(page.locator(".badge", has_text="steered")).to_be_visible()


def test_what_the_server_refuses_is_told(visit):
    page = visit()
    page.get_by_label("What do you want to ask?").fill("word " * 700)
    page.get_by_role("button", name="Ask", exact=True).click()
    expect(page.get_by_role("alert").or_(page.locator(".remark.bad")).first).to_contain_text("does not fit")


def test_features_are_searched_and_one_is_moved(visit):
    page = visit("features")
    items = page.locator(".item")
    expect(items).to_have_count(3)
    page.get_by_role("searchbox").fill("bomb")
    expect(items).to_have_count(1)
    items.first.click()
    expect(page.locator(".evidence mark").first).to_have_text("bomb")
    page.get_by_role("searchbox").fill("")
    expect(items).to_have_count(3)
    items.nth(2).click()
    expect(page.get_by_role("heading", name="Feature 3")).to_be_visible()
    page.get_by_role("slider", name="Value").fill("3")
    expect(page.locator(".move .about")).to_have_text("3 × 4.0 = 12.0")
    page.get_by_role("button", name="Answer with it").click()
    texts = page.locator(".move .text")
    expect(page.get_by_role("button", name="Answer with it")).to_be_enabled()
    expect(texts.nth(1)).to_have_text(re.compile(r"\S"))
    expect(page.locator(".move .writing")).to_have_count(0)
    assert texts.nth(0).inner_text() != texts.nth(1).inner_text()


@pytest.mark.parametrize("how", ["mouse", "keyboard", "table"])
def test_a_point_opens_its_answers(visit, how):
    page = visit("trade-off")
    point = page.get_by_role("button", name=re.compile("^steered: harmful refused 90.0 %"))
    expect(point).to_be_visible()
    if how == "mouse":
        point.locator(".dot").click()
    elif how == "keyboard":
        point.focus()
        page.keyboard.press("Enter")
    else:
        page.get_by_role("button", name="steered", exact=True).click()
    expect(page.get_by_role("heading", name="Answers of steered")).to_be_visible()
    expect(point).to_have_attribute("aria-pressed", "true")
    page.get_by_label("Requests").select_option("benign")
    page.get_by_label("Outcome").select_option("refused")
    expect(page.locator("article.case")).to_have_count(2)
    expect(page.locator("article.case").first).to_contain_text("A benign request, number 0.")


def test_the_queue_is_worked_off(visit, server):
    page = visit("appeals")
    card = page.get_by_role("article").filter(has_text="Question 1?")
    expect(card).to_contain_text("Argument 1.")
    card.get_by_label("A note for whoever appealed").fill("You are right.")
    card.get_by_role("button", name=re.compile("^Uphold")).click()
    expect(card).to_contain_text("upheld by local: You are right.")
    page.get_by_label("Show").select_option("upheld")
    expect(page.get_by_role("article")).to_have_count(1)
    store = Store.open(server.store)
    assert [c.answer.id for c in store.cases("upheld")[0]] == ["chatcmpl-1"]
    store.close()


@pytest.mark.parametrize("path", VIEWS)
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_view_fits_a_narrow_screen_and_both_looks(visit, path, scheme):
    page = visit(path, viewport={"width": 360, "height": 740}, color_scheme=scheme)
    page.wait_for_timeout(500)
    assert page.evaluate("document.documentElement.scrollWidth") <= 360
    colour = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert colour == ("rgb(253, 253, 252)" if scheme == "light" else "rgb(21, 24, 27)")


@pytest.mark.parametrize(("path", "name"), VIEWS.items())
def test_a_screen_reader_finds_its_way(visit, path, name):
    page = visit(path)
    page.wait_for_timeout(500)
    assert page.evaluate("document.documentElement.lang") == "en-GB"
    for landmark in ("banner", "navigation", "main", "contentinfo"):
        expect(page.get_by_role(landmark).first).to_be_visible()
    expect(page.get_by_role("heading", level=1)).to_have_text(name)
    expect(page.get_by_role("link", name=name, exact=True)).to_have_attribute("aria-current", "page")
    nameless = page.evaluate(
        """() => [...document.querySelectorAll('button, input, textarea, select, [role=button]')].filter(e =>
        e.offsetParent && !(e.getAttribute('aria-label') || e.textContent.trim() || (e.labels && e.labels.length)))
        .map(e => e.outerHTML.slice(0, 200))"""
    )
    assert nameless == []
