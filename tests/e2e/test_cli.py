"""The `naiad` command as a person types it: check, banner, and what it says of mistakes."""

import re
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path
from subprocess import PIPE

import pytest
from tests.e2e import graphs
from tests.e2e.process import NAIAD, ServerProcess, serving

import naiad


def run(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """The command, to its end."""
    return subprocess.run([NAIAD, *map(str, arguments)], capture_output=True, text=True, timeout=60)


def test_version() -> None:
    assert naiad.__version__ in run("--version").stdout


def test_help_names_every_option_with_its_default() -> None:
    text = run("serve", "--help").stdout
    for option in ("--model-repository", "--model-control-mode", "--http-port", "--grpc-port"):
        assert option in text
    assert re.search(r"--http-port.*\[default: 8000\]", re.sub(r"\s+", " ", text))


# -- naiad check


@pytest.fixture(scope="module")
def broken(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository with one good model and one of each kind of mistake."""
    repository = tmp_path_factory.mktemp("broken")
    graphs.write_model(repository, "good", {1: graphs.add(1)})
    graphs.write_model(repository, "typo", config='backend: "identity"\nmax_batch_sise: 8\n')
    graphs.write_model(repository, "syntax", config='backend: "identity"\n\ninput { name: }\n')
    graphs.write_model(repository, "stranger", config='backend: "nobody"\n')
    graphs.write_model(repository, "corrupt", {1: b"this is no ONNX file"})
    (repository / "empty").mkdir()
    yaml = graphs.write_model(repository, "yaml") / "config.yaml"
    yaml.write_text("backend: identity\nmax_batch_size: many\n")
    return repository


@pytest.fixture(scope="module")
def report(broken: Path) -> str:
    """What `naiad check` says of it."""
    before = _contents(broken)
    done = run("check", broken)
    assert done.returncode == 1
    assert not done.stderr
    assert _contents(broken) == before, "it wrote into the repository"
    return done.stdout


def _contents(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize(
    "pattern",
    [
        r"typo/config\.pbtxt:2: max_batch_sise: .*did you mean 'max_batch_size'",
        r"syntax/config\.pbtxt:3: ",
        r"yaml/config\.yaml:2: max_batch_size: ",
        r"stranger/config\.pbtxt.*nobody",
        r"corrupt.*model\.onnx",
        r"empty: .*no version",
        r"# good: completed configuration",
    ],
)
def test_check_names_file_and_line_of_every_mistake(report: str, pattern: str) -> None:
    assert re.search(pattern, report), report


def test_check_of_the_examples_finds_nothing(example_repository: Path) -> None:
    done = run("check", example_repository)
    assert done.returncode == 0
    assert "16 models, 0 mistakes" in done.stdout


def test_check_of_one_model(broken: Path) -> None:
    done = run("check", broken / "good")
    assert done.returncode == 0
    assert 'name: "x"' in done.stdout


def test_check_of_a_backend_directory_that_is_none(broken: Path) -> None:
    done = run("check", broken, "--backend-directory=/nowhere")
    assert done.returncode == 1
    assert "--backend-directory: '/nowhere' is not a folder" in done.stderr


# -- naiad serve, when it cannot


@pytest.mark.parametrize(
    ("arguments", "code", "text"),
    [
        ([], 2, "--model-repository is missing"),
        (["--model-repository=/nowhere"], 1, "'/nowhere' does not exist"),
        (["--model-repository=.", "--http-port=x"], 2, "--http-port"),
        (["--model-repository=.", "--backend-config=x"], 1, "--backend-config"),
        (["--model-repository=.", "--backend-directory=/nowhere"], 1, "'/nowhere' is not a folder"),
        (["--model-repository=.", "--http-header-forward-pattern=("], 1, "not a regular"),
        (["--model-repository=.", "--grpc-header-forward-pattern=("], 1, "not a regular"),
        (["--model-repository=.", "--metrics-config=latencies=true"], 1, "counter_latencies"),
        (["--model-repository=.", "--metrics-config=summary_quantiles=9"], 1, "<quantile>:<error>"),
        (["--model-repository=.", "--model-control-mode=all"], 2, "explicit"),
    ],
)
def test_options_that_cannot_be(arguments: Sequence[str], code: int, text: str) -> None:
    done = run("serve", "--http-port=0", "--grpc-port=0", "--metrics-port=0", *arguments)
    assert done.returncode == code
    assert text in done.stderr
    assert "Traceback" not in done.stderr


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository without mistakes."""
    repository = tmp_path_factory.mktemp("good")
    graphs.write_model(repository, "identity", config=graphs.IDENTITY)
    return repository


@pytest.fixture(scope="module")
def server(good: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    with serving(tmp_path_factory.mktemp("log"), good) as running:
        yield running


@pytest.mark.parametrize("protocol", ["http", "grpc", "metrics"])
def test_a_port_that_is_taken(server: ServerProcess, good: Path, protocol: str) -> None:
    port = getattr(server, protocol).rpartition(":")[2]
    ports = {"http": 0, "grpc": 0, "metrics": 0} | {protocol: port}
    flags = [f"--{name}-port={number}" for name, number in ports.items()]
    done = run("serve", f"--model-repository={good}", *flags)
    assert done.returncode == 1
    assert port in done.stderr
    assert "in use" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_server_from_its_start_to_its_end(good: Path) -> None:
    """The command itself, which other tests' servers are forked for."""
    ports = [f"--{name}-port=0" for name in ("http", "grpc", "metrics")]
    command = [str(NAIAD), "serve", f"--model-repository={good}", *ports]
    with subprocess.Popen(command, stdout=PIPE, stderr=PIPE, text=True) as process:
        assert process.stdout
        try:
            assert any("Naiad is ready." in line for line in process.stdout)
            process.terminate()
            _, errors = process.communicate(timeout=60)
        finally:
            process.kill()
    assert process.returncode == 0, errors
    assert "shutting down" in errors
    assert "Traceback" not in errors


def test_the_banner_of_a_server_without_http(good: Path, tmp_path: Path) -> None:
    with serving(tmp_path, good, flags=["--allow-http=false"]) as server:
        assert server.grpc
        assert not server.http
        assert "curl" not in server.output()
        assert "Models: identity" in server.output()
