"""`python -m benchmarks.pages`: pages per second of the example `ocr`, with lines of several pages
in one batch and without.

Two servers with the same models take turns; in one of them the model that reads lines has no
batcher. The pages are rendered here, each with other words.
"""

import io
import random
import shutil
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from statistics import median

import click
import numpy as np
import tritonclient.http
from PIL import Image, ImageDraw, ImageFont

from benchmarks import servers
from benchmarks.errors import BenchmarkError
from benchmarks.facts import facts
from benchmarks.report import row
from benchmarks.servers import Server
from benchmarks.weights import progress
from naiad.repository.fetch import assemble
from naiad.settings import cache_folder
from naiad_backends.errors import NaiadError

MODELS = ("ocr", "ocr_decode", "ppocr_det", "ocr_read", "ppocr_cls", "ppocr_rec")
WORDS = ("river", "stone", "cloud", "paper", "light", "green", "north", "bread", "chair", "seven")
LINES = 8


def page(seed: int) -> tuple[bytes, list[str]]:
    """A picture as PNG with `LINES` lines, and what they say."""
    chosen = random.Random(seed)
    lines = [" ".join(chosen.choices(WORDS, k=3)) for _ in range(LINES)]
    picture = Image.new("RGB", (480, 20 + 50 * LINES), "white")
    draw = ImageDraw.Draw(picture)
    for number, line in enumerate(lines):
        draw.text((20, 20 + 50 * number), line, "black", ImageFont.load_default(28))
    data = io.BytesIO()
    picture.save(data, "PNG")
    return data.getvalue(), lines


def read(client: tritonclient.http.InferenceServerClient, data: bytes) -> list[str]:
    """The lines that the server finds."""
    image = tritonclient.http.InferInput("image", [1], "BYTES")
    image.set_data_from_numpy(np.array([data], object))
    return [text.decode() for text in client.infer("ocr", [image]).as_numpy("text").tolist()]


def measured(server: Server, pages: Sequence[bytes], clients: int) -> tuple[float, float]:
    """Pages per second, and milliseconds of the server's CPU time for each."""
    address = f"127.0.0.1:{server.ports.http}"
    before, began = server.spent().family, time.perf_counter()

    def work(number: int) -> None:
        with tritonclient.http.InferenceServerClient(address, network_timeout=120) as client:
            for data in pages[number::clients]:
                read(client, data)

    with ThreadPoolExecutor(clients) as threads:
        list(threads.map(work, range(clients)))
    seconds = time.perf_counter() - began
    return len(pages) / seconds, 1000 * (server.spent().family - before) / len(pages)


@contextmanager
def _running(folder: Path, batching: bool) -> Iterator[Server]:
    repository = folder / "models"
    examples = Path(__file__).parent.parent / "model_repository"
    assemble(examples, repository, cache_folder(), list(MODELS), echo=progress)
    if not batching:
        config = repository / "ppocr_rec" / "config.pbtxt"
        text = config.read_text().replace("dynamic_batching { }", "")
        config.unlink()
        config.write_text(text)
    ports = servers.free_ports()
    log = folder / "naiad.log"
    with servers.running("naiad", servers.naiad(repository, ports), ports, log) as server:
        yield server


def _check(server: Server) -> None:
    data, lines = page(0)
    with tritonclient.http.InferenceServerClient(f"127.0.0.1:{server.ports.http}") as client:
        found = read(client, data)
    if found != lines:
        raise BenchmarkError(f"the server read {found}, not {lines}")


@click.command()
@click.option("--clients", default=8, show_default=True, help="Pages at a time.")
@click.option("--pages", "number", default=24, show_default=True, help="Of each measurement.")
@click.option("--rounds", default=3, show_default=True)
def main(clients: int, number: int, rounds: int) -> None:
    """Reads pages of text with and without batches over several pages; prints a table."""
    pages = [page(seed)[0] for seed in range(1, number + 1)]
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="pages-")))
        try:
            running = {}
            for name, batching in (("batches", True), ("line by line", False)):
                place = folder / str(batching)
                place.mkdir()
                running[name] = stack.enter_context(_running(place, batching))
                _check(running[name])
            figures: dict[str, list[tuple[float, float]]] = {name: [] for name in running}
            for _ in range(rounds):
                for name, server in running.items():
                    figures[name].append(measured(server, pages, clients))
        except (BenchmarkError, NaiadError) as error:
            raise click.ClickException(str(error)) from error
        finally:
            shutil.rmtree(folder, ignore_errors=True)
    print("\n".join(f"- {key}: {value}" for key, value in facts("benchmarks.pages").items()))
    print(f"\nPages of {LINES} lines, {clients} at a time, {number} in each of {rounds} rounds.\n")
    print(row(["lines", "pages/s", "CPU ms/page"]))
    print(row(["---"] * 3))
    for name, found in figures.items():
        rate, spent = (median(one[at] for one in found) for at in (0, 1))
        print(row([name, f"{rate:.2f}", f"{spent:.0f}"]))


if __name__ == "__main__":
    main()
