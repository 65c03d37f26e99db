import io
import re

from rich.console import Console

from state.clock import ManualClock
from worker.corpus.progress import BarProgress, LineProgress, Rate, Silent


def test_the_speed_is_that_of_the_work_and_not_of_what_was_done_before():
    clock = ManualClock()
    rate = Rate(100_000_000, clock.monotonic)
    clock.sleep(1)
    rate.advance(50_000_000, 0)
    assert (str(rate), rate.remaining_s) == ("", None)
    clock.sleep(2)
    rate.advance(10_000_000, 3_000_000)
    assert str(rate) == "5.0 MB/s, 1,500,000 tokens/s"
    assert rate.remaining_s == 8


def test_lines_come_every_ten_seconds_with_share_speed_and_time_left():
    clock, stream = ManualClock(), io.StringIO()
    progress = LineProgress(stream, clock.monotonic)
    progress.say("hello")
    progress.stage("encoding", 100_000_000)
    for _ in range(3):
        clock.sleep(5)
        progress.advance(10_000_000, 4_000_000)
    assert stream.getvalue().splitlines() == ["hello", "encoding: 20% of 100 MB, 2.0 MB/s, 800,000 tokens/s, 40 s left"]


def test_a_bar_shows_the_stage_the_share_and_the_speed():
    stream = io.StringIO()
    with BarProgress(Console(file=stream, force_terminal=True, width=100)) as progress:
        progress.stage("reading", 10)
        progress.stage("encoding", 100)
        progress.advance(0)
        progress.advance(50, 7)
        progress.say("a [line] of its own")
        progress._bar.refresh()
    shown = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", stream.getvalue())
    assert "a [line] of its own" in shown
    assert re.search(r"encoding .* 50% .*MB/s, .*tokens/s", shown)


def test_nobody_needs_to_listen():
    progress = Silent()
    progress.say("x")
    progress.stage("x", 1)
    progress.advance(1)
