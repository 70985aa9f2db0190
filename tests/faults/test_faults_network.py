"""With the model built in or at hand nothing ever connects (P10, T13)."""

import os
import shutil
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch
from cli.shell import COMMAND, ENVIRONMENT, PATIENCE, pictures

ALARM = """
import os, sys

def listen(event, arguments):
    is_local = event == "socket.connect" and isinstance(arguments[1], (str, bytes))  # a path
    if event in ("socket.getaddrinfo", "socket.gethostbyname", "socket.sendto", "socket.bind") or (
        event == "socket.connect" and not is_local
    ):
        os.write(2, f"the network was asked: {event} {arguments}\\n".encode())
        os._exit(99)

sys.addaudithook(listen)
"""


@pytest.fixture
def silent(tmp_path: Path) -> dict[str, str]:
    """An environment in which every Python process ends with 99 when it asks the network."""
    (tmp_path / "alarm").mkdir()
    (tmp_path / "alarm" / "sitecustomize.py").write_text(ALARM)
    paths = os.pathsep.join((str(tmp_path / "alarm"), ENVIRONMENT["PYTHONPATH"]))
    return ENVIRONMENT | {"PYTHONPATH": paths, "HF_HOME": str(tmp_path / "hf"), "ZIPCLI_TRAIN_STEPS": "2"}


@pytest.fixture
def here(tmp_path: Path) -> Path:
    folder = tmp_path / "here"
    for name in ("cat", "dog"):
        pictures(folder / "test" / name, 3, (16, 16))
    network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3 * 16 * 16, 2)).eval()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        torch.jit.save(torch.jit.trace(network, torch.zeros(1, 3, 16, 16)), folder / "model.pt")
    return folder


JOURNEY = """
purify test clean
purify test clean --retry-failed
purify test null --method nullspace --detector residual
attack test poisoned --attack badnets --target 0
purify poisoned cleaned --method blur
evaluate poisoned --classifier model.pt --input-size 16 --purified cleaned -o result.json
detect test --detector frequency
report cleaned -o report.html --evaluation result.json --maps
verify clean
status clean
doctor
models list
models path builtin
models info builtin
models verify
train test own.safetensors --crop 16
purify test own --model own.safetensors
completion bash
man purify
""".strip().splitlines()


def test_the_alarm_rings(silent: dict[str, str]) -> None:
    words = "import socket; socket.create_connection(('localhost', 9))"
    assert subprocess.run([sys.executable, "-c", words], env=silent, capture_output=True).returncode == 99


def test_no_command_asks_the_network_when_its_model_is_at_hand(here: Path, silent: dict[str, str]) -> None:
    for line in JOURNEY:
        done = subprocess.run(
            [*COMMAND, *line.split()], cwd=here, env=silent, capture_output=True, text=True, timeout=PATIENCE
        )
        assert done.returncode == 0, (line, done.returncode, done.stdout[-500:], done.stderr[-2000:])


@pytest.mark.skipif(shutil.which("strace") is None, reason="needs strace, which sees what native code does")
def test_native_code_asks_nobody_either(here: Path) -> None:
    words = ("strace", "-f", "-qq", "-e", "trace=connect,sendto,bind", "-o", "calls", *COMMAND)
    subprocess.run(
        [*words, "purify", "test", "clean"], cwd=here, env=ENVIRONMENT, check=True, capture_output=True
    )
    assert "AF_INET" not in (here / "calls").read_text()
