"""What `--cache-config` takes and refuses."""

import subprocess
import sys

import pytest

from naiad.core.cache.local import LocalStore
from naiad.core.cache.options import LocalOptions, RedisOptions, open_store, parse
from naiad_backends.errors import Code, NaiadError


@pytest.mark.parametrize(
    ("entries", "options"),
    [
        ([], None),
        (["local,size=1048576"], LocalOptions(1_048_576)),
        (["local,size=1,ttl=0.5"], LocalOptions(1, 0.5)),
        (["local,size=1", "local,ttl=60", "local,size=2"], LocalOptions(2, 60)),
        (["redis,host=h"], RedisOptions("h")),
        (
            ["redis,host=h,port=7,user=u,db=3,ttl=5", "redis,password=a,b=c,ttl=1"],
            RedisOptions("h", 7, "u", "a,b=c,ttl=1", 3, 5),
        ),
    ],
)
def test_what_is_understood(
    entries: list[str], options: LocalOptions | RedisOptions | None
) -> None:
    assert parse(entries) == options


@pytest.mark.parametrize(
    ("entries", "text"),
    [
        (["local"], "<cache>,<key>=<value>"),
        (["memory,size=1"], "local or redis"),
        (["local,1"], "a key of size, ttl"),
        (["local,ttl=5"], "needs size"),
        (["redis,port=1"], "needs host"),
        (["redis,host="], "host is empty"),
        (["redis,host=h,password="], "password is empty"),
        (["local,host=h"], "a key of size, ttl"),
        (["local,size=1", "redis,host=h"], "one cache"),
        (["local,size=0"], "from 1"),
        (["local,size=-1"], "from 1"),
        (["local,size=1e6"], "from 1"),
        (["local,size=" + "9" * 99], "from 1"),
        (["local,size=\u0661"], "from 1"),
        (["local,size=1,ttl=0"], "seconds"),
        (["local,size=1,ttl=nan"], "seconds"),
        (["local,size=1,ttl=inf"], "seconds"),
        (["local,size=1,ttl=soon"], "seconds"),
        (["redis,host=h,port=65536"], "65535"),
    ],
)
def test_what_is_wrong_is_told(entries: list[str], text: str) -> None:
    with pytest.raises(NaiadError, match=text) as error:
        parse(entries)
    assert (error.value.code, error.value.field) == (Code.INVALID_ARG, "--cache-config")


def test_a_password_is_in_no_error() -> None:
    with pytest.raises(NaiadError) as error:
        parse(["redis,port=no,password=secret"])
    assert "secret" not in str(error.value)


def test_the_local_cache_needs_no_library() -> None:
    code = (
        "import sys; from naiad.core.cache.options import open_store, parse;"
        "open_store(parse(['local,size=1'])); sys.exit('redis' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
    options = parse(["local,size=1"])
    assert options is not None and isinstance(open_store(options), LocalStore)


MISSING = """
import sys

class Finder:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "redis":
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Finder())
from naiad.core.cache.options import open_store, parse
from naiad_backends.errors import NaiadError
try:
    open_store(parse(["redis,host=h"]))
except NaiadError as error:
    print(error.code, error.field, error)
"""


def test_a_missing_library_is_told() -> None:
    told = subprocess.run([sys.executable, "-c", MISSING], check=True, capture_output=True)
    assert told.stdout.decode().startswith(f"{Code.UNSUPPORTED} --cache-config")
    assert b"pip install 'naiad[redis]'" in told.stdout
