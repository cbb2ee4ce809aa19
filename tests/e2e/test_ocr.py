"""The example ocr reads pictures: what is drawn on them comes back as text, and where it is."""

import asyncio
import io
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import tritonclient.grpc.aio
import tritonclient.http
import tritonclient.http.aio
from PIL import Image, ImageDraw, ImageFont
from tests.e2e.process import ServerProcess, serving
from tests.e2e.tensors import Array

Font = ImageFont.FreeTypeFont | ImageFont.ImageFont


class Line(NamedTuple):
    text: str
    box: Array
    """Corners x, y [4, 2]."""
    score: float


@pytest.fixture(scope="module")
def server(example_server: ServerProcess) -> ServerProcess:
    return example_server


# -- pictures


def font(size: int, name: str = "") -> Font:
    """One of DejaVu's if the machine has it, else the one that Pillow brings along."""
    try:
        return ImageFont.truetype(name, size)
    except OSError:
        return ImageFont.load_default(size)


def page(width: int = 480, height: int = 160) -> Image.Image:
    return Image.new("RGB", (width, height), "white")


def write(picture: Image.Image, text: str, x: int, y: int, with_: Font, turned: float = 0) -> Array:
    """Draws a line whose upper left corner is at x, y, then turns it counter-clockwise around its
    middle. Returns the corners of what was drawn, beginning where the text begins, [4, 2]."""
    left, top, right, bottom = with_.getbbox(text)
    layer = Image.new("L", picture.size)
    ImageDraw.Draw(layer).text((x - left, y - top), text, 255, with_)
    width, height = right - left, bottom - top
    middle = np.array((x + width / 2, y + height / 2))
    layer = layer.rotate(turned, Image.Resampling.BICUBIC, center=(middle[0], middle[1]))
    picture.paste("black", mask=layer)
    angle = np.radians(turned)
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    half = np.array([(-width, -height), (width, -height), (width, height), (-width, height)]) / 2
    return np.asarray(middle + half @ turn)


