"""Python models that print and log without end: the log stays small, others are served meanwhile,
and the model itself is not held up."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from tests.e2e import faulty
from tests.e2e.process import EXPLICIT_ALL, ServerProcess, eventually, serving

FLOODS = {
    "lines": "[print('x' * 100) for _ in range(100_000)]",
    "empty lines": "[os.write(2, b'\\n' * 10_000) for _ in range(100)]",
    "no lines": "[os.write(1, b'x' * 1_000_000) for _ in range(100)]",
    "Logger": "[pb_utils.Logger.log_info('x' * 100) for _ in range(100_000)]",
    "long texts": "[pb_utils.Logger.log_info('x' * 1_000_000) for _ in range(100)]",
    "half characters": "[pb_utils.Logger.log_info('\\ud800') for _ in range(10_000)]",
}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    folder = tmp_path_factory.mktemp("floods")
    for model in ("loud", "calm"):
        faulty.write(folder / "models", model)
    with serving(folder, folder / "models", flags=EXPLICIT_ALL) as running:
        yield running


@pytest.mark.parametrize("kind", FLOODS)
def test_a_flood_stays_small_and_hurts_nobody(
    server: ServerProcess, tmp_path: Path, kind: str
) -> None:
    before = faulty.pid(server, "loud"), len(server.log())
    with ThreadPoolExecutor() as pool:
        code = f"say('{tmp_path}/begun'); {FLOODS[kind]}"
        flood = pool.submit(faulty.infer, server, "loud", code)
        eventually((tmp_path / "begun").exists)
        while not flood.done():
            assert faulty.infer(server, "calm").status == 200
    assert flood.result().status == 200, flood.result().body
    assert faulty.pid(server, "loud") == before[0]
    assert len(server.log()) - before[1] < 3_000_000


def test_what_was_left_out_is_counted(server: ServerProcess) -> None:
    assert faulty.infer(server, "loud", FLOODS["Logger"]).status == 200
    server.wait_for(lambda: "lines were left out here, because there are too many" in server.log())
