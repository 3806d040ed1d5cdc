"""What a node writes to its log, by several threads of two processes at once."""

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent
LINES = 2000
CROWD = f"""
import logging, os, sys, threading, warnings
import structlog
from pacs_node.logs import configure_logs
configure_logs()
os.fork()
def ours():
    for number in range({LINES}):
        structlog.get_logger().info("ours", number=number)
def theirs():
    for number in range({LINES}):
        logging.getLogger("library").warning("theirs %d", number)
threads = [threading.Thread(target=one) for one in (ours, theirs)]
for one in threads: one.start()
for one in threads: one.join()
"""


def test_each_line_is_whole_whoever_writes_at_the_same_moment() -> None:
    done = subprocess.run([sys.executable, "-c", CROWD], cwd=ROOT, stderr=subprocess.PIPE, check=True)
    said = [json.loads(line)["event"] for line in done.stderr.decode().splitlines()]
    assert len(said) == 4 * LINES
    assert said.count("ours") == 2 * LINES
