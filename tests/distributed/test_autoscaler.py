"""Ray's autoscaler is ended, and no other child."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from cfdist.distributed.autoscaler import end_autoscaler


def test_only_the_autoscaler_among_the_children_is_killed(tmp_path):
    monitor = tmp_path / "autoscaler" / "_private" / "monitor.py"
    other = tmp_path / "other.py"
    monitor.parent.mkdir(parents=True)
    children = []
    for script in (monitor, other):
        Path(script).write_text("print('up', flush=True)\nimport time\ntime.sleep(60)\n")
        child = subprocess.Popen([sys.executable, str(script)], stdout=subprocess.PIPE)
        child.stdout.readline()
        children.append(child)
    try:
        end_autoscaler()
        assert children[0].wait(timeout=10) == -9
        assert children[1].poll() is None
    finally:
        for child in children:
            child.kill()
            child.wait()
            child.stdout.close()
