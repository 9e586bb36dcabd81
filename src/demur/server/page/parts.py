"""The elements that all views are made of: plain HTML, so that keyboards and screen readers know what they are."""

import json
from collections.abc import Awaitable, Callable
from typing import Any

from nicegui import ui
from nicegui.elements.mixins.text_element import TextElement

Handler = Callable[[], Awaitable[None] | None]

VALUE = "(event) => emit(event.target.value)"
"""What the browser sends of a field that was changed."""
PRESSED = "(event) => { if (event.key === 'Enter' || event.key === ' ') { event.preventDefault(); emit(); } }"
"""Sends a press of what is no button by nature, such as a point of a drawing."""


class Tag(TextElement):
    """An element of any HTML or SVG tag; its text is text, nothing in it is markup.

    An attribute's underscores are hyphens (`aria_label`), one at the end is none (`class_`).
    """

    def __init__(self, tag: str, text: str = "", classes: str = "", **attributes: Any) -> None:
        super().__init__(tag=tag, text=text)
        self.classes(classes)
        self.put(**attributes)

    def put(self, **attributes: Any) -> "Tag":
        """Sets attributes; None takes one away."""
        for name, value in attributes.items():
            self.props.set_optional(name.rstrip("_").replace("_", "-"), value)
        return self

    def shown(self, yes: bool) -> "Tag":
        """Shows or hides it, for everybody alike."""
        return self.put(hidden=None if yes else True)


def button(text: str, press: Handler, classes: str = "", **attributes: Any) -> Tag:
    """A button."""
    made = Tag("button", text, f"button {classes}", type="button", **attributes)
    made.on("click", lambda _: press(), args=[])
    return made


class Field:
    """A labelled field, and what is in it.

    What is typed belongs to the browser: its `value` is never sent back, or a late echo would undo the next letter. Only
    the attribute is set, which is what the field begins with.
    """

    def __init__(self, label: str, tag: str = "textarea", value: str = "", hint: str = "", **attributes: Any) -> None:
        self.value = value
        with Tag("div", classes="field"):
            name = Tag("label", label)
            self.input = Tag(tag, value if tag == "textarea" else "", placeholder=hint or None, **attributes)
            begin_with(self.input, value)
            name.put(for_=self.input.html_id)
        self.input.on("input", self._changed, js_handler=VALUE)

    def set(self, value: str) -> None:
        """Puts a text into the field."""
        self.value = value
        ui.run_javascript(f"document.getElementById('{self.input.html_id}').value = {json.dumps(value)}")

    def _changed(self, event: Any) -> None:
        self.value = str(event.args)


def begin_with(field: Tag, value: str) -> None:
    """Sets what an input has until somebody changes it."""
    field.props["^value"] = value  # with this mark Vue sets the attribute, not the property


class Choice:
    """A labelled list to choose from."""

    def __init__(self, label: str, options: dict[str, str], value: str, change: Handler) -> None:
        self.value, self._change = value, change
        with Tag("div", classes="field choice"):
            name = Tag("label", label)
            self.select = Tag("select")
            name.put(for_=self.select.html_id)
            self.fill(options, value)
        self.select.on("change", self._changed, js_handler=VALUE)

    def fill(self, options: dict[str, str], value: str) -> None:
        """Other options in its place."""
        self.value = value
        self.select.clear()
        with self.select:
            for key, text in options.items():
                Tag("option", text, value=key, selected=True if key == value else None)

    async def _changed(self, event: Any) -> None:
        self.value = str(event.args)
        done = self._change()
        if done is not None:
            await done


def remark(text: str, tone: str = "") -> Tag:
    """A sentence that is read aloud as it appears: `bad` for what went wrong."""
    return Tag("p", text, f"remark {tone}", role="alert" if tone == "bad" else "status")
