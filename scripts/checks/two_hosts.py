"""Two hosts made of network namespaces train together: as one process, resumed, cut off, killed, unshared.

    sudo python scripts/checks/two_hosts.py --save      Linux with iproute2; about four minutes on two cores

Each host has an address, a name, processes and a link of its own, and its name is its loopback address in
/etc/hosts, as Debian has it; they share the disk. Seconds are from the fault to the end of the last rank.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "scripts/benchmarks")]

import common  # noqa: E402

from tests.conftest import TABLE, people  # noqa: E402

LLMTOOL = [sys.executable, "-m", "llmtool"]
CUT, KILL = "ip -n llb link set llb0 down", "ip netns pids llb | xargs kill -9"
LONG = ("train.budget.steps=10000000", "train.validate_every=1000000", "train.log_every=100")


UP = """
for host in lla llb; do
  ip netns add $host; ip -n $host link set lo up; mkdir -p /etc/netns/$host
  echo "127.0.0.1 localhost\n127.0.1.1 $host" > /etc/netns/$host/hosts
done
ip link add lla0 netns lla type veth peer name llb0 netns llb
ip -n lla addr add 10.77.0.1/24 dev lla0; ip -n lla link set lla0 up
ip -n llb addr add 10.77.0.2/24 dev llb0; ip -n llb link set llb0 up
"""
DOWN = "ip netns del lla; ip netns del llb; rm -f /etc/netns/ll[ab]/hosts"


def shell(script: str) -> None:
    subprocess.run(["sh", "-e", "-c", script], check=True)


def begin(places: list[Path], *sets: str) -> list[subprocess.Popen[str]]:
    """A rank on each host."""
    command = [*LLMTOOL, "train", "c.yaml", "--resume", *(f"--set={one}" for one in sets)]
    about = {"WORLD_SIZE": "2", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1", "MASTER_ADDR": "10.77.0.1"}
    about |= {"MASTER_PORT": "29577", "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    apart = ["unshare", "--uts", "--pid", "--fork", "--mount-proc", "--kill-child", "bash", "-c"]
    return [
        subprocess.Popen(
            ["ip", "netns", "exec", name, *apart, f'hostname {name}; exec "$@"', "-", *command],
            cwd=place, env={**os.environ, **about, "RANK": str(rank)}, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )
        for rank, (name, place) in enumerate(zip(("lla", "llb"), places, strict=True))
    ]  # fmt: skip


def end(running: list[subprocess.Popen[str]]) -> dict[str, Any]:
    began, said = time.monotonic(), [one.communicate(timeout=180)[1] for one in running]
    seconds, lines = round(time.monotonic() - began, 1), "".join(said).splitlines()
    codes = [one.returncode for one in running]
    return {"codes": codes, "seconds": seconds, "said": [one for one in lines if one.startswith("llmtool: ")]}


def fault(place: Path, command: str) -> dict[str, Any]:
    """What `command` does to a training in its middle."""
    running = begin([place, place], *LONG)
    while not (place / "run/train/metrics.jsonl").is_file() and running[0].poll() is None:
        time.sleep(0.2)
    shell(command)
    ended, log = end(running), (place / "run/ranks/train/rank-1.log").read_text().splitlines()
    return ended | {"log": [line for line in log if line.startswith("llmtool: ")]}


def losses(place: Path) -> list[float]:
    lines = (place / "run/train/metrics.jsonl").read_text().splitlines()
    return [row["loss"] for row in map(json.loads, lines) if "loss" in row]


def main() -> None:
    options = common.parser(__doc__).parse_args()
    text = TABLE.replace("dropout: 0.1", "dropout: 0").replace("log_every: 2", "log_every: 1")
    text = "run: run\ndevice: cpu\nparallel: {deadline: 10s}\n" + text.replace("runs/table", "run")
    figures: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as made:
        one, two, other = (Path(made, name) for name in ("one", "two", "other"))
        for place in (one, two, other):
            place.mkdir()
            (place / "c.yaml").write_text(text)
            (place / "people.csv").write_text(people())
        try:
            shell(UP)
            for steps in (10, 15, 20):
                more = f"train.budget.steps={steps}"
                for place in (one, two) if steps == 15 else (one,):
                    common.timed([*LLMTOOL, "train", "c.yaml", "--resume", "--set", more], cwd=place)
                if steps != 15:
                    figures[f"to step {steps}"] = end(begin([two, two], more))
            pairs = zip(losses(one), losses(two), strict=True)
            figures["largest relative difference"] = max(abs(a - b) / a for a, b in pairs)
            common.timed([*LLMTOOL, "prepare", "c.yaml"], cwd=other)
            figures["no checkpoint on b"] = end(begin([two, other], "train.budget.steps=25"))
            for name, command in (("rank 1 killed", KILL), ("link of b cut", CUT)):
                figures[name] = fault(Path(shutil.copytree(other, Path(made, name))), command)
        finally:
            shell(DOWN)
    print(json.dumps(figures, indent=2))
    common.save(options, "two_hosts", figures, common.versions("llmtool", "torch"))


if __name__ == "__main__":
    main()
