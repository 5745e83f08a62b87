"""Jobs: one process of a name, a note that says how it stands, and a button that goes on."""

import subprocess
import sys
import time

import pytest

from chaffinch.ui import jobs
from chaffinch.ui.jobs import Job


@pytest.fixture
def begun(monkeypatch):
    """Every process that was begun; each sleeps, or does what ``script`` says."""
    processes, script = [], {"code": "import time; time.sleep(60)"}
    real = subprocess.Popen

    def start(command, **options):
        process = real([sys.executable, "-c", script["code"]], **options)
        process.asked = command
        processes.append(process)
        return process

    monkeypatch.setattr(jobs.subprocess, "Popen", start)
    yield processes, script
    for process in processes:
        process.kill()
        process.wait()


@pytest.fixture
def job(workspace):
    return Job(workspace, "work", ("embed", "fashion-web"), "a title")


def wait_for(true, seconds=30):
    until = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < until
        time.sleep(0.05)


def test_one_process_of_a_name(begun, job, workspace):
    processes, _ = begun
    assert job.state == {}
    assert not job.at_work
    job.start()
    job.start()
    assert len(processes) == 1
    assert processes[0].asked[:4] == [sys.executable, "-P", "-m", "chaffinch.cli"]
    assert processes[0].asked[4:6] == ["embed", "fashion-web"]
    assert processes[0].asked[-5:] == ["--workspace", str(workspace.root), "--job", "work", "--quiet"]
    assert job.at_work
    assert job.state == {"what": "starting", "share": 0.0, "pid": processes[0].pid}
    assert job.begun
    assert not Job(workspace, "work", ("other",), "").begun
    assert Job(workspace, "work", ("other",), "").at_work  # of the same name


def test_stopped_and_resumed_keeps_the_course(begun, job, workspace):
    processes, _ = begun
    job.start()
    workspace.note("work", workspace.noted("work") | {"history": [3.0, 2.0], "loss": 2.0})
    job.stop()
    assert processes[0].wait(5) != 0
    assert workspace.noted("work") == {"stopped": True, "history": [3.0, 2.0]}
    job.start(anew=False)
    assert job.state["history"] == [3.0, 2.0]
    job.stop()
    job.start()  # another one: nothing of the old
    assert "history" not in job.state


def test_a_process_that_ends_without_a_word_leaves_one(begun, job, workspace):
    _, script = begun
    script["code"] = "import sys; sys.exit(3)"
    job.start()
    wait_for(lambda: "error" in job.state)
    assert str(workspace.root / "notes" / "work.log") in job.state["error"]
    assert not job.at_work


def test_the_last_word_of_the_process_stays(begun, job, workspace):
    _, script = begun
    script["code"] = f"""
import json, pathlib, time
time.sleep(0.3)
pathlib.Path({str(workspace.folder("notes") / "work.json")!r}).write_text(json.dumps({{"done": True}}))
"""
    job.start()
    wait_for(lambda: job.state == {"done": True})
    time.sleep(0.3)
    assert job.state == {"done": True}


def test_a_note_of_a_process_that_is_gone(job, workspace):
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    workspace.note("work", {"what": "x", "share": 0.4, "pid": dead.pid, "history": [1.0]})
    assert job.state == {"history": [1.0]}
    assert not job.at_work
