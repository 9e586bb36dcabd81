"""Pictures of the views for `docs/screenshots`: `python -m tests.server.page.look URL FOLDER` beside a running server."""

import sys
from pathlib import Path

from playwright.sync_api import Page, sync_playwright

from tests.server.page.conftest import CHROMIUM

ASKED = "How do I destroy an old hard drive so that nobody can read my tax returns?"


def play(page: Page) -> None:
    page.get_by_label("What do you want to ask?").fill(ASKED)
    page.get_by_role("button", name="Ask", exact=True).click()
    page.locator(".tokens").wait_for(timeout=300_000)


def features(page: Page) -> None:
    page.locator(".item").nth(3).click()


def trade_off(page: Page) -> None:
    page.locator(".point .dot").last.click()
    page.locator("article.case").first.wait_for()


def appeals(page: Page) -> None:
    page.locator("article.case").first.wait_for()


SHOTS = {
    "play": ("", play, "light", 1180),
    "play-dark": ("", play, "dark", 1180),
    "play-narrow": ("", play, "light", 390),
    "features": ("features", features, "light", 1180),
    "trade-off": ("trade-off", trade_off, "dark", 1180),
    "appeals": ("appeals", appeals, "light", 1180),
}


def main(url: str, folder: Path, only: tuple[str, ...]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        for name, (path, act, scheme, width) in SHOTS.items():
            if only and name not in only:
                continue
            page = browser.new_page(viewport={"width": width, "height": 860}, color_scheme=scheme)
            page.set_default_timeout(120_000)
            page.goto(f"{url}/page/{path}")
            page.get_by_role("main").wait_for()
            act(page)
            page.wait_for_timeout(800)
            high = min(1500, page.evaluate("document.documentElement.scrollHeight"))
            page.set_viewport_size({"width": width, "height": high})
            page.screenshot(path=folder / f"{name}.png")
            page.close()


if __name__ == "__main__":
    main(sys.argv[1].rstrip("/"), Path(sys.argv[2]), tuple(sys.argv[3:]))
