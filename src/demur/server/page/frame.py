"""The frame around every view: title, the four views, who one is, light or dark."""

from importlib.resources import files
from typing import Any

from nicegui import app as memory
from nicegui import ui

from demur.server.keys import Caller
from demur.server.page.desk import Desk
from demur.server.page.parts import Field, Tag, button, remark

VIEWS = {"": "Play", "features": "Features", "trade-off": "Trade-off", "appeals": "Appeals"}
LOOKS = {"auto": None, "light": False, "dark": True}
STYLE = files("demur.server.page").joinpath("style.css").read_text(encoding="utf-8")


class Visitor:
    """Who sits at the page, in this tab."""

    def __init__(self, desk: Desk, tab: Any) -> None:
        self.desk, self._tab = desk, tab

    @property
    def key(self) -> str:
        """The key that they gave; kept in the server's memory, for as long as the tab is open."""
        return self._tab.get("key", "")

    @property
    def caller(self) -> Caller | None:
        """Whose key it is; None for a key that is not known."""
        return self.desk.caller(self.key)


def visitor(desk: Desk) -> Visitor:
    """Who has opened the page."""
    return Visitor(desk, memory.storage.tab)


def admitted(desk: Desk) -> bool:
    """Whether whoever looks has a key that is known; if not, they are told."""
    known = visitor(desk).caller is not None
    if not known:
        remark("This is shown to those who have a key: give yours at the top of the page.")
    return known


async def frame(desk: Desk, view: str, lead: str) -> Tag:
    """The page around a view, and its main part to be filled, once the browser is there.

    Nothing that can be typed into or pressed is shown before: the server would not hear of it.
    """
    ui.page_title(f"{VIEWS[view]} · demur")
    ui.add_css(STYLE)
    # NiceGUI's page is the `main` of its layout; what is around it goes beside it, or it would be no landmark.
    layout = ui.context.client.layout
    layout.classes("frame")
    with layout:
        with Tag("header", classes="top") as top:
            Tag("a", "demur", "brand", href="./", aria_label="demur, to the first view")
            with Tag("nav", aria_label="Views"), Tag("ul"):
                for path, name in VIEWS.items():
                    with Tag("li"):
                        Tag("a", name, href=f"./{path}", aria_current="page" if path == view else None)
            tools = Tag("div", classes="tools")
        with Tag("footer", classes="bottom"):
            Tag("p", "A steered model says no; it does not become safe.", "soft")
    top.move(target_index=0)
    main = Tag("div", classes="view", tabindex="-1")
    ui.skip_link("Skip to the view", target=main)
    with main:
        Tag("h1", VIEWS[view], "sr-only")
        Tag("p", lead, "lead")
    await ui.context.client.connected()
    with tools:
        _look()
        if desk.serving.keys is not None:
            _key(desk)
    return main


def _look() -> None:
    dark = ui.dark_mode(None)

    def turn() -> None:
        names = list(LOOKS)
        now = names[(names.index(str(state.text).split()[-1]) + 1) % len(names)]
        dark.value = LOOKS[now]
        state.text = f"look: {now}"

    state = button("look: auto", turn, "quiet", title="Follow the system, or stay light or dark")


def _key(desk: Desk) -> None:
    dialog = Tag("dialog", classes="dialog", aria_label="Your key")

    def take() -> None:
        seen = visitor(desk)
        seen._tab["key"] = field.value
        who = seen.caller
        told.text = f"{who.name}, {who.role}" if who else "this key is not known."
        shown.text = f"key: {who.name}" if who else "key: none"
        if who:
            ui.navigate.reload()  # what a view shows depends on who looks

    def show() -> None:
        ui.run_javascript(f"document.getElementById('{dialog.html_id}').showModal()")

    known = visitor(desk).caller
    shown = button(f"key: {known.name if known else 'none'}", show, "quiet")
    with dialog:
        Tag("h2", "Your key")
        field = Field("The key that the operator gave you", "input", type="password", autocomplete="off")
        told = remark("")
        button("Use it", take, "main")
