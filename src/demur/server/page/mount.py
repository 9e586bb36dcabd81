"""The page on the server's app: four views under `/page/`, in the same process, from no network."""

import logging

from fastapi import FastAPI
from fastapi.responses import RedirectResponse
from nicegui import ui

from demur.server.page import appeals, features, play, trade_off
from demur.server.page.desk import Desk
from demur.server.page.frame import admitted, frame

ICON = (
    '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 32 32"><circle cx="16" cy="16" r="14" fill="#0b5cad"/>'
    '<path d="M9 16h14" stroke="#fff" stroke-width="4" stroke-linecap="round"/></svg>'
)


def add_page(app: FastAPI, desk: Desk) -> None:
    """Adds the page to an app, which has one at most; `/` leads to it."""

    @ui.page("/")
    async def play_view() -> None:
        lead = "Ask something, and see what the model says when it is left alone and when it is steered."
        with await frame(desk, "", lead):
            await play.Play(desk).begin()

    @ui.page("/features")
    async def features_view() -> None:
        with await frame(
            desk, "features", "What the policy reads and raises inside the model: browse it, then move one."
        ):
            if admitted(desk):
                features.Features(desk)

    @ui.page("/trade-off")
    async def trade_off_view() -> None:
        lead = "What each policy refuses: of what it should, upwards; of what it should not, to the right."
        with await frame(desk, "trade-off", lead):
            if admitted(desk):
                await trade_off.TradeOff(desk).begin()

    @ui.page("/appeals")
    async def appeals_view() -> None:
        lead = "Refusals that somebody contests. What is upheld here improves the next policy."
        with await frame(desk, "appeals", lead):
            await appeals.Appeals(desk).begin()

    app.add_api_route("/", lambda: RedirectResponse("/page/"), include_in_schema=False)
    logging.getLogger("nicegui").setLevel(logging.WARNING)
    ui.run_with(
        app,
        mount_path="/page",
        title="demur",
        favicon=ICON,
        dark=None,
        language="en-GB",
        tailwind=False,
        show_welcome_message=False,
    )
