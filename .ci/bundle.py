"""Build hook: a wheel carries the app, its pages, its settings and the assets; an editable install does not."""

from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface


class Bundle(BuildHookInterface):  # type: ignore[type-arg]
    """Put the files of the checkout's top level into ``chaffinch/_bundle`` of the wheel."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Add them to a standard wheel."""
        if version == "standard":
            for name in ("app.py", "pages", "assets", ".streamlit/config.toml"):
                build_data["force_include"][name] = f"chaffinch/_bundle/{name}"
