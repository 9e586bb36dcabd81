"""The page on the server's app: four views under `/page/`, in the same process, from no network."""

import logging

from fastapi import FastAPI
from fastapi.responses import RedirectResponse
from nicegui import ui

from demur.server.page import appeals, features, play, trade_off
from demur.server.page.desk import Desk
from demur.server.page.frame import admitted, frame
from demur.server.page.parts import Tag

ICON = (
    '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 32 32"><circle cx="16" cy="16" r="14" fill="#0b5cad"/>'
    '<path d="M9 16h14" stroke="#fff" stroke-width="4" stroke-linecap="round"/></svg>'
)


def add_page(app: FastAPI, desk: Desk) -> None:
    """Adds the page to an app, which has one at most; `/` leads to it."""

    @ui.page("/")
    async def play_view() -> None:
        with frame(
            desk, "", "Ask something, and see what the model says when it is left alone and when it is steered."
        ):
            view = play.Play(desk)
        await view.begin()

    @ui.page("/features")
    async def features_view() -> None:
        with frame(desk, "features", "What the policy reads and raises inside the model: browse it, then move one."):
            place = Tag("div")
        with place:
            if await admitted(desk):
                features.Features(desk)

    @ui.page("/trade-off")
    async def trade_off_view() -> None:
        lead = "What each policy refuses: of what it should, upwards; of what it should not, to the right."
        with frame(desk, "trade-off", lead):
            place = Tag("div")
        with place:
            if await admitted(desk):
                await trade_off.TradeOff(desk).begin()

    @ui.page("/appeals")
    async def appeals_view() -> None:
        with frame(desk, "appeals", "Refusals that somebody contests. What is upheld here improves the next policy."):
            view = appeals.Appeals(desk)
        await view.begin()

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
