"""zipcli models and --model NAME, against a Hub on loopback that can do everything wrong.

Every command here is a process of its own where it could connect: the Hub's library reads its
environment once. The numbers F76 to F88 are those of the fault catalogue.
"""

import hashlib
import io
import json
import math
import os
import pickle
import resource
import shutil
import signal
import socket
import struct
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from cli.shell import ENVIRONMENT, ROOT, everything, invoke, originals, picture, pictures, start, tree
from hub_server import Hub, read_file
from safetensors.torch import load, save

from zipcli.models.catalog import CATALOG, HubName

Files = dict[str, bytes]

WEIGHTS = "unet/diffusion_pytorch_model.safetensors"
CONFIG = "unet/config.json"
ROOT_WEIGHTS = "diffusion_pytorch_model.safetensors"
ROOT_PICKLE = "diffusion_pytorch_model.bin"

TOKEN = "hf_aSecretThatNobodyMaySee"
STRANGER = "hf_aSecretOfSomebodyElse"
SECRETS = (TOKEN, STRANGER, "hf_aSecretThatIsWrong", "aPasswordOfTheProxy")

HURRY = {"ZIPCLI_HUB_PATIENCE": "1"}
"""For a transfer that is to be given up; others have time on a busy machine."""

BOUND = 25
"""Seconds after which a command in a hurry must be over, on a busy machine."""

QUICK = ("--device", "cpu", "--steps", "2", "--grid", "paper")


# A Hub and a home


@dataclass(frozen=True)
class Done:
    """What a command did."""

    code: int
    out: str
    err: str
    seconds: float

    @property
    def json(self) -> Any:
        return json.loads(self.out)


@dataclass
class Site:
    """A Hub, and a user who has never met it."""

    hub: Hub
    home: Path
    env: dict[str, str] = field(default_factory=dict)
    before: tuple[str, ...] = ()
    damaged: bool = False
    """Whether the test itself puts wrong bytes into the cache."""

    @property
    def cache(self) -> Path:
        """Where the Hub's own library looks."""
        return self.home / "hf" / "hub"

    def environment(self, **env: str) -> dict[str, str]:
        clean = {"HF_TOKEN": "", "HF_HUB_OFFLINE": "0", "HTTP_PROXY": "", "HTTPS_PROXY": "", "ALL_PROXY": ""}
        return {
            **clean,
            "HOME": str(self.home),
            "HF_HOME": str(self.home / "hf"),
            "HF_ENDPOINT": self.hub.endpoint,
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "ZIPCLI_HUB_PATIENCE": "20",
            **self.env,
            **env,
        }

    def start(self, *words: str | Path, **env: str) -> "subprocess.Popen[bytes]":
        return start(*words, env=self.environment(**env), cwd=self.home, before=self.before)

    def finish(self, *processes: "subprocess.Popen[bytes]", began: float) -> list[Done]:
        """Wait for commands, and check what no command may ever do."""
        finished = []
        for process in processes:
            with process:
                out, err = (stream.decode() for stream in process.communicate(timeout=90))
            finished.append(Done(process.returncode, out, err, time.monotonic() - began))
        for done in finished:
            assert "Traceback" not in done.err, done.err
            assert done.code != 1, done.err
            for secret in SECRETS:
                assert secret not in done.out + done.err
        if not self.damaged:
            assert wrong_files(self.cache) == []
        return finished

    def at_once(self, *words: str | Path) -> list[Done]:
        """Run a command twice at the same time."""
        began = time.monotonic()
        return self.finish(self.start(*words), self.start(*words), began=began)

    def run(self, *words: str | Path, **env: str) -> Done:
        """Run a command."""
        began = time.monotonic()
        (done,) = self.finish(self.start(*words, **env), began=began)
        return done

    def well(self, *words: str | Path, **env: str) -> Done:
        """Run a command that must succeed."""
        done = self.run(*words, **env)
        assert done.code == 0, done.err
        return done

    def refused(self, *words: str | Path, **env: str) -> str:
        """Run a command that must say in one sentence why there is no model, and return it."""
        return the_error(self.run(*words, **env))

    def purify(self, model: str | Path, *words: str, **env: str) -> Done:
        """Purify two tiny pictures."""
        pictures(self.home / "in", 2)
        shutil.rmtree(self.home / "out", ignore_errors=True)
        return self.run("purify", "in", "out", "--model", model, *QUICK, *words, **env)

    def snapshot(self, repo: str, path: str = WEIGHTS) -> Path:
        """A file of a repository in the cache."""
        folder = self.cache / f"models--{repo.replace('/', '--')}"
        return folder / "snapshots" / self.hub.commit(repo) / path

    def served(self, repo: str, path: str = WEIGHTS) -> bytes:
        """What the Hub has under a path."""
        return self.hub.commits[repo][self.hub.commit(repo)][path].data[:]

    def partial(self) -> list[Path]:
        """Unfinished downloads."""
        return sorted(self.home.rglob("*.incomplete"))

    def arrived(self) -> list[int]:
        """Bytes of unfinished downloads; one may be renamed while it is looked at."""
        sizes = []
        for path in self.partial():
            with suppress(FileNotFoundError):
                sizes.append(path.stat().st_size)
        return sizes


def the_error(done: Done) -> str:
    """The only line on standard error but notes, which is an error about a model."""
    assert done.code == 4, (done.code, done.out, done.err)
    assert done.out == ""
    (line,) = (line for line in done.err.splitlines() if not line.startswith("Note: "))
    assert line.startswith("Error: ")
    return line.removeprefix("Error: ")


def wrong_files(cache: Path) -> list[str]:
    """Files in the cache under final names that are not the bytes that their names promise."""
    blobs = (path for path in cache.glob("models--*/blobs/*") if path.suffix != ".incomplete")
    wrong = []
    for path in blobs:
        file = read_file(path.read_bytes())
        if path.name not in (file.oid, file.sha256):
            wrong.append(str(path))
    return wrong + [str(path) for path in cache.rglob("snapshots/**/*") if not path.exists()]


def closed_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])


def wait_for(condition: Callable[[], object], process: "subprocess.Popen[bytes]") -> None:
    """Wait until something is so, while a process lives."""
    deadline = time.monotonic() + 600
    while not condition():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory: pytest.TempPathFactory) -> Files:
    """A pipeline of diffusers, as its own library writes it."""
    folder = tmp_path_factory.mktemp("pipeline")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of another library
        from diffusers import DDPMPipeline, DDPMScheduler, UNet2DModel

        torch.manual_seed(0)
        unet = UNet2DModel(
            sample_size=16,
            block_out_channels=(16, 32),
            layers_per_block=1,
            down_block_types=("DownBlock2D", "AttnDownBlock2D"),
            up_block_types=("AttnUpBlock2D", "UpBlock2D"),
            norm_num_groups=8,
        )
        DDPMPipeline(unet, DDPMScheduler()).save_pretrained(folder)
    card = b"---\nlicense: mit\n---\n# A tiny model\n"
    return {**everything(folder), "README.md": card, "unet/modeling_unet.py": b"raise SystemExit('run')\n"}


@pytest.fixture(scope="module")
def published(pipeline: Files) -> dict[str, Files]:
    """What the Hub has."""
    config, scheduler = pipeline[CONFIG], pipeline["scheduler/scheduler_config.json"]
    tensors = load(pipeline[WEIGHTS])
    root = {"config.json": config, "scheduler_config.json": scheduler}
    other = {name: tensor + 0.01 for name, tensor in tensors.items()}
    nan = {name: tensor.clone() for name, tensor in tensors.items()}
    next(iter(nan.values())).view(-1)[3] = math.nan
    return {
        "o/tiny": pipeline,
        "o/other": {**pipeline, WEIGHTS: save(other, {"format": "pt"})},
        "o/root": {**root, ROOT_WEIGHTS: pipeline[WEIGHTS], ROOT_PICKLE: torch_file(tensors)},
        "o/pickle": {**root, ROOT_PICKLE: torch_file(tensors)},
        "o/nan": {**pipeline, WEIGHTS: save(nan, {"format": "pt"})},
        "o/gated": pipeline,
        "o/nothing": {"README.md": b"# Soon\n"},
    }


def torch_file(value: object, **options: Any) -> bytes:
    """What torch.save writes."""
    buffer = io.BytesIO()
    torch.save(value, buffer, **options)
    return buffer.getvalue()


@pytest.fixture
def site(published: dict[str, Files], tmp_path: Path) -> Iterator[Site]:
    """The Hub at its best, and an empty home."""
    with Hub(published, gated={"o/gated": {TOKEN}}, tokens={STRANGER}) as hub:
        (tmp_path / "home").mkdir()
        yield Site(hub, tmp_path / "home")


