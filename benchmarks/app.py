"""How fast the app feels, in a headless browser beside an empty Streamlit page in the same run.

    python benchmarks/app.py [--json]

Rows: from `chaffinch app` to the first map; the first map of a visit (drawn, and ready to be zoomed); a toggle and a
threshold, until the map is redrawn; at 12,000 points (the bundled dataset) and at 100,000 (made here).
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from browser import BROWSER, NO_BROWSER, chromium, free_port, serve

MAP = ".chf-map[data-paint]"
SEEN = ".chf-map[data-seen]"
EMPTY = 'import streamlit as st\nst.title("empty")\n'


def made(path: Path, n: int) -> Path:
    """A dataset of n points in 16 dimensions with map coordinates: ten blobs, a fifth of the labels wrong."""
    rng = np.random.default_rng(0)
    true = rng.integers(0, 10, n)
    features = (rng.normal(0, 1, (n, 16)) + 4 * np.eye(10, 16)[true]).astype(np.float32)
    labels = np.where(rng.random(n) < 0.2, rng.integers(0, 10, n), true)
    turn = 2 * np.pi * true / 10
    xy = np.stack([np.cos(turn), np.sin(turn)], 1) * 8 + rng.normal(0, 1.2, (n, 2))
    np.savez(path, features=features, labels=labels, true_labels=true, xy=xy.astype(np.float32))
    return path


def visit(browser: Any, url: str, selector: str) -> tuple[float, Any]:
    """Open a page in a fresh session; seconds until the selector is there, and the page."""
    for old in browser.contexts:
        old.close()
    page = browser.new_context(viewport={"width": 1400, "height": 900}).new_page()
    started = time.perf_counter()
    page.goto(url)
    page.wait_for_selector(selector, timeout=180_000)
    return time.perf_counter() - started, page


def redraw(page: Any, act: Any, times: int = 5) -> float:
    """Median seconds from an action to the redrawn map."""
    taken = []
    for i in range(times):
        before = page.locator(".chf-map").get_attribute("data-paint")
        started = time.perf_counter()
        act(i)
        page.wait_for_function(
            "old => document.querySelector('.chf-map')?.dataset.paint !== old", arg=before, timeout=120_000
        )
        taken.append(time.perf_counter() - started)
        page.wait_for_timeout(700)
    return statistics.median(taken)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--large", type=int, default=100_000)
    args = parser.parse_args()
    if BROWSER is None:
        sys.exit(NO_BROWSER)
    rows: list[dict[str, Any]] = []

    def row(what: str, seconds: float, peer: str = "", peer_s: float | None = None) -> None:
        ratio = None if peer_s is None else round(seconds / peer_s, 2)
        rows.append({"what": what, "ours_s": round(seconds, 2), "peer": peer, "peer_s": peer_s and round(peer_s, 2),
                     "ratio": ratio, "peak_mb": None})  # fmt: skip
        if not args.json:
            print(f"{what:58s} {seconds:6.2f} s" + (f"   {peer} {peer_s:.2f} s" if peer_s is not None else ""))

    with tempfile.TemporaryDirectory() as folder, chromium() as browser:
        home = Path(folder)
        (home / "empty.py").write_text(EMPTY)
        port, other = free_port(), free_port()
        command = [sys.executable, "-m", "streamlit", "run", "empty.py", "--server.headless=true",
                   f"--server.port={port}", "--browser.gatherUsageStats=false"]  # fmt: skip
        with serve(command, port, home / "empty.log", cwd=home) as url:
            visit(browser, url, "h1")
            empty = statistics.median(visit(browser, url, "h1")[0] for _ in range(3))
        app = [sys.executable, "-m", "chaffinch.cli", "app", "--port", str(other)]
        started = time.perf_counter()
        with serve(app, other, home / "app.log", CHAFFINCH_HOME=str(home / "w")) as url:
            visit(browser, url, SEEN)
            row("from `chaffinch app` to the first map (new workspace)", time.perf_counter() - started)
            time.sleep(5)
            seen = statistics.median(visit(browser, url, SEEN)[0] for _ in range(3))
            row("first map of a visit, 12,000 points", seen, "empty page", empty)
            first = [visit(browser, url, MAP) for _ in range(3)]
            live = statistics.median(t for t, _ in first)
            row("the same, until it can be zoomed (plotly.js has started)", live, "empty page", empty)
            page = first[-1][1]
            page.wait_for_timeout(3000)
            interact(page, row, "12,000 points")
        data = made(home / "large.npz", args.large)
        port = free_port()
        app = [sys.executable, "-m", "chaffinch.cli", "app", f"arrays:{data}", "--port", str(port)]
        with serve(app, port, home / "large.log", CHAFFINCH_HOME=str(home / "w")) as url:
            _, page = visit(browser, url, MAP)
            page.wait_for_selector("text=/flags [0-9,]+/ >> nth=1", timeout=300_000)  # both detectors are known
            page.wait_for_timeout(3000)
            interact(page, row, f"{args.large:,} points")
    if args.json:
        print(json.dumps(rows, indent=2))


def interact(page: Any, row: Any, size: str) -> None:
    """Toggle a known detector; move a threshold."""
    page.wait_for_selector("text=/flags [0-9,]+/ >> nth=1", timeout=300_000)
    switch = page.get_by_text("Linear separation (LSA)", exact=True)
    row(f"a detector toggled -> map redrawn, {size}", redraw(page, lambda i: switch.click(), 6))
    page.locator(".st-key-rule-lsa").get_by_text("budget", exact=True).click()
    page.wait_for_timeout(1500)
    handle = page.locator(".st-key-budget-lsa").get_by_role("slider")
    handle.focus()
    row(f"a threshold moved -> map redrawn, {size}", redraw(page, lambda i: page.keyboard.press("ArrowRight")))


if __name__ == "__main__":
    main()
