"""Sources on S3, from a server on this machine. `pip install s3fs 'moto[server]'`, then run this file.

Every form that a source may have is prepared, and what can be wrong is asked for; a line for each, and exit
code 1 where one is not as it should be. Not among the tests: its packages are not ours.
"""

from __future__ import annotations

import gzip
import logging
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import boto3
from moto.server import ThreadedMotoServer

ROOT = Path(__file__).parents[2]
IRIS = (ROOT / "configs/data/iris.csv").read_bytes()
CHECKS = {  # what stands in data.source.path -> (exit code, in what is said)
    "s3://data/iris.csv": (0, "versicolor"),
    "S3://data/iris.csv": (0, "versicolor"),
    "s3://data/parts": (0, "versicolor"),
    "s3://data/parts/*.csv": (0, "versicolor"),
    "s3://data/packed/iris.csv.gz": (0, "versicolor"),
    "s3://data/odd/a b+c%20ü.csv": (0, "versicolor"),
    "s3://data/none.csv": (4, "no such file"),
    "s3://data/*.json": (4, "no file matches"),
    "s3://nowhere/iris.csv": (4, "bucket does not exist"),
    "s3://data/empty.csv": (4, "the file is empty"),
}


def fill(endpoint: str) -> None:
    """Put what is read into a bucket; one folder of 300 parts of a table."""
    store = boto3.client("s3", endpoint_url=endpoint)
    store.create_bucket(Bucket="data")
    head, *rows = IRIS.splitlines()
    objects = {"iris.csv": IRIS, "odd/a b+c%20ü.csv": IRIS, "empty.csv": b"", "parts/note.txt": b"no table"}
    objects["packed/iris.csv.gz"] = gzip.compress(IRIS)
    objects |= {f"parts/{n:03}.csv": b"\n".join([head, rows[n % 150], rows[n * 7 % 150]]) for n in range(300)}
    for key, content in objects.items():
        store.put_object(Bucket="data", Key=key, Body=content)


def prepare(path: str, run: Path) -> tuple[int, str]:
    """Exit code of `llmtool prepare`, and what it said."""
    changes = [f"run={run}", f"data.source.path={path}"]
    sets = [word for change in changes for word in ("--set", change)]
    ended = subprocess.run(
        [sys.executable, "-m", "llmtool", "prepare", "configs/tabular/iris.yaml", *sets],
        cwd=ROOT, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    return ended.returncode, ended.stdout + ended.stderr


def main() -> None:
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0)
    server.start()
    host, port = server.get_host_and_port()
    secrets = {
        "AWS_ACCESS_KEY_ID": "testing",
        "AWS_SECRET_ACCESS_KEY": "geheim",
        "AWS_DEFAULT_REGION": "us-east-1",
    }
    os.environ |= {
        "AWS_ENDPOINT_URL": f"http://{host}:{port}",
        "AWS_EC2_METADATA_DISABLED": "true",
        **secrets,
    }
    fill(os.environ["AWS_ENDPOINT_URL"])
    wrong = 0
    with tempfile.TemporaryDirectory() as place:
        for number, (path, (code, said)) in enumerate(CHECKS.items()):
            found, text = prepare(path, Path(place) / str(number))
            good = found == code and said in text and "Traceback" not in text and "geheim" not in text
            wrong += not good
            print(f"{'ok   ' if good else 'WRONG'} {path}: {found} {'' if good else text[-300:]}", flush=True)
        again = prepare("s3://data/iris.csv", Path(place) / "0")[1]
        boto3.client("s3").put_object(Bucket="data", Key="iris.csv", Body=IRIS.replace(b"5.1", b"5.2"))
        changed = prepare("s3://data/iris.csv", Path(place) / "0")[1]
        good = "nothing has changed" in again and "contents changed" in changed
        wrong += not good
        print(f"{'ok   ' if good else 'WRONG'} what has not changed is not prepared again, what has is")
    server.stop()
    sys.exit(bool(wrong))


if __name__ == "__main__":
    main()