@pytest.fixture(scope="module")
def pulled_home(published: dict[str, Files], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The home of somebody who has pulled two models."""
    with Hub(published) as hub:
        site = Site(hub, tmp_path_factory.mktemp("pulled"))
        site.well("models", "pull", "o/tiny", "o/other")
        return site.home


@pytest.fixture
def pulled(site: Site, pulled_home: Path) -> Site:
    """The same Hub, and a copy of that home."""
    shutil.copytree(pulled_home, site.home, symlinks=True, dirs_exist_ok=True)
    return site


# The Hub of these tests


CLIENT = """
from huggingface_hub import HfApi, hf_hub_download
for path in ("unet/config.json", "unet/diffusion_pytorch_model.safetensors"):
    hf_hub_download("o/tiny", path)
check = HfApi().verify_repo_checksums("o/tiny")
print(check.checked_count, len(check.mismatches))
"""


@pytest.mark.parametrize("cdn", ["localhost", "127.0.0.1", None])
def test_the_official_client_is_content_with_the_hub_of_these_tests(
    published: dict[str, Files], tmp_path: Path, cdn: str | None
) -> None:
    with Hub({"o/tiny": published["o/tiny"]}, cdn=cdn) as hub:
        hub.fail(f"*{WEIGHTS}", methods=("GET",), cut=100_000, times=1)
        words = [sys.executable, "-c", CLIENT]
        env = {**ENVIRONMENT, **Site(hub, tmp_path).environment()}
        done = subprocess.run(words, env=env, capture_output=True, text=True)
        assert done.stdout.split() == ["2", "0"], done.stderr
        assert len(hub.asked(WEIGHTS, "GET")) == 2
        assert wrong_files(tmp_path / "hf" / "hub") == []


def test_the_hub_of_these_tests_serves_a_folder(tmp_path: Path) -> None:
    (tmp_path / "o" / "n" / "sub").mkdir(parents=True)
    (tmp_path / "o" / "n" / "sub" / "file.txt").write_text("hello")
    script = Path(__file__).parents[1] / "hub_server.py"
    words = [sys.executable, str(script), str(tmp_path)]
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline().startswith("# o/n @ ")
        endpoint = process.stdout.readline().strip().removeprefix("export HF_ENDPOINT=")
        program = "from huggingface_hub import *; print(open(hf_hub_download('o/n', 'sub/file.txt')).read())"
        env = {**ENVIRONMENT, "HF_HOME": str(tmp_path / "hf"), "HF_ENDPOINT": endpoint}
        done = subprocess.run([sys.executable, "-c", program], env=env, capture_output=True, text=True)
        process.terminate()  # Ctrl-C is ignored below a shell that runs its jobs in the background
        assert done.stdout.strip() == "hello", done.stderr
        assert "GET /" in process.communicate()[1]


# A model by name


def test_pulling_a_model_fetches_only_its_files(site: Site) -> None:
    site.well("models", "pull", "o/tiny")
    asked = {r.path.split("/resolve/")[1].split("/", 1)[1] for r in site.hub.asked("/resolve/")}
    expected = {"model_index.json", CONFIG, "scheduler/scheduler_config.json", WEIGHTS}
    assert asked == expected
    assert site.snapshot("o/tiny").read_bytes() == site.served("o/tiny")
    assert len(site.hub.asked(f"/cdn/o/tiny/{site.hub.commit('o/tiny')}/{WEIGHTS}", "GET")) == 1
    assert site.partial() == []


def test_once_pulled_a_model_needs_no_request_by_any_of_its_names(pulled: Site) -> None:
    commit = pulled.hub.commit("o/tiny")
    outputs = []
    for name in ("o/tiny", "o/tiny@main", f"o/tiny@{commit}"):
        done = pulled.purify(name)
        assert done.code == 0, done.err
        outputs.append(tree(pulled.home / "out"))
    assert outputs[0] == outputs[1] == outputs[2]
    assert len(outputs[0]) == 2
    assert pulled.hub.requests == []


def test_a_model_is_fetched_when_it_is_first_used(site: Site) -> None:
    name = f"o/tiny@{site.hub.commit('o/tiny')}/{WEIGHTS}"
    first = site.purify(name)
    assert first.code == 0, first.err
    expected = tree(site.home / "out")
    assert site.hub.asked(WEIGHTS, "GET")
    site.hub.requests.clear()
    assert site.purify(name, "--offline").code == 0
    assert tree(site.home / "out") == expected
    assert site.hub.requests == []


def test_a_local_copy_gives_the_same_pixels_as_the_hub(
    pulled: Site, pipeline: Files, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert pulled.purify("o/tiny").code == 0
    expected = tree(pulled.home / "out")
    write(pulled.home / "copy", pipeline)
    monkeypatch.chdir(pulled.home)
    for n, model in enumerate(("copy", "./copy", "copy/unet", f"copy/{WEIGHTS}")):
        result = invoke("purify", "in", f"local{n}", "--model", model, *QUICK)
        assert result.exit_code == 0, result.stderr
        assert tree(pulled.home / f"local{n}") == expected
    assert invoke("purify", "in", "builtin", *QUICK).exit_code == 0
    assert tree(pulled.home / "builtin") != expected


def test_a_folder_wins_over_a_model_of_the_same_name(site: Site, pipeline: Files) -> None:
    write(site.home / "o" / "tiny", pipeline)
    assert site.well("models", "info", "o/tiny", "--json").json["parameters"] > 0
    assert site.hub.requests == []


def write(folder: Path, files: Mapping[str, bytes]) -> Path:
    """Write files below a folder."""
    for path, data in files.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(data)
    return folder


def test_a_pickle_is_left_alone_where_there_are_safetensors(site: Site) -> None:
    site.well("models", "pull", "o/root")
    assert site.hub.asked(ROOT_WEIGHTS, "GET")
    assert site.hub.asked(".bin") == []
    assert site.hub.asked(".py") == []


def test_a_harmless_pickle_of_the_hub_becomes_safetensors_once(site: Site, pipeline: Files) -> None:
    site.well("models", "pull", "o/pickle")
    digest = hashlib.sha256(site.served("o/pickle", ROOT_PICKLE)).hexdigest()
    (converted,) = (site.home / "hf").rglob("converted/*.safetensors")
    assert converted.name == f"{digest}.safetensors"
    written = converted.stat().st_mtime_ns
    site.hub.requests.clear()
    assert site.purify("o/pickle").code == 0
    expected = tree(site.home / "out")
    assert site.hub.requests == []
    assert converted.stat().st_mtime_ns == written
    assert site.purify("o/root").code == 0
    assert tree(site.home / "out") == expected


def test_info_says_what_a_model_is(site: Site, pipeline: Files) -> None:
    site.well("models", "pull", "o/tiny")
    info = site.well("models", "info", "o/tiny", "--json").json
    assert info["parameters"] == sum(tensor.numel() for tensor in load(pipeline[WEIGHTS]).values())
    assert "linear" in json.dumps(info["schedule"])
    assert hashlib.sha256(pipeline[WEIGHTS]).hexdigest() in json.dumps(info)
    assert site.hub.commit("o/tiny") in json.dumps(info)
    text = site.well("models", "info", "o/tiny").out
    assert str(info["parameters"]) in text.replace(",", "")


def test_path_prints_the_weights(pulled: Site) -> None:
    (line,) = pulled.well("models", "path", "o/tiny").out.splitlines()
    assert Path(line).read_bytes() == pulled.served("o/tiny")
    (line,) = pulled.well("models", "path", "builtin").out.splitlines()
    assert hashlib.sha256(Path(line).read_bytes()).hexdigest() == CATALOG["builtin"].sha256
    assert pulled.hub.requests == []


def test_list_says_what_is_here(pulled: Site) -> None:
    rows = {row["name"]: row for row in listed(pulled)}
    assert rows.keys() >= {*CATALOG, "o/tiny"}
    assert {name for name, row in rows.items() if row["cached"]} == {
        *("builtin", "builtin-blind", "o/tiny", "o/other")
    }
    pulled.snapshot("o/tiny").resolve().unlink()
    pulled.damaged = True
    rows = {row["name"]: row for row in listed(pulled)}
    assert not rows.get("o/tiny", {"cached": False})["cached"]
    assert pulled.hub.requests == []


def listed(site: Site) -> list[dict[str, Any]]:
    return [json.loads(line) for line in site.well("models", "list", "--json").out.splitlines()]


def test_verify_is_content_with_what_is_right(pulled: Site) -> None:
    done = pulled.well("models", "verify")
    assert all(name in done.err for name in ("builtin", "o/tiny", "o/other"))
    assert pulled.hub.requests == []


@pytest.mark.parametrize("words", [["models", "list"], ["models", "path", "o/tiny"], ["purify", "--help"]])
def test_what_needs_no_network_needs_no_torch(pulled: Site, words: list[str]) -> None:
    program = (
        "import sys\n"
        "from zipcli.cli.main import cli\n"
        "try:\n"
        f"    cli({words!r}, prog_name='zipcli')\n"
        "except SystemExit as e:\n"
        "    print(e.code, 'torch' in sys.modules, file=sys.stderr)\n"
    )
    env = {**ENVIRONMENT, **pulled.environment()}
    done = subprocess.run([sys.executable, "-c", program], env=env, capture_output=True, text=True)
    assert done.stderr.split() == ["0", "False"]


def test_the_builtin_prior_needs_no_network(site: Site) -> None:
    proxy = dict.fromkeys(("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"), site.hub.endpoint)
    assert site.purify("builtin", HF_ENDPOINT="", **proxy).code == 0
    assert site.hub.requests == []


# F76: not cached, and offline


@pytest.mark.parametrize(
    ("how", "name"),
    [
        ("option", "o/tiny"),
        ("option", "ddpm-cifar10-32"),
        ("variable", "o/tiny@v1"),
        ("variable", "openai-256"),
    ],
)
@pytest.mark.timed
def test_offline_a_missing_model_is_named_at_once_with_what_to_do(site: Site, how: str, name: str) -> None:
    start_of_a_process = site.well("--version").seconds + 1.5  # that of torch
    if how == "option":
        done = site.purify(name, "--offline")
        assert not (site.home / "out").exists()
    else:
        done = site.run("models", "pull", name, HF_HUB_OFFLINE="1")
    message = the_error(done)
    assert f"zipcli models pull {name}" in message
    assert str(site.cache) in message
    assert "offline" in message
    assert done.seconds - start_of_a_process <= 10
    assert site.hub.requests == []


# F77: the Hub is down


def refused_connection(site: Site) -> None:
    site.env["HF_ENDPOINT"] = f"http://127.0.0.1:{closed_port()}"


def no_such_host(site: Site) -> None:
    site.env["HF_ENDPOINT"] = "http://hub.invalid"


def no_tls(site: Site) -> None:
    site.env["HF_ENDPOINT"] = site.hub.endpoint.replace("http:", "https:")


def fails(**fault: Any) -> Callable[[Site], None]:
    return lambda site: site.hub.fail(**fault)


DOWN: dict[str, tuple[Callable[[Site], None], str]] = {
    "nobody listens": (refused_connection, "cannot be reached"),
    "no such host": (no_such_host, "cannot be reached"),
    "no TLS": (no_tls, "cannot be reached"),
    "500": (fails(status=500), "500"),
    "503": (fails(status=503), "503"),
    "503 for the content": (fails(pattern="/cdn/*", status=503), "503"),
    "no answer": (fails(hang=True), "without progress"),
    "no content": (fails(pattern="/cdn/*", hang=True), "without progress"),
    "hangs up": (fails(hang_up=True), "cannot be reached"),
    "hangs up on the content": (fails(pattern="/cdn/*", hang_up=True), ""),
    "1 kB/s": (fails(pattern="/cdn/*", rate=1000), "without progress"),
}


@pytest.mark.parametrize("kind", DOWN)
def test_a_hub_that_is_down_is_given_up_soon(site: Site, kind: str) -> None:
    bring_down, word = DOWN[kind]
    bring_down(site)
    done = site.run("models", "pull", "o/tiny", **HURRY)
    message = the_error(done)
    assert message.startswith("o/tiny")
    assert word in message
    assert done.seconds <= BOUND
    assert "o/tiny" in site.refused("models", "path", "o/tiny", HF_HUB_OFFLINE="1")
    if "content" in kind or "/s" in kind:
        site.hub.heal()
        site.well("models", "pull", "o/tiny")
        assert site.snapshot("o/tiny").read_bytes() == site.served("o/tiny")


@pytest.mark.parametrize("kind", ["nobody listens", "no such host", "no answer", "500"])
def test_a_model_in_the_cache_needs_no_hub(pulled: Site, kind: str) -> None:
    bring_down, _ = DOWN[kind]
    bring_down(pulled)
    assert pulled.well("models", "path", "o/tiny").seconds <= BOUND
    assert pulled.hub.requests == []


def test_a_hub_that_nobody_hears_is_given_up_well_within_a_minute(site: Site) -> None:
    endpoint = f"http://127.0.0.1:{closed_port()}"
    done = site.run("models", "pull", "o/tiny", HF_ENDPOINT=endpoint, ZIPCLI_HUB_PATIENCE="60")
    the_error(done)
    assert done.seconds <= 40


def test_a_slow_line_that_brings_a_megabyte_in_time_is_not_given_up(site: Site) -> None:
    data = (ROOT / "zipcli" / "models" / CATALOG["builtin"].file).read_bytes()
    site.hub.push("o/ours", {"prior.safetensors": data})
    site.hub.fail("/cdn/*", rate=2_000_000)
    done = site.well("models", "pull", "o/ours", ZIPCLI_HUB_PATIENCE="3")
    assert done.seconds > len(data) / 2_000_000 > 3


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A certificate that nobody vouches for, with its key."""
    if shutil.which("openssl") is None:
        pytest.skip("a certificate is made by the program openssl")
    folder = tmp_path_factory.mktemp("tls")
    words = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 -subj /CN=hub"
    options = ["-addext", "subjectAltName=IP:127.0.0.1", "-keyout", "key.pem", "-out", "cert.pem"]
    subprocess.run([*words.split(), *options], cwd=folder, check=True, capture_output=True)
    both = folder / "both.pem"
    both.write_bytes((folder / "key.pem").read_bytes() + (folder / "cert.pem").read_bytes())
    return both


def test_a_certificate_counts_only_when_the_user_trusts_it(
    published: dict[str, Files], tmp_path: Path, certificate: Path
) -> None:
    with Hub({"o/tiny": published["o/tiny"]}, cdn=None, tls=certificate) as hub:
        site = Site(hub, tmp_path)
        assert "certificate" in site.refused("models", "pull", "o/tiny").lower()
        assert hub.requests == []
        site.well("models", "pull", "o/tiny", SSL_CERT_FILE=str(certificate.with_name("cert.pem")))


# F78: half a download


def test_a_broken_connection_is_taken_up_where_it_broke(site: Site) -> None:
    site.hub.fail(f"/cdn/*{WEIGHTS}", cut=300_000)
    site.well("models", "pull", "o/tiny")
    asked = [r.range for r in site.hub.asked("/cdn/", "GET")]
    assert len(asked) == 3
    assert None not in asked[1:]
    assert site.snapshot("o/tiny").read_bytes() == site.served("o/tiny")
    assert site.partial() == []


def half_pulled(site: Site, data: bytes | None = None) -> int:
    """Leave behind what a stopped pull leaves, and return how many bytes."""
    right = site.served("o/tiny")
    part = site.cache / "models--o--tiny" / "blobs" / f"{hashlib.sha256(right).hexdigest()}.zipcli.incomplete"
    part.parent.mkdir(parents=True)
    part.write_bytes(right[:200_000] if data is None else data)
    return part.stat().st_size


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT, signal.SIGTERM])
def test_a_pull_that_was_stopped_is_resumed_by_the_next(site: Site, number: signal.Signals) -> None:
    site.hub.fail("/cdn/*", rate=200_000)
    with site.start("models", "pull", "o/tiny") as process:
        wait_for(lambda: max(site.arrived(), default=0) >= 50_000, process)
        process.send_signal(number)
        process.communicate()
    assert process.returncode == (-number if number == signal.SIGKILL else 128 + number)
    (part,) = site.partial()
    size = part.stat().st_size
    assert part.parent == site.cache / "models--o--tiny" / "blobs"
    assert part.name.endswith(".zipcli.incomplete")
    assert "o/tiny" in site.refused("models", "path", "o/tiny", HF_HUB_OFFLINE="1")
    site.hub.heal()
    site.hub.requests.clear()
    site.well("models", "pull", "o/tiny")
    assert [r.range for r in site.hub.asked("/cdn/", "GET")] == [f"bytes={size}-"]
    assert site.snapshot("o/tiny").read_bytes() == site.served("o/tiny")
    assert site.partial() == []