def encoded(picture: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    file = io.BytesIO()
    picture.save(file, kind, **options)
    return file.getvalue()


# -- what is read


def read(server: ServerProcess, *images: bytes, protocol: str = "http") -> list[list[Line]]:
    """The lines of each image; all are sent at once."""
    module: Any = {"http": tritonclient.http.aio, "grpc": tritonclient.grpc.aio}[protocol]

    async def one(client: Any, image: bytes) -> list[Line]:
        tensor = module.InferInput("image", [1], "BYTES")
        tensor.set_data_from_numpy(np.array([image], object))
        result = await client.infer("ocr", [tensor])
        texts, boxes, scores = (result.as_numpy(name) for name in ("text", "boxes", "scores"))
        assert boxes.shape == (len(texts), 4, 2)
        found = zip(texts, boxes, scores, strict=True)
        return [Line(text.decode(), box, float(score)) for text, box, score in found]

    async def all_of_them() -> list[list[Line]]:
        async with module.InferenceServerClient(getattr(server, protocol)) as client:
            return await asyncio.gather(*[one(client, image) for image in images])

    return asyncio.run(all_of_them())


def assert_near(found: Array, drawn: Array, pixels: float = 14) -> None:
    """Boxes reach a little over the letters on each side."""
    assert np.abs(found - drawn).max() < pixels, f"{found.tolist()} is not {drawn.tolist()}"


@pytest.mark.parametrize("protocol", ["http", "grpc"])
def test_lines_in_several_fonts_and_sizes(server: ServerProcess, protocol: str) -> None:
    """In reading order, two of them beside one another."""
    picture = page(640, 224)
    drawn = {
        "The quick brown fox": write(picture, "The quick brown fox", 20, 16, font(40)),
        "jumps over 13 lazy": write(
            picture, "jumps over 13 lazy", 20, 92, font(26, "DejaVuSerif.ttf")
        ),
        "dogs, 2026.": write(picture, "dogs, 2026.", 420, 92, font(26, "DejaVuSans-Bold.ttf")),
        "and small print": write(picture, "and small print", 20, 170, font(14, "DejaVuSans.ttf")),
    }

    (lines,) = read(server, encoded(picture), protocol=protocol)

    assert [line.text for line in lines] == list(drawn)
    for line in lines:
        assert_near(line.box, drawn[line.text])
        assert line.score > 0.9


@pytest.mark.parametrize("turned", [-15, 8, 90, 180])
def test_a_turned_line(server: ServerProcess, turned: float) -> None:
    """Leaning, running up, and on its head: its box begins where the text does."""
    picture = page(352, 352)
    drawn = write(picture, "rolling waves", 48, 160, font(36), turned)

    ((line,),) = read(server, encoded(picture))

    assert line.text == "rolling waves"
    assert_near(line.box, drawn)


def test_several_pictures_at_once_share_batches(server: ServerProcess) -> None:
    """Each gets its own lines; the recogniser ran fewer times than there were lines."""
    words = [["first", "second", "third"], ["north", "east", "south"], ["red", "green", "blue"]]
    images = []
    for page_words in words:
        picture = page()
        for n, word in enumerate(page_words):
            write(picture, word, 20, 10 + 50 * n, font(32))
        images.append(encoded(picture, "WEBP", lossless=True))
    before = executions(server)

    pages = read(server, *images)

    assert [[line.text for line in lines] for lines in pages] == words
    assert executions(server) - before < 9


def executions(server: ServerProcess) -> int:
    """How often ppocr_rec has run."""
    (statistics,) = server.get("/v2/models/ppocr_rec/stats").json()["model_stats"]
    return int(statistics["execution_count"])


def test_a_large_photograph_that_lies_on_its_side(server: ServerProcess) -> None:
    """The camera noted how it was held. Boxes are in pixels of the upright picture, though the
    detector sees a smaller one."""
    picture = page(2000, 1000)
    drawn = write(picture, "held sideways", 200, 400, font(120))
    exif = Image.Exif()
    exif[0x0112] = 6  # Orientation: to be turned clockwise.
    image = encoded(picture.rotate(90, expand=True), "JPEG", exif=exif)

    ((line,),) = read(server, image)

    assert line.text == "held sideways"
    assert_near(line.box, drawn, 50)


def test_a_grey_picture_of_16_bits(server: ServerProcess) -> None:
    """Dark grey on grey, both more than 8 bits hold."""
    picture = page(320, 96)
    write(picture, "deep grey", 20, 20, font(40))
    values = np.asarray(picture.convert("L")).astype(np.uint16) * 150 + 5000

    ((line,),) = read(server, encoded(Image.fromarray(values)))

    assert line.text == "deep grey"


@pytest.mark.parametrize("colour", [None, "white"])
def test_a_transparent_picture_is_seen_on_white(server: ServerProcess, colour: str | None) -> None:
    picture = Image.new("RGBA", (320, 96), (0, 0, 0, 0))
    ImageDraw.Draw(picture).text((20, 20), "through", colour or "black", font(40))

    (lines,) = read(server, encoded(picture))

    assert [line.text for line in lines] == ([] if colour else ["through"])


@pytest.mark.parametrize("size", [(320, 96), (1, 1), (2000, 3)])
def test_an_empty_picture_has_no_lines(server: ServerProcess, size: tuple[int, int]) -> None:
    assert read(server, encoded(page(*size))) == [[]]


# -- what cannot be read


def whole() -> bytes:
    return encoded(page())


def bomb() -> bytes:
    """A small file that would be 100 million pixels."""
    return encoded(Image.new("1", (10000, 10000)))


@pytest.mark.parametrize(
    ("image", "reason"),
    [
        (b"", "cannot identify image file"),
        (b"not a picture", "cannot identify image file"),
        (whole()[:100], "truncated"),
        (encoded(page(), "BMP"), "send a whole file, one of PNG, JPEG, WEBP"),
        (bomb(), "10000 x 10000 pixels, more than 50000000"),
    ],
    ids=["nothing", "text", "a part", "another format", "too many pixels"],
)
def test_an_image_that_cannot_be_read(server: ServerProcess, image: bytes, reason: str) -> None:
    tensor = tritonclient.http.InferInput("image", [1], "BYTES")
    tensor.set_data_from_numpy(np.array([image], object))
    with (
        tritonclient.http.InferenceServerClient(server.http) as client,
        pytest.raises(tritonclient.utils.InferenceServerException) as raised,
    ):
        client.infer("ocr", [tensor])
    assert raised.value.status() == "400"
    message = raised.value.message()
    assert "ocr_decode" in message
    assert "image cannot be read" in message
    assert reason in message


def test_two_images_are_refused(server: ServerProcess) -> None:
    data = {"name": "image", "datatype": "BYTES", "shape": [2]}
    reply = server.post("/v2/models/ocr/infer", {"inputs": [{**data, "data": ["a", "b"]}]})
    assert reply.status == 400
    assert "image" in reply.json()["error"]


def test_a_model_that_is_not_loaded_is_named(
    example_repository: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Loading ocr loads its steps, but not what ocr_read asks. Pages without text need nothing of
    that."""
    flags = ["--model-control-mode=explicit", "--load-model=ocr"]
    log = tmp_path_factory.mktemp("server")
    picture = page()
    write(picture, "somewhere", 20, 20, font(32))
    with serving(log, example_repository, flags=flags) as server:
        assert read(server, whole()) == [[]]
        with pytest.raises(
            tritonclient.utils.InferenceServerException, match=r"ocr_read.*ppocr_cls"
        ):
            read(server, encoded(picture))
