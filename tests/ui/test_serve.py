"""The server of the app."""

import subprocess
import sys

CODE = """
import gc
from chaffinch.ui import serve
serve._warm()
print(gc.get_freeze_count(), len(gc.get_objects()))
"""


def test_what_was_imported_is_not_searched_for_garbage_after_every_run(workspace):
    """Streamlit searches after each, while nobody is answered, and a click that comes meanwhile may be lost."""
    done = subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True, check=True)
    frozen, left = map(int, done.stdout.split())
    assert frozen > 100_000
    assert left < frozen / 50