def test_a_hub_that_knows_no_ranges_sends_the_file_again(site: Site) -> None:
    half_pulled(site)
    site.hub.fail("/cdn/*", ignore_range=True)
    site.well("models", "pull", "o/tiny")
    assert len(site.hub.asked("/cdn/", "GET")) == 1
    assert site.snapshot("o/tiny").read_bytes() == site.served("o/tiny")


@pytest.mark.parametrize("rest", ["garbage", "too much", "nothing", "all of it"])
def test_a_strange_rest_of_a_pull_does_no_harm(site: Site, rest: str) -> None:
    right = site.served("o/tiny")
    data = {"garbage": bytes(100_000), "too much": right + b"more", "nothing": b"", "all of it": right}
    half_pulled(site, data[rest])
    site.well("models", "pull", "o/tiny")
    assert site.snapshot("o/tiny").read_bytes() == right
    assert site.partial() == []
    assert len(site.hub.asked("/cdn/", "GET")) == {"garbage": 2, "all of it": 0}.get(rest, 1)


def test_a_rest_of_another_version_is_not_used(site: Site, published: dict[str, Files]) -> None:
    half_pulled(site)
    site.hub.push("o/tiny", published["o/other"])
    site.well("models", "pull", "o/tiny")
    assert [r.range for r in site.hub.asked("/cdn/", "GET")] == [None]
    assert site.snapshot("o/tiny").read_bytes() == published["o/other"][WEIGHTS]


def test_a_blob_that_was_never_linked_is_not_fetched_again(pulled: Site) -> None:
    shutil.rmtree(pulled.cache / "models--o--tiny" / "snapshots")
    pulled.well("models", "pull", "o/tiny")
    assert pulled.hub.asked("/cdn/", "GET") == []


def test_weights_without_their_configuration_are_not_a_model(pulled: Site) -> None:
    pulled.snapshot("o/tiny", CONFIG).unlink()
    pulled.snapshot("o/tiny", CONFIG).with_name("modeling_unet.py").write_text("raise SystemExit")
    assert "o/tiny" in pulled.refused("models", "path", "o/tiny", HF_HUB_OFFLINE="1")
    pulled.well("models", "pull", "o/tiny")
    assert pulled.snapshot("o/tiny", CONFIG).read_bytes() == pulled.served("o/tiny", CONFIG)


def test_a_disk_that_is_too_small_is_noticed_before_it_is_full(
    site: Site, small_disk: Callable[..., Path]
) -> None:
    site.env["HF_HOME"] = str(small_disk("600k"))
    message = site.refused("models", "pull", "o/tiny")
    assert "disk" in message
    assert "HF_HOME" in message
    assert site.hub.asked("/cdn/", "GET") == []


