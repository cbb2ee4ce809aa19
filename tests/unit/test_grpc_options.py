"""The options of the gRPC port: Triton's defaults, and numbers that cannot be."""

from dataclasses import replace

import pytest

from naiad.grpc.options import LARGEST, Effort, GrpcOptions
from naiad.settings import Settings
from naiad_backends.errors import Code, NaiadError


def test_the_defaults_of_both_places_agree() -> None:
    assert Settings().grpc_options() == GrpcOptions()


def test_all_arrive() -> None:
    settings = Settings(
        grpc_keepalive_time=1,
        grpc_keepalive_timeout=2,
        grpc_keepalive_permit_without_calls=True,
        grpc_http2_max_pings_without_data=3,
        grpc_http2_min_recv_ping_interval_without_data=4,
        grpc_http2_max_ping_strikes=5,
        grpc_max_connection_age=6,
        grpc_max_connection_age_grace=7,
        grpc_max_receive_message_length=8,
        grpc_infer_response_compression_level=Effort.HIGH,
    )
    options = settings.grpc_options()
    keepalive = options.keepalive

    assert (keepalive.time_ms, keepalive.timeout_ms, keepalive.without_calls) == (1, 2, True)
    assert (keepalive.most_pings, keepalive.least_interval_ms, keepalive.most_strikes) == (3, 4, 5)
    assert (keepalive.age_ms, keepalive.grace_ms) == (6, 7)
    assert (options.most_received, options.compression) == (8, Effort.HIGH)


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("grpc_keepalive_time", 0),
        ("grpc_keepalive_timeout", 0),
        ("grpc_http2_max_pings_without_data", -1),
        ("grpc_http2_min_recv_ping_interval_without_data", -1),
        ("grpc_http2_max_ping_strikes", -1),
        ("grpc_max_connection_age", -1),
        ("grpc_max_connection_age_grace", 2**31),
        ("grpc_max_receive_message_length", 0),
        ("grpc_max_receive_message_length", LARGEST + 1),
    ],
)
def test_a_number_that_cannot_be(option: str, value: int) -> None:
    with pytest.raises(NaiadError, match=f"{value} is not between") as caught:
        replace(Settings(), **{option: value}).grpc_options()  # type: ignore[arg-type]  # any option
    assert caught.value.code is Code.INVALID_ARG
    assert caught.value.field == f"--{option.replace('_', '-')}"