def test_a_pull_goes_on_when_a_full_disk_has_room_again(site: Site, small_disk: Callable[..., Path]) -> None:
    disk = small_disk("2m")
    (site.home / "hf").symlink_to(disk)
    site.hub.fail("/cdn/*", rate=200_000)
    began = time.monotonic()
    process = site.start("models", "pull", "o/tiny")
    wait_for(lambda: [p for p in disk.rglob("*.incomplete") if p.stat().st_size >= 50_000], process)
    filler = disk / "filler"
    with filler.open("wb", buffering=0) as f:
        while free := shutil.disk_usage(disk).free:
            f.write(bytes(min(free, 4096)))
    (done,) = site.finish(process, began=began)
    message = the_error(done)
    assert "disk" in message
    assert "full" in message
    filler.unlink()
    site.hub.heal()
    site.hub.requests.clear()
    site.well("models", "pull", "o/tiny")
    (request,) = site.hub.asked("/cdn/", "GET")
    assert request.range is not None
    assert site.snapshot("o/tiny").read_bytes() == site.served("o/tiny")


# F79: no access


ACCESS: dict[str, tuple[str, str, dict[str, Any], list[str]]] = {
    "gated, no token": ("o/gated", "", {}, ["gated", "/o/gated", "HF_TOKEN"]),
    "gated, a token without access": ("o/gated", STRANGER, {}, ["gated", "/o/gated", "your token"]),
    "a wrong token": ("o/tiny", "hf_aSecretThatIsWrong", {}, ["token", "not accepted"]),
    "401, no token": ("o/tiny", "", {"status": 401}, ["private", "HF_TOKEN"]),
    "401, a token": ("o/tiny", TOKEN, {"status": 401}, ["token", "not accepted"]),
    "403": ("o/tiny", TOKEN, {"status": 403}, ["403"]),
    "no such repository": ("o/missing", "", {}, ["no such model"]),
    "no such repository, as the Hub says to strangers": (
        "o/missing",
        "",
        {"status": 401, "headers": {"X-Error-Code": "RepoNotFound"}},
        ["no such model"],
    ),
    "no such revision": ("o/tiny@v9", "", {}, ["no revision v9"]),
    "no such commit": (f"o/tiny@{'0' * 40}", "", {}, [f"no revision {'0' * 40}"]),
    "no such file": ("o/tiny/unet/missing.safetensors", "", {}, ["there is no unet/missing.safetensors"]),
    "no weights": ("o/nothing", "", {}, ["no weights", "README.md"]),
    "404 of something else": ("o/tiny", "", {"status": 404}, ["404"]),
}


@pytest.mark.parametrize("kind", ACCESS)
def test_whoever_has_no_access_is_told_why(site: Site, kind: str) -> None:
    name, token, fault, words = ACCESS[kind]
    if fault:
        site.hub.fail(**fault)
    message = site.refused("models", "pull", name, HF_TOKEN=token)
    for word in words:
        assert word in message
    assert message.startswith(name.split("@")[0].split("/unet")[0])


def test_a_token_is_sent_to_the_hub_and_to_nobody_else(site: Site) -> None:
    site.well("models", "pull", "o/gated", HF_TOKEN=TOKEN)
    assert site.snapshot("o/gated").read_bytes() == site.served("o/gated")
    sent = {r.host.split(":")[0]: set[str | None]() for r in site.hub.requests}
    for request in site.hub.requests:
        sent[request.host.split(":")[0]].add(request.authorization)
    assert sent == {"127.0.0.1": {f"Bearer {TOKEN}"}, "localhost": {None}}
    kept = b"".join(everything(site.home).values())
    assert TOKEN.encode() not in kept


@pytest.mark.parametrize("end", ["\x7f", "\nX-Evil: 1", "\u00e9"], ids=ascii)
def test_a_token_that_cannot_be_sent_is_not_shown(site: Site, end: str) -> None:
    site.refused("models", "pull", "o/gated", HF_TOKEN=TOKEN + end)


@pytest.mark.parametrize(
    "endpoint",
    ["banana", "http://", "ftp://127.0.0.1", "http://127.0.0.1:99999", "http://[::1", "file:///etc"],
)
def test_an_endpoint_that_is_none_is_refused(site: Site, endpoint: str) -> None:
    site.refused("models", "pull", "o/tiny", HF_ENDPOINT=endpoint, **HURRY)


def test_a_password_within_an_endpoint_is_not_shown(site: Site) -> None:
    endpoint = f"http://me:aPasswordOfTheProxy@127.0.0.1:{closed_port()}"
    site.refused("models", "pull", "o/tiny", HF_ENDPOINT=endpoint, **HURRY)


def test_the_token_of_hf_login_is_used(site: Site) -> None:
    (site.home / "hf").mkdir()
    (site.home / "hf" / "token").write_text(TOKEN)
    site.well("models", "pull", "o/gated")


def test_an_open_model_needs_no_token(site: Site) -> None:
    site.well("models", "pull", "o/tiny")
    assert {r.authorization for r in site.hub.requests} == {None}


# F80: a proxy in between


def test_a_proxy_is_used(site: Site) -> None:
    site.hub.cdn = None
    site.well("models", "pull", "o/tiny", HF_ENDPOINT="http://hub.invalid", HTTP_PROXY=site.hub.endpoint)
    assert {r.host for r in site.hub.requests} == {"hub.invalid"}


def test_a_proxy_that_is_wrong_is_said(site: Site) -> None:
    proxy = f"http://me:aPasswordOfTheProxy@127.0.0.1:{closed_port()}"
    message = site.refused("models", "pull", "o/tiny", HF_ENDPOINT="http://hub.invalid", HTTP_PROXY=proxy)
    assert "proxy" in message.lower()


def test_a_proxy_that_wants_a_password_is_said(site: Site) -> None:
    site.hub.fail(status=407, headers={"Proxy-Authenticate": "Basic"})
    message = site.refused(
        "models", "pull", "o/tiny", HF_ENDPOINT="http://hub.invalid", HTTP_PROXY=site.hub.endpoint
    )
    assert "proxy" in message
    assert "password" in message


@pytest.mark.parametrize(
    ("methods", "pattern"),
    [
        (("HEAD", "GET"), "*"),
        (("HEAD", "GET"), "*/resolve/*"),
        (("GET",), "*/resolve/*"),
        (("GET",), "/cdn/*"),
        (("GET",), "*/config.json"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else value,
)
def test_a_login_page_is_not_taken_for_a_model(site: Site, methods: tuple[str, ...], pattern: str) -> None:
    site.hub.fail(pattern, page=True, methods=methods)
    assert "looks like a web page" in site.refused("models", "pull", "o/tiny", **HURRY)
    assert site.partial() == []


@pytest.mark.parametrize("name", ["X-Repo-Commit", "X-Linked-Etag", "X-Linked-Size"])
def test_a_mirror_that_leaves_headers_out_is_refused_or_checked(site: Site, name: str) -> None:
    site.hub.cdn = None
    site.hub.fail(without=(name, "ETag") if name == "X-Linked-Etag" else (name,))
    if name == "X-Linked-Size":
        site.well("models", "pull", "o/tiny")
    else:
        assert "did not answer like the Hub" in site.refused("models", "pull", "o/tiny")


# F81: other bytes


def flip(data: bytes) -> bytes:
    """Change one bit of the last tensor."""
    return data[:-1] + bytes([data[-1] ^ 1])


@pytest.mark.parametrize("cdn", ["localhost", None])
def test_wrong_bytes_are_refused_with_both_digests(site: Site, cdn: str | None) -> None:
    site.hub.cdn = cdn
    right = site.served("o/tiny")
    site.hub.fail(f"*{WEIGHTS}", methods=("GET",), change=flip)
    message = site.refused("models", "pull", "o/tiny")
    assert hashlib.sha256(right).hexdigest() in message
    assert hashlib.sha256(flip(right)).hexdigest() in message
    assert site.partial() == []
    assert "o/tiny" in site.refused("models", "path", "o/tiny", HF_HUB_OFFLINE="1")
    site.hub.heal()
    site.well("models", "pull", "o/tiny")


def test_a_small_file_with_wrong_bytes_is_refused(site: Site) -> None:
    site.hub.fail("*config.json", methods=("GET",), change=lambda data: data.replace(b"8", b"4", 1))
    message = site.refused("models", "pull", "o/tiny")
    assert "config.json" in message
    assert "wrong bytes" in message


@pytest.mark.parametrize("change", [lambda data: data[:-1], lambda data: data + b"x"], ids=["short", "long"])
def test_a_file_of_another_length_is_refused(site: Site, change: Callable[[bytes], bytes]) -> None:
    site.hub.fail("/cdn/*", change=change)
    done = site.run("models", "pull", "o/tiny", **HURRY)
    assert WEIGHTS in the_error(done)
    assert done.seconds <= BOUND
    site.hub.heal()
    site.well("models", "pull", "o/tiny")


def test_an_endless_file_does_not_fill_the_disk(site: Site) -> None:
    site.hub.fail("/cdn/*", change=lambda data: data + bytes(200_000_000), methods=("GET",))
    began, sizes = time.monotonic(), [0]
    process = site.start("models", "pull", "o/tiny")
    while process.poll() is None:
        sizes += site.arrived()
        time.sleep(0.01)
    (done,) = site.finish(process, began=began)
    assert WEIGHTS in the_error(done)
    assert max(sizes) <= 20_000_000
    assert site.partial() == []


def test_a_branch_that_moves_during_a_pull_brings_no_unchecked_bytes(
    site: Site, published: dict[str, Files]
) -> None:
    def move(data: bytes) -> bytes:
        site.hub.push("o/tiny", published["o/other"])
        site.hub.fail("/cdn/*", methods=("GET",), change=flip)
        return data

    site.hub.fail("/cdn/*", methods=("GET",), change=move)
    done = site.run("models", "pull", "o/tiny")
    assert done.code in (0, 4)
    assert wrong_files(site.cache) == []


ANSWERS: dict[str, bytes] = {
    "a list": b"[]",
    "no files": b'{"id": "o/tiny", "sha": "0"}',
    "files of another kind": b'{"id": "o/tiny", "sha": "0", "siblings": 5}',
    "names of another kind": b'{"id": "o/tiny", "sha": "0", "siblings": [{"rfilename": 5}]}',
    "names that lead elsewhere": b'{"id": "o/tiny", "sha": "0", "siblings": [{"rfilename": "../x.bin"}]}',
}


@pytest.mark.parametrize("kind", ANSWERS)
def test_a_listing_that_makes_no_sense_is_refused(site: Site, kind: str) -> None:
    site.hub.fail("/api/models/*", change=lambda data: ANSWERS[kind])
    assert site.refused("models", "pull", "o/tiny").startswith("o/tiny: ")
    assert site.hub.asked("/resolve/") == []


def pinned(name: str) -> HubName:
    """Where a model of the catalog is."""
    return CATALOG[name].places[0]


def test_a_mirror_that_lies_about_a_known_model_is_refused(site: Site, published: dict[str, Files]) -> None:
    place = pinned("ddpm-cifar10-32")
    lie = published["o/root"] | {place.file: published["o/root"][ROOT_WEIGHTS]}
    site.hub.push(place.repository, lie, commit=place.revision)
    for name in ("ddpm-cifar10-32", place.repository):
        message = site.refused("models", "pull", name)
        assert CATALOG["ddpm-cifar10-32"].sha256 in message
        assert hashlib.sha256(lie[place.file]).hexdigest() in message
    assert site.partial() == []


# F82: a damaged cache


LFS_POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"0" * 64 + b"\nsize 724004\n"

DAMAGE: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda data: b"",
    "half": lambda data: data[: len(data) // 2],
    "one byte short": lambda data: data[:-1],
    "one bit": flip,
    "LFS pointer": lambda data: LFS_POINTER,
    "web page": lambda data: b"<!DOCTYPE html><html></html>" * 9,
    "configuration": lambda data: data.replace(b'"attention_head_dim": 8', b'"attention_head_dim": 4'),
    "fetched by another program": flip,
    "configuration, fetched by another program": lambda data: data.replace(b"1e-05", b"2e-05"),
    "a file, not a link": flip,
    "a link elsewhere": lambda data: data,
    "another model": lambda data: data,
}


def damaged_path(kind: str) -> str:
    """The damaged file of a kind."""
    return CONFIG if kind.startswith("configuration") else WEIGHTS


def damaged_name(kind: str) -> str:
    """The damaged model of a kind."""
    return f"o/damaged{list(DAMAGE).index(kind)}"


def damage(path: Path, data: bytes) -> None:
    """Change a file in place, as a bad disk does: nobody sees it at its date."""
    status = path.stat()
    path.chmod(0o600)
    path.write_bytes(data)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


@pytest.fixture(scope="module")
def damaged_home(published: dict[str, Files], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The home of somebody whose models are damaged, each in its own way."""
    repos = {damaged_name(kind): published["o/tiny"] for kind in DAMAGE}
    with Hub(repos | {"o/other": published["o/other"]}) as hub:
        site = Site(hub, tmp_path_factory.mktemp("damaged"))
        site.well("models", "pull", "o/other", *repos)
        other = site.snapshot("o/other").resolve()
        for kind, change in DAMAGE.items():
            name = damaged_name(kind)
            link = site.snapshot(name, damaged_path(kind))
            blob = link.resolve()
            right = blob.read_bytes()
            if kind == "a file, not a link":
                link.unlink()
                link.write_bytes(change(right))
            elif kind == "a link elsewhere":
                link.unlink()
                link.symlink_to(Path("../../../..", *other.parts[-3:]))
                assert link.resolve() == other
            elif kind == "another model":
                damage(blob, other.read_bytes())
            else:
                damage(blob, change(right))
                assert blob.read_bytes() != right
            if "another program" in kind:
                (record,) = site.home.rglob(f"{name.replace('/', '--')}-*.json")
                record.unlink()
        return site.home


@pytest.fixture
def damaged(published: dict[str, Files], damaged_home: Path, tmp_path: Path) -> Iterator[Site]:
    """A copy of that home."""
    repos = {damaged_name(kind): published["o/tiny"] for kind in DAMAGE}
    shutil.copytree(damaged_home, tmp_path / "home", symlinks=True)
    with Hub(repos | {"o/other": published["o/other"]}) as hub:
        yield Site(hub, tmp_path / "home", damaged=True)


LOAD_EACH = """
import json, sys
from zipcli import Purifier, ZipcliError
for name in sys.argv[1:]:
    try:
        Purifier.from_pretrained(name, device="cpu")
        print(json.dumps("loaded"))
    except ZipcliError as e:
        print(json.dumps(str(e)))
"""


def test_no_damaged_model_in_the_cache_is_used(damaged: Site) -> None:
    names = {kind: damaged_name(kind) for kind in DAMAGE}
    words = [sys.executable, "-c", LOAD_EACH, *names.values()]
    env = {**ENVIRONMENT, **damaged.environment()}
    done = subprocess.run(words, env=env, capture_output=True, text=True)
    said = dict(zip(names, map(json.loads, done.stdout.splitlines()), strict=True))
    for kind, name in names.items():
        file = damaged.snapshot(name, damaged_path(kind))
        assert str(file) in said[kind] or str(file.resolve()) in said[kind], kind
        assert f"zipcli models pull --force {name}" in said[kind]
    assert damaged.hub.requests == []


@pytest.mark.parametrize("kind", ["one bit", "configuration", "fetched by another program"])
def test_a_damaged_model_in_the_cache_purifies_nothing(damaged: Site, kind: str) -> None:
    message = the_error(damaged.purify(damaged_name(kind)))
    assert f"zipcli models pull --force {damaged_name(kind)}" in message
    assert not (damaged.home / "out").exists()


def test_verify_names_every_damaged_file_and_a_forced_pull_repairs_them(damaged: Site) -> None:
    names = {kind: damaged_name(kind) for kind in DAMAGE}
    done = damaged.run("models", "verify", "--json", *names.values(), "o/other")
    assert done.code == 4
    rows = {row["name"]: row for row in map(json.loads, done.out.splitlines())}
    assert {name for name, row in rows.items() if row["ok"]} == {"o/other"}
    for kind, name in names.items():
        file = damaged.snapshot(name, damaged_path(kind))
        assert str(file) in rows[name]["message"] or str(file.resolve()) in rows[name]["message"]
    assert damaged.hub.requests == []
    damaged.well("models", "pull", "--force", *names.values())
    for kind, name in names.items():
        path = damaged_path(kind)
        assert damaged.snapshot(name, path).read_bytes() == damaged.served(name, path)
    assert damaged.snapshot("o/other").read_bytes() == damaged.served("o/other")
    assert wrong_files(damaged.cache) == []


def test_a_repair_without_a_hub_changes_nothing(pulled: Site) -> None:
    blob = pulled.snapshot("o/tiny").resolve()
    damage(blob, flip(blob.read_bytes()))
    pulled.damaged = True
    before = everything(pulled.cache)
    refused_connection(pulled)
    pulled.refused("models", "pull", "--force", "o/tiny")
    assert everything(pulled.cache) == before


def test_a_sound_model_survives_a_forced_pull_that_fails(pulled: Site) -> None:
    pulled.hub.fail("/cdn/*", change=flip)
    pulled.refused("models", "pull", "--force", "o/tiny")
    assert pulled.snapshot("o/tiny").read_bytes() == pulled.served("o/tiny")
    pulled.well("models", "path", "o/tiny")


def test_a_damaged_conversion_is_refused_or_made_again(site: Site) -> None:
    site.well("models", "pull", "o/pickle")
    (converted,) = (site.home / "hf").rglob("converted/*.safetensors")
    assert site.purify("o/pickle").code == 0
    expected = tree(site.home / "out")
    damage(converted, flip(converted.read_bytes()))
    done = site.purify("o/pickle")
    assert (done.code, tree(site.home / "out")) in [(4, {}), (0, expected)], done.err


def test_a_damaged_blob_that_was_never_linked_is_not_trusted(pulled: Site) -> None:
    blob = pulled.snapshot("o/tiny").resolve()
    damage(blob, flip(blob.read_bytes()))
    shutil.rmtree(pulled.cache / "models--o--tiny" / "snapshots")
    shutil.rmtree(pulled.home / "hf" / "assets")
    pulled.damaged = True
    done = pulled.run("models", "pull", "o/tiny")
    assert done.code in (0, 4)
    if done.code == 0:
        assert pulled.snapshot("o/tiny").read_bytes() == pulled.served("o/tiny")


def test_a_model_that_another_program_fetched_is_used(pulled: Site) -> None:
    assert pulled.purify("o/tiny").code == 0
    expected = tree(pulled.home / "out")
    shutil.rmtree(pulled.home / "hf" / "assets")
    assert pulled.purify("o/tiny").code == 0
    assert tree(pulled.home / "out") == expected
    assert pulled.hub.requests == []


def test_weights_that_are_not_finite_are_refused_however_they_came(site: Site) -> None:
    message = the_error(site.purify("o/nan"))
    assert "not finite" in message
    assert not tree(site.home / "out")


# F83 and F84: pickles that run code


class Call:
    """Calls a function when it is unpickled."""

    def __init__(self, function: Callable[..., object], *args: object) -> None:
        self.function, self.args = function, args

    def __reduce__(self) -> tuple[Any, ...]:
        return self.function, self.args


def payloads(fired: Path) -> dict[str, bytes]:
    """Files that leave a trace when somebody unpickles them."""
    touch, inner = f"touch {fired}", str(fired.with_suffix(".inner"))
    call = Call(os.system, touch)
    tensors = {"conv_in.weight": torch.zeros(16, 3, 3, 3), "conv_in.bias": call}
    bytecode = b"cos\nsystem\n(S'" + touch.encode() + b"'\ntR."
    return {
        "os.system": pickle.dumps(call),
        "eval": pickle.dumps(Call(eval, f"open({str(fired)!r}, 'w').close()")),
        "exec": pickle.dumps(Call(exec, f"open({str(fired)!r}, 'w').close()")),
        "subprocess": pickle.dumps(Call(subprocess.check_call, ["touch", str(fired)])),
        "a method": pickle.dumps(Call(Path.touch, fired)),
        "protocol 0": pickle.dumps(call, protocol=0),
        "bytecode": bytecode,
        "instance": b"(S'" + touch.encode() + b"'\nios\nsystem\n.",
        "torch": torch_file(tensors),
        "old torch": torch_file(tensors, _use_new_zipfile_serialization=False),
        "torch, nested": torch_file({"state_dict": {"a": [{"b": (call,)}]}}),
        "torch inside torch": torch_file(Call(partial(torch.load, weights_only=False), inner)),
    }


PAYLOADS = sorted(payloads(Path("fired")))


UNSAFE = {"TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD": "1"}
"""What makes torch.load run pickles where nobody has told it not to."""


@pytest.fixture
def unsafe(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same for commands inside this process."""
    for name, value in UNSAFE.items():
        monkeypatch.setenv(name, value)


def laid(here: Path, kind: str, name: str) -> Path:
    """Write a payload, and return the file that it leaves when it fires."""
    fired = here / "fired"
    inner = torch_file({"weights": Call(os.system, f"touch {fired}")})
    (here / "fired.inner").write_bytes(inner)
    (here / name).write_bytes(payloads(fired)[kind])
    return fired


@pytest.mark.usefixtures("unsafe")
@pytest.mark.parametrize("kind", PAYLOADS)
def test_a_payload_of_these_tests_fires_when_it_is_unpickled(here: Path, kind: str) -> None:
    """So the tests below fail if a pickle is run."""
    fired = laid(here, kind, "evil.pt")
    if "torch" in kind:
        torch.load(here / "evil.pt", weights_only=False)
    else:
        pickle.loads((here / "evil.pt").read_bytes())
    assert fired.exists()


@pytest.mark.usefixtures("unsafe")
@pytest.mark.parametrize(
    "name", ["evil.pt", "evil.pth", "evil.bin", "evil.ckpt", "evil.pkl", "evil.safetensors"]
)
def test_a_pickle_of_the_users_is_never_opened(here: Path, name: str) -> None:
    picture(here / "in" / "a.png")
    for kind in PAYLOADS:
        fired = laid(here, kind, name)
        for words in (["purify", "in", "out", "--model", name], ["models", "info", name]):
            result = invoke(*words)
            assert result.exit_code == 4, result.output
            if name != "evil.safetensors":
                assert "zipcli models convert" in result.stderr
        assert not fired.exists()
        assert not (here / "out").exists()


@pytest.mark.usefixtures("unsafe")
@pytest.mark.parametrize("kind", PAYLOADS)
def test_converting_a_pickle_never_runs_it(here: Path, kind: str) -> None:
    fired = laid(here, kind, "evil.pt")
    before = originals(here)
    for words in ([], ["--like", "openai-256"]):
        result = invoke("models", "convert", "evil.pt", "out.safetensors", *words)
        assert result.exit_code == 4, result.output
        assert result.stderr.startswith("Error: ")
        assert "evil.pt" in result.stderr
    assert not fired.exists()
    assert originals(here) == before


@pytest.mark.parametrize("kind", ["os.system", "torch", "old torch"])
def test_a_pickle_of_the_hub_is_never_run(site: Site, published: dict[str, Files], kind: str) -> None:
    fired = site.home / "fired"
    site.hub.push("o/evil", published["o/pickle"] | {ROOT_PICKLE: payloads(fired)[kind]})
    assert ROOT_PICKLE in site.refused("models", "pull", "o/evil", **UNSAFE)
    site.refused("models", "info", "o/evil", **UNSAFE)
    if kind == "torch":
        assert ROOT_PICKLE in the_error(site.purify("o/evil", **UNSAFE))
    assert not fired.exists()
    assert list(site.home.rglob("converted/*")) == []


def test_a_pickle_of_the_hub_that_lies_about_its_digest_is_never_opened(
    site: Site, published: dict[str, Files]
) -> None:
    fired = site.home / "fired"
    site.hub.fail("/cdn/*", change=lambda data: payloads(fired)["torch"].ljust(len(data), b"\0"))
    assert "wrong bytes" in site.refused("models", "pull", "o/pickle", **UNSAFE)
    assert not fired.exists()


def test_a_pickle_that_is_kept_as_a_name_of_safetensors_is_never_run(
    site: Site, published: dict[str, Files]
) -> None:
    fired = site.home / "fired"
    site.hub.push("o/evil", published["o/tiny"] | {WEIGHTS: payloads(fired)["torch"]})
    the_error(site.purify("o/evil", **UNSAFE))
    assert not fired.exists()


def test_converting_a_harmless_pickle_gives_the_same_model(here: Path, pipeline: Files) -> None:
    pictures(here / "in", 2)
    write(here / "model", pipeline)
    (here / "model" / "unet" / "weights.pt").write_bytes(torch_file(load(pipeline[WEIGHTS])))
    result = invoke("models", "convert", "model/unet/weights.pt", "out.safetensors")
    assert result.exit_code == 0, result.output
    written = (here / "out.safetensors").read_bytes()
    for model, out in (("model", "expected"), ("out.safetensors", "out")):
        result = invoke("purify", "in", out, "--model", model, *QUICK)
        assert result.exit_code == 0, result.stderr
    assert tree(here / "out") == tree(here / "expected")
    assert invoke("models", "convert", "model/unet/weights.pt", "out.safetensors").exit_code in (2, 4, 5)
    assert (here / "out.safetensors").read_bytes() == written


# F85: safetensors and configurations that lie


def header(entries: object, data: bytes = b"", length: int | None = None) -> bytes:
    """A safetensors file with any header."""
    text = entries if isinstance(entries, bytes) else json.dumps(entries).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def entry(start: int, end: int, shape: list[Any], dtype: str = "F32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}


HUGE = 2**40

HEADERS: dict[str, bytes] = {
    "header beyond the file": header(b"{}", length=10**6),
    "header of exabytes": header(b"{}", length=2**63),
    "header of 2^64 - 1": header(b"{}", length=2**64 - 1),
    "header over the limit": header(b"{}".ljust(12_000_000)),
    "no header": header(b""),
    "header is no JSON": header(b"{'a': 1}"),
    "header is a list": header([]),
    "header is deep": header(b'{"__metadata__":' + b"[" * 100_000 + b"]" * 100_000 + b"}"),
    "header is not UTF-8": header(b'{"\xff": 1}'),
    "tensors overlap": header({"a": entry(0, 8, [2]), "b": entry(4, 12, [2])}, bytes(12)),
    "a hole": header({"a": entry(0, 8, [2]), "b": entry(12, 20, [2])}, bytes(20)),
    "bytes that belong to nobody": header({"a": entry(0, 8, [2])}, bytes(16)),
    "end before start": header({"a": entry(8, 0, [2])}, bytes(8)),
    "negative offset": header({"a": entry(-8, 0, [2])}, bytes(8)),
    "offset beyond the file": header({"a": entry(0, HUGE, [HUGE // 4])}, bytes(8)),
    "shape is larger than the data": header({"a": entry(0, 8, [HUGE])}, bytes(8)),
    "shape overflows": header({"a": entry(0, 8, [2**62, 2**62, 8])}, bytes(8)),
    "negative shape": header({"a": entry(0, 8, [-2])}, bytes(8)),
    "shape of words": header({"a": entry(0, 8, ["two"])}, bytes(8)),
    "unknown type": header({"a": entry(0, 8, [2], "F33")}, bytes(8)),
    "type is a path": header({"a": entry(0, 8, [2], "../../etc/passwd")}, bytes(8)),
    "integers": header({"a": entry(0, 8, [1], "I64")}, bytes(8)),
    "no tensors": header({}),
    "one strange tensor": header({"a": entry(0, 8, [2])}, bytes(8)),
}


def local(here: Path, files: Mapping[str, bytes]) -> str:
    """Purify with a local folder that must be refused, and return the error."""
    picture(here / "in" / "a.png")
    write(here / "model", files)
    result = invoke("purify", "in", "out", "--model", "./model")
    assert result.exit_code == 4, result.output
    (line,) = result.stderr.splitlines()
    assert line.startswith("Error: ")
    assert not (here / "out").exists()
    info = invoke("models", "info", "./model")
    assert info.exit_code == 4, info.output
    assert info.stdout == ""
    return line


@pytest.mark.parametrize("kind", HEADERS)
def test_a_header_that_lies_is_refused_at_once(here: Path, pipeline: Files, kind: str) -> None:
    began = time.monotonic()
    message = local(here, pipeline | {WEIGHTS: HEADERS[kind]})
    assert "diffusion_pytorch_model.safetensors" in message
    assert time.monotonic() - began <= 10


def renamed(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name.replace("conv_in", "conv_inn"): tensor for name, tensor in tensors.items()}


TENSORS: dict[str, tuple[Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]], str]] = {
    "one is missing": (lambda t: {k: v for k, v in t.items() if k != "conv_in.bias"}, "conv_in.bias"),
    "one is too many": (lambda t: t | {"conv_in.extra": torch.zeros(1)}, "conv_in.extra"),
    "one has another shape": (lambda t: t | {"conv_in.bias": torch.zeros(17)}, "conv_in.bias"),
    "one is transposed": (lambda t: t | {"conv_in.weight": torch.zeros(3, 16, 3, 3)}, "conv_in.weight"),
    "one is a number": (lambda t: t | {"conv_in.bias": torch.tensor(0.0)}, "conv_in.bias"),
    "one is empty": (lambda t: t | {"conv_in.bias": torch.zeros(0)}, "conv_in.bias"),
    "one is integers": (lambda t: t | {"conv_in.bias": torch.zeros(16, dtype=torch.int32)}, "conv_in.bias"),
    "one is 8 bits": (
        lambda t: t | {"conv_in.bias": torch.zeros(16).to(torch.float8_e4m3fn)},
        "conv_in.bias",
    ),
    "one is NaN": (lambda t: t | {"conv_in.bias": torch.full((16,), math.nan)}, "conv_in.bias"),
    "one is infinite": (lambda t: t | {"conv_out.bias": torch.tensor([0.0, 0.0, math.inf])}, "conv_out.bias"),
    "one has another name": (renamed, "conv_in"),
    "half of them": (lambda t: dict(list(t.items())[::2]), "missing"),
}


@pytest.mark.parametrize("kind", TENSORS)
def test_weights_that_do_not_fit_the_network_are_refused_and_named(
    here: Path, pipeline: Files, kind: str
) -> None:
    change, word = TENSORS[kind]
    picture(here / "in" / "a.png")
    write(here / "model", pipeline | {WEIGHTS: save(change(load(pipeline[WEIGHTS])), {"format": "pt"})})
    result = invoke("purify", "in", "out", "--model", "./model")
    assert result.exit_code == 4, result.output
    (line,) = result.stderr.splitlines()
    assert word in line
    assert len(line) < 1000
    assert not (here / "out").exists()


ABSURD: dict[str, dict[str, Any]] = {
    "widths of a billion": {"block_out_channels": [10**9, 10**9]},
    "widths beyond any integer": {"block_out_channels": [10**400, 10**400]},
    "no widths": {"block_out_channels": []},
    "zero widths": {"block_out_channels": [0, 0]},
    "negative widths": {"block_out_channels": [-16, -32]},
    "widths of words": {"block_out_channels": ["16", "32"]},
    "widths are a number": {"block_out_channels": 16},
    "widths are half": {"block_out_channels": [16.5, 32]},
    "ten thousand levels": {
        "block_out_channels": [16] * 10_000,
        "down_block_types": ["DownBlock2D"] * 10_000,
        "up_block_types": ["UpBlock2D"] * 10_000,
    },
    "more types than levels": {"down_block_types": ["DownBlock2D"] * 3},
    "a billion blocks": {"layers_per_block": 10**9},
    "no blocks": {"layers_per_block": 0},
    "blocks of a list": {"layers_per_block": [1, 1]},
    "groups do not divide": {"norm_num_groups": 7},
    "no groups": {"norm_num_groups": 0},
    "no heads": {"attention_head_dim": 0},
    "negative heads": {"attention_head_dim": -8},
    "no channels": {"in_channels": 0, "out_channels": 0},
    "a million channels": {"in_channels": 10**6, "out_channels": 10**6},
    "one channel less": {"out_channels": 2},
    "epsilon is NaN": {"norm_eps": math.nan},
    "scale is zero": {"mid_block_scale_factor": 0},
    "scale is infinite": {"mid_block_scale_factor": math.inf},
    "side is a billion": {"sample_size": 10**9},
    "side is negative": {"sample_size": -16},
    "side is a word": {"sample_size": "16"},
    "time is a billion wide": {"time_embedding_dim": 10**9},
    "time is shifted away": {"freq_shift": 8},
    "shift is NaN": {"freq_shift": math.nan},
    "true is no number": {"layers_per_block": True},
}


@pytest.mark.parametrize("kind", ABSURD)
def test_an_absurd_configuration_is_refused_before_anything_is_built(
    here: Path, pipeline: Files, kind: str
) -> None:
    config = json.loads(pipeline[CONFIG]) | ABSURD[kind]
    began = time.monotonic()
    message = local(here, pipeline | {CONFIG: json.dumps(config).encode()})
    assert "unet/config.json" in message
    assert len(message) < 1000
    assert time.monotonic() - began <= 10


def test_a_network_of_a_hundred_gigabytes_is_compared_with_its_file_before_it_takes_memory(
    here: Path, pipeline: Files
) -> None:
    config = json.loads(pipeline[CONFIG]) | {
        "block_out_channels": [4096] * 8,
        "down_block_types": ["AttnDownBlock2D"] * 8,
        "up_block_types": ["AttnUpBlock2D"] * 8,
        "layers_per_block": 8,
        "sample_size": None,
    }
    began, before = time.monotonic(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    message = local(here, pipeline | {CONFIG: json.dumps(config).encode()})
    assert "more" in message
    assert time.monotonic() - began <= 20
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before <= 500_000  # kB


NO_CONFIG: dict[str, bytes] = {
    "empty": b"",
    "no JSON": b"{",
    "a list": b"[]",
    "a number": b"1",
    "null": b"null",
    "deep": b"[" * 100_000,
    "a page": b"<!DOCTYPE html><html></html>",
    "LFS pointer": LFS_POINTER,
    "bytes": bytes(range(256)),
    "many digits": b'{"_class_name": "UNet2DModel", "sample_size": ' + b"9" * 10_000 + b"}",
    "two megabytes": b'{"a": "' + b"a" * 2_000_000 + b'"}',
}


@pytest.mark.parametrize("kind", NO_CONFIG)
def test_what_is_no_configuration_is_refused(here: Path, pipeline: Files, kind: str) -> None:
    assert "unet/config.json" in local(here, pipeline | {CONFIG: NO_CONFIG[kind]})


SCHEDULES: dict[str, dict[str, Any]] = {
    "another class": {"_class_name": "FlowMatchEulerDiscreteScheduler"},
    "no class": {"_class_name": None},
    "v": {"prediction_type": "v"},
    "unknown betas": {"beta_schedule": "sigmoid"},
    "beta is NaN": {"beta_start": math.nan},
    "beta is above one": {"beta_end": 2},
    "beta is a word": {"beta_end": "0.02"},
    "a billion steps": {"num_train_timesteps": 10**9},
    "no steps": {"num_train_timesteps": 0},
    "steps are half": {"num_train_timesteps": 999.5},
    "trained betas are one": {"trained_betas": [1.0, 0.5]},
    "trained betas are words": {"trained_betas": ["0.1"]},
    "no trained betas": {"trained_betas": []},
    "zero signal": {"rescale_betas_zero_snr": True},
}


@pytest.mark.parametrize("kind", SCHEDULES)
def test_a_noise_schedule_that_cannot_be_used_is_refused(here: Path, pipeline: Files, kind: str) -> None:
    path = "scheduler/scheduler_config.json"
    config = json.loads(pipeline[path]) | SCHEDULES[kind]
    assert "scheduler_config.json" in local(here, pipeline | {path: json.dumps(config).encode()})


# F86: configurations that ask to run code, and models of another kind


FOREIGN: dict[str, tuple[dict[str, Any], str]] = {
    "code of its own": ({"auto_map": {"AutoModel": "modeling_unet.MyUNet"}}, "code"),
    "unknown class": ({"_class_name": "MyUNet"}, "MyUNet"),
    "a class elsewhere": ({"_class_name": "os.system"}, "os.system"),
    "no class": ({"_class_name": None}, "class"),
    "a text model": ({"_class_name": "UNet2DConditionModel", "cross_attention_dim": 768}, "UNet2DCondition"),
    "labels": ({"num_class_embeds": 1000}, "class-conditional"),
    "labels of another kind": ({"class_embed_type": "timestep"}, "class-conditional"),
    "unknown block": ({"down_block_types": ["DownBlock2D", "KDownBlock2D"]}, "KDownBlock2D"),
    "unknown middle": ({"mid_block_type": "MyMidBlock"}, "MyMidBlock"),
    "unknown embedding": ({"time_embedding_type": "fourier"}, "fourier"),
    "unknown activation": ({"act_fn": "__import__('os')"}, "__import__"),
    "unknown field": ({"trust_remote_code": True}, "trust_remote_code"),
}


@pytest.mark.parametrize("kind", FOREIGN)
def test_a_network_that_we_do_not_have_is_refused_and_named(here: Path, pipeline: Files, kind: str) -> None:
    changes, word = FOREIGN[kind]
    config = json.loads(pipeline[CONFIG]) | changes
    assert word in local(here, pipeline | {CONFIG: json.dumps(config).encode()})


PIPELINES: dict[str, dict[str, Any]] = {
    "a pipeline of its own": {"_class_name": ["pipeline", "MyPipeline"]},
    "a network of its own": {"unet": ["modeling_unet", "MyUNet"]},
    "an unknown pipeline": {"_class_name": "StableDiffusionPipeline", "vae": ["diffusers", "AutoencoderKL"]},
    "a latent model": {"vqvae": ["diffusers", "VQModel"]},
}


@pytest.mark.parametrize("kind", PIPELINES)
def test_a_pipeline_that_runs_code_or_is_of_another_kind_is_refused(
    here: Path, pipeline: Files, kind: str
) -> None:
    index = json.loads(pipeline["model_index.json"]) | PIPELINES[kind]
    fired = here / "fired"
    code = f"open({str(fired)!r}, 'w').close()".encode()
    files = {
        "model_index.json": json.dumps(index).encode(),
        "pipeline.py": code,
        "unet/modeling_unet.py": code,
    }
    assert "model_index.json" in local(here, pipeline | files)
    assert not fired.exists()


def test_a_configuration_of_the_hub_that_asks_to_run_code_is_refused(
    site: Site, published: dict[str, Files]
) -> None:
    config = json.loads(published["o/tiny"][CONFIG]) | {"auto_map": {"AutoModel": "modeling_unet.MyUNet"}}
    site.hub.push("o/code", published["o/tiny"] | {CONFIG: json.dumps(config).encode()})
    done = site.purify("o/code")
    assert "code" in the_error(done)
    assert site.hub.asked(".py") == []


# F87: a cache that cannot be written


@pytest.fixture
def locked(pulled: Site, as_user: tuple[str, ...]) -> Iterator[Site]:
    """A cache with one model that nobody may write to."""
    folders = [path for path in (pulled.home / "hf").rglob("*") if path.is_dir()] + [pulled.home / "hf"]
    for folder in folders:
        folder.chmod(0o555)
    pulled.before = as_user
    yield pulled
    for folder in folders:
        folder.chmod(0o755)


def test_a_cache_that_cannot_be_written_is_read(locked: Site) -> None:
    for words in (["models", "path", "o/tiny"], ["models", "info", "o/tiny"]):
        assert locked.well(*words).err == ""
    locked.well("models", "verify", "o/tiny")
    done = locked.purify("o/tiny")
    assert done.code == 0
    assert "cannot be written" not in done.err
    assert locked.hub.requests == []


@pytest.mark.parametrize("folder", ["mine", ""], ids=["ZIPCLI_CACHE", "home"])
def test_what_cannot_go_into_the_cache_goes_into_a_private_one_with_a_note(locked: Site, folder: str) -> None:
    before = everything(locked.home / "hf")
    locked.env["ZIPCLI_CACHE"] = str(locked.home / folder) if folder else ""
    private = locked.home / (folder or ".cache/zipcli")
    done = locked.well("models", "pull", "o/root")
    assert str(private) in done.err
    assert len([line for line in done.err.splitlines() if line.startswith("Note: ")]) == 1
    locked.hub.requests.clear()
    (line,) = locked.well("models", "path", "o/root").out.splitlines()
    assert Path(line).is_relative_to(private)
    assert Path(line).read_bytes() == locked.served("o/root", ROOT_WEIGHTS)
    assert {row["name"] for row in listed(locked) if row["cached"]} >= {"builtin", "o/tiny", "o/root"}
    locked.well("models", "verify", "o/root")
    assert locked.hub.requests == []
    assert everything(locked.home / "hf") == before


def test_a_damaged_model_in_a_cache_that_cannot_be_written_is_repaired_in_the_private_one(
    locked: Site,
) -> None:
    blob = locked.snapshot("o/tiny").resolve()
    damage(blob, flip(blob.read_bytes()))
    blob.chmod(0o444)
    locked.damaged = True
    the_error(locked.purify("o/tiny"))
    locked.well("models", "pull", "--force", "o/tiny")
    locked.well("models", "verify", "o/tiny")
    assert locked.purify("o/tiny").code == 0


def test_with_no_place_to_write_a_pull_says_so(locked: Site) -> None:
    locked.env["ZIPCLI_CACHE"] = str(locked.home / "hf" / "mine")
    message = locked.refused("models", "pull", "o/root")
    assert "HF_HOME" in message
    assert "ZIPCLI_CACHE" in message
    assert locked.hub.asked("/cdn/") == []


def test_a_folder_of_somebody_else_in_a_shared_cache_is_left_alone(
    pulled: Site, as_user: tuple[str, ...]
) -> None:
    folders = [pulled.cache / "models--o--root" / name for name in ("blobs", "snapshots", "refs", ".")]
    for folder in folders:
        folder.mkdir(parents=True, exist_ok=True)
        folder.chmod(0o555)
    pulled.before = as_user
    pulled.env["ZIPCLI_CACHE"] = str(pulled.home / "mine")
    done = pulled.well("models", "pull", "o/root")
    assert str(pulled.home / "mine") in done.err
    assert pulled.purify("o/root").code == 0


@pytest.mark.parametrize("answer", ["error=ENOLCK", "retval=0"])
def test_a_cache_whose_locks_do_not_work_is_used(site: Site, answer: str) -> None:
    site.before = ("strace", "-f", "-qq", "-o", "/dev/null", "-e", f"inject=flock:{answer}")
    if subprocess.run([*site.before, "true"], capture_output=True).returncode:
        pytest.skip("locks are broken by the program strace, which is not here or not allowed")
    site.hub.fail("/cdn/*", rate=700_000)
    assert 0 in [done.code for done in site.at_once("models", "pull", "o/tiny")]
    assert site.snapshot("o/tiny").read_bytes() == site.served("o/tiny")


@pytest.mark.parametrize("kind", ["a file", "nowhere"])
def test_a_cache_that_cannot_be_made_is_said(site: Site, kind: str) -> None:
    (site.home / "file").write_text("text")
    place = str(site.home / "file") if kind == "a file" else "/proc/nowhere"
    message = site.refused("models", "pull", "o/tiny", HF_HOME=place, ZIPCLI_CACHE=place)
    assert "HF_HOME" in message


def test_a_file_of_somebody_else_that_may_not_be_read_is_named(
    pulled: Site, as_user: tuple[str, ...]
) -> None:
    pulled.snapshot("o/tiny").resolve().chmod(0)
    pulled.before = as_user
    pulled.damaged = True
    message = the_error(pulled.purify("o/tiny"))
    assert "Permission denied" in message
    assert WEIGHTS in message
    pulled.snapshot("o/tiny").resolve().chmod(0o600)


# F88: two at once


def test_two_pulls_at_once_fetch_one_file_once(site: Site) -> None:
    site.hub.fail("/cdn/*", rate=700_000)
    for done in site.at_once("models", "pull", "o/tiny"):
        assert done.code == 0, done.err
        assert done.seconds <= 50  # nobody waited until the other was given up
    assert len(site.hub.asked("/cdn/", "GET")) == 1
    assert site.snapshot("o/tiny").read_bytes() == site.served("o/tiny")
    large = [p for p in site.cache.rglob("blobs/*") if p.stat().st_size > 100_000]
    assert len(large) == 1
    assert site.partial() == []


def test_a_pull_goes_on_where_one_was_killed_that_it_waited_for(site: Site) -> None:
    site.hub.fail("/cdn/*", rate=200_000)
    first = site.start("models", "pull", "o/tiny")
    wait_for(lambda: max(site.arrived(), default=0) >= 50_000, first)
    began = time.monotonic()
    second = site.start("models", "pull", "o/tiny")
    time.sleep(1)
    first.kill()
    site.hub.heal()
    (done,) = site.finish(second, began=began)
    first.communicate()  # only now: it has ended even where nobody has asked for its end
    assert done.code == 0, done.err
    assert [r.range is None for r in site.hub.asked("/cdn/", "GET")] == [True, False]
    assert site.snapshot("o/tiny").read_bytes() == site.served("o/tiny")


def test_two_forced_pulls_at_once_leave_one_sound_model(pulled: Site) -> None:
    for done in pulled.at_once("models", "pull", "--force", "o/tiny"):
        assert done.code == 0, done.err
    assert pulled.snapshot("o/tiny").read_bytes() == pulled.served("o/tiny")


def test_two_pulls_of_a_pickle_at_once_leave_one_conversion(site: Site) -> None:
    for done in site.at_once("models", "pull", "o/pickle"):
        assert done.code == 0, done.err
    assert len(list((site.home / "hf").rglob("converted/*.safetensors"))) == 1


# Names


@pytest.mark.parametrize(
    "name",
    [
        "o/tiny/../../../etc/passwd",
        "o/tiny@../main",
        "o/tiny@main/../x.safetensors",
        "../o/tiny",
        "./missing",
        "~nobody/model",
        "o//tiny",
        "o/tiny/",
        "o/tiny@",
        "http://127.0.0.1/model",
        "nonsense",
        "",
        "\x1b[31mred/model",
        "x" * 5000,
    ],
    ids=lambda name: repr(name[:30]),
)
def test_a_name_that_is_none_is_refused_without_a_request(site: Site, name: str) -> None:
    done = site.run("models", "path", name)
    message = the_error(done)
    assert "\x1b" not in message
    assert len(message) < 1000
    assert site.hub.requests == []
