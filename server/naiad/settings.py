"""Every option of `naiad serve`: frozen, documented, with Triton's names and defaults.

The only place where the environment is read: each option may also be set as NAIAD_<OPTION>, and
NAIAD_CACHE names the folder for downloads. The command line is made from these fields.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path

from naiad.core.cache import options as cache
from naiad.core.latencies import LatencyOptions
from naiad.core.loadoptions import ControlMode
from naiad.core.log import LogFormat, LogSettings
from naiad.core.readiness import ModelReadiness
from naiad.core.scheduling.limiter import Limiter, pool_sizes
from naiad.core.tracesettings import TraceSettings, read_options
from naiad.grpc.options import LARGEST, MOST_MS, Effort, GrpcOptions, KeepaliveOptions
from naiad.tls import Tls, choose
from naiad_backends.errors import invalid

TRITON_BACKENDS = "/opt/tritonserver/backends"
"""Where Triton's containers have their backends."""


class RateLimit(StrEnum):
    """What has a say in when an idle instance runs."""

    OFF = "off"
    EXECUTION_COUNT = "execution_count"


class GrpcWire(StrEnum):
    """Who speaks HTTP/2 on the gRPC port."""

    LEAN = "lean"
    GRPCIO = "grpcio"


def _help(text: str) -> dict[str, str]:
    return {"help": text}


@dataclass(frozen=True)
class Settings:
    """The options of a server process, one field each, in the order of `naiad serve --help`."""

    model_repository: tuple[str, ...] = field(
        default=(), metadata=_help("Folder of models; repeat for several.")
    )
    model_control_mode: ControlMode = field(
        default=ControlMode.NONE,
        metadata=_help(
            "none: load all at start. poll: follow the disk. explicit: load by request."
        ),
    )
    repository_poll_secs: int = field(
        default=15, metadata=_help("Seconds between looks at the disk in mode poll.")
    )
    load_model: tuple[str, ...] = field(
        default=(),
        metadata=_help("Model to load at start in mode explicit; '*' for all; repeat for several."),
    )
    model_config_name: str = field(
        default="",
        metadata=_help(
            "Use configs/<name>.pbtxt of a model where it exists instead of config.pbtxt."
        ),
    )
    disable_auto_complete_config: bool = field(
        default=False, metadata=_help("Do not complete configurations from the models' files.")
    )
    model_load_thread_count: int = field(
        default=4, metadata=_help("How many models load at the same time.")
    )
    strict_readiness: bool = field(
        default=True, metadata=_help("Ready means that every model is ready.")
    )
    model_readiness: ModelReadiness = field(
        default=ModelReadiness.ALL,
        metadata=_help("A model is ready if all of its instances are, or if any is."),
    )
    exit_on_error: bool = field(
        default=True, metadata=_help("End the server if a model fails to load at start.")
    )
    exit_timeout_secs: int = field(
        default=30, metadata=_help("Longest wait for running requests at the end.")
    )
    backend_config: tuple[str, ...] = field(
        default=(),
        metadata=_help(
            "<backend>,<key>=<value>; without <backend>, for all of them; repeat for several."
        ),
    )
    backend_directory: str = field(
        default=TRITON_BACKENDS,
        metadata=_help("Folder of backends written in Python, each a folder with its model.py."),
    )
    rate_limit: RateLimit = field(
        default=RateLimit.OFF,
        metadata=_help(
            "off: an idle instance runs. execution_count: it needs the resources of its"
            " rate_limiter, and its turn."
        ),
    )
    rate_limit_resource: tuple[str, ...] = field(
        default=(),
        metadata=_help(
            "<name>:<count>[:<device>]: how much there is of a resource; repeat for several."
        ),
    )
    cache_config: tuple[str, ...] = field(
        default=(),
        metadata=_help(
            "local,size=<bytes> or redis,host=<name>,...: keep answers for equal requests; repeat"
            " for more of its settings."
        ),
    )
    id: str = field(default="naiad", metadata=_help("Name of the server in its metadata."))
    allow_http: bool = field(default=True, metadata=_help("Serve HTTP."))
    http_address: str = field(default="127.0.0.1", metadata=_help("Address of the HTTP port."))
    http_port: int = field(default=8000, metadata=_help("HTTP port; 0 picks a free one."))
    reuse_http_port: bool = field(
        default=False, metadata=_help("Share the HTTP port with other processes.")
    )
    http_max_input_size: int = field(
        default=64 * 2**20,
        metadata=_help("Largest JSON part and largest JSON-decoded or raw input, in bytes."),
    )
    http_header_forward_pattern: str = field(
        default="",
        metadata=_help("Pass request headers whose name this matches on to the model."),
    )
    http_restricted_api: tuple[str, ...] = field(
        default=(),
        metadata=_help(
            "<api>,...:<header>=<value>: these APIs need this header over HTTP; repeat for several."
        ),
    )
    http_use_ssl: bool = field(default=False, metadata=_help("Serve HTTP over TLS."))
    http_use_ssl_mutual: bool = field(
        default=False, metadata=_help("The same, for clients with a certificate only.")
    )
    http_server_cert: str = field(
        default="", metadata=_help("File of the HTTP port's certificate and its chain, in PEM.")
    )
    http_server_key: str = field(
        default="", metadata=_help("File of that certificate's private key, in PEM.")
    )
    http_root_cert: str = field(
        default="", metadata=_help("File of the roots of clients' certificates, in PEM.")
    )
    allow_grpc: bool = field(default=True, metadata=_help("Serve gRPC."))
    grpc_address: str = field(default="127.0.0.1", metadata=_help("Address of the gRPC port."))
    grpc_port: int = field(default=8001, metadata=_help("gRPC port; 0 picks a free one."))
    reuse_grpc_port: bool = field(
        default=False, metadata=_help("Share the gRPC port with other processes.")
    )
    grpc_wire: GrpcWire = field(
        default=GrpcWire.LEAN,
        metadata=_help("lean: our own HTTP/2, the fast one. grpcio: the gRPC library's."),
    )
    grpc_header_forward_pattern: str = field(
        default="", metadata=_help("Pass metadata whose key this matches on to the model.")
    )
    grpc_restricted_protocol: tuple[str, ...] = field(
        default=(),
        metadata=_help(
            "<api>,...:<key>=<value>: these APIs need the metadata triton-grpc-protocol-<key> over"
            " gRPC; repeat for several."
        ),
    )
    grpc_use_ssl: bool = field(default=False, metadata=_help("Serve gRPC over TLS."))
    grpc_use_ssl_mutual: bool = field(
        default=False, metadata=_help("The same, for clients with a certificate only.")
    )
    grpc_server_cert: str = field(
        default="", metadata=_help("File of the gRPC port's certificate and its chain, in PEM.")
    )
    grpc_server_key: str = field(
        default="", metadata=_help("File of that certificate's private key, in PEM.")
    )
    grpc_root_cert: str = field(
        default="", metadata=_help("File of the roots of clients' certificates, in PEM.")
    )
    grpc_keepalive_time: int = field(
        default=7_200_000, metadata=_help("Milliseconds from one keepalive ping to the next.")
    )
    grpc_keepalive_timeout: int = field(
        default=20_000, metadata=_help("Milliseconds in which a client has to answer one.")
    )
    grpc_keepalive_permit_without_calls: bool = field(
        default=False, metadata=_help("Keepalive pings while no call runs, too.")
    )
    grpc_http2_max_pings_without_data: int = field(
        default=2,
        metadata=_help("Keepalive pings in a row without an answer between; 0: any number."),
    )
    grpc_http2_min_recv_ping_interval_without_data: int = field(
        default=300_000,
        metadata=_help("Least milliseconds between a client's pings without an answer between."),
    )
    grpc_http2_max_ping_strikes: int = field(
        default=2, metadata=_help("A client's pings that may come sooner; 0: any number.")
    )
    grpc_max_connection_age: int = field(
        default=0,
        metadata=_help("Milliseconds after which a connection takes no new calls; 0: never."),
    )
    grpc_max_connection_age_grace: int = field(
        default=0, metadata=_help("Milliseconds that running calls have then; 0: no end.")
    )
    grpc_max_receive_message_length: int = field(
        default=2**31 - 1, metadata=_help("Largest gRPC message that is taken, in bytes.")
    )
    grpc_infer_response_compression_level: Effort = field(
        default=Effort.NONE, metadata=_help("How much answers to inference are compressed.")
    )
    allow_metrics: bool = field(
        default=True, metadata=_help("Serve metrics for Prometheus, at /metrics of a port.")
    )
    metrics_address: str = field(
        default="", metadata=_help("Address of the metrics port; default: that of the HTTP port.")
    )
    metrics_port: int = field(default=8002, metadata=_help("Metrics port; 0 picks a free one."))
    metrics_interval_ms: int = field(
        default=2000,
        metadata=_help("Shortest time between two looks at the machine's CPUs and GPUs."),
    )
    allow_cpu_metrics: bool = field(
        default=True, metadata=_help("Metrics tell of the machine's CPU and memory.")
    )
    allow_gpu_metrics: bool = field(
        default=True, metadata=_help("Metrics tell of the machine's NVIDIA GPUs.")
    )
    metrics_config: tuple[str, ...] = field(
        default=(),
        metadata=_help("Which latencies metrics tell, as <key>=<value>; repeat for several."),
    )
    allow_client_shm: bool = field(
        default=False, metadata=_help("Let clients register regions of shared memory.")
    )
    log_info: bool = field(default=True, metadata=_help("Log what an operator needs to follow."))
    log_warning: bool = field(default=True, metadata=_help("Log warnings."))
    log_error: bool = field(default=True, metadata=_help("Log errors."))
    log_format: LogFormat = field(
        default=LogFormat.DEFAULT, metadata=_help("How a line of the log begins.")
    )
    log_file: str = field(
        default="", metadata=_help("File that the log goes to; default: standard error.")
    )
    log_verbose: int = field(default=0, metadata=_help("1 and more log details, too."))

    trace_config: tuple[str, ...] = field(
        default=(),
        metadata=_help("<setting>=<value> or <mode>,<setting>=<value>; repeat for several."),
    )

    def trace_settings(self) -> TraceSettings:
        """`trace_config` read. Raises INVALID_ARG for an entry of another form, UNSUPPORTED for
        what only Triton has."""
        return read_options(self.trace_config)

    def log_settings(self) -> LogSettings:
        """The options of the log. Raises INVALID_ARG for a level below 0."""
        return LogSettings(self.log_file).changed(
            {
                "log_info": self.log_info,
                "log_warning": self.log_warning,
                "log_error": self.log_error,
                "log_verbose_level": self.log_verbose,
                "log_format": self.log_format,
            }
        )

    def latency_options(self) -> LatencyOptions:
        """`metrics_config`, read; nothing is kept without metrics. Raises INVALID_ARG."""
        options = LatencyOptions.parse(self.metrics_config)
        return options if self.allow_metrics else LatencyOptions(False, False, False)

    def limiter(self) -> Limiter | None:
        """The rate limiter; None if there is none. Raises INVALID_ARG."""
        sizes = pool_sizes(self.rate_limit_resource)
        return None if self.rate_limit is RateLimit.OFF else Limiter(sizes)

    def cache_options(self) -> cache.CacheOptions | None:
        """`cache_config`, read; None for no cache. Raises INVALID_ARG."""
        return cache.parse(self.cache_config)

    def http_tls(self) -> Tls | None:
        """TLS of the HTTP port, None for none. Raises as `naiad.tls.choose`."""
        return choose(
            "http",
            self.http_use_ssl,
            self.http_use_ssl_mutual,
            self.http_server_cert,
            self.http_server_key,
            self.http_root_cert,
        )

    def grpc_tls(self) -> Tls | None:
        """TLS of the gRPC port, None for none. Raises as `naiad.tls.choose`."""
        return choose(
            "grpc",
            self.grpc_use_ssl,
            self.grpc_use_ssl_mutual,
            self.grpc_server_cert,
            self.grpc_server_key,
            self.grpc_root_cert,
        )

    def grpc_options(self) -> GrpcOptions:
        """The gRPC port's. Raises INVALID_ARG for a number below 0, or a message of 0 bytes."""
        keepalive = KeepaliveOptions(
            time_ms=_number("--grpc-keepalive-time", self.grpc_keepalive_time, 1),
            timeout_ms=_number("--grpc-keepalive-timeout", self.grpc_keepalive_timeout, 1),
            without_calls=self.grpc_keepalive_permit_without_calls,
            most_pings=_number(
                "--grpc-http2-max-pings-without-data", self.grpc_http2_max_pings_without_data
            ),
            least_interval_ms=_number(
                "--grpc-http2-min-recv-ping-interval-without-data",
                self.grpc_http2_min_recv_ping_interval_without_data,
            ),
            most_strikes=_number("--grpc-http2-max-ping-strikes", self.grpc_http2_max_ping_strikes),
            age_ms=_number("--grpc-max-connection-age", self.grpc_max_connection_age),
            grace_ms=_number("--grpc-max-connection-age-grace", self.grpc_max_connection_age_grace),
        )
        most = _number(
            "--grpc-max-receive-message-length", self.grpc_max_receive_message_length, 1, LARGEST
        )
        return GrpcOptions(keepalive, most, self.grpc_infer_response_compression_level)

    def backend_options(self) -> dict[str, dict[str, str]]:
        """`backend_config` as backend -> key -> value; "" holds what is for all backends, among it
        `cache-folder`, where they may keep files from one start to the next.

        Raises INVALID_ARG for an entry of another form.
        """
        options = {"": {"cache-folder": str(cache_folder())}}
        for entry in self.backend_config:
            target, equals, value = entry.partition("=")
            backend, comma, key = target.rpartition(",")
            if not equals or not key or (comma and not backend):
                raise invalid(
                    f"'{entry}' is not of the form <backend>,<key>=<value>",
                    field="--backend-config",
                )
            options.setdefault(backend, {})[key] = value
        return options

    def backend_folder(self) -> Path | None:
        """`backend_directory`, None if it is left at its default and is not there. Raises
        INVALID_ARG."""
        folder = Path(self.backend_directory)
        if self.backend_directory and folder.is_dir():
            return folder
        if self.backend_directory in ("", TRITON_BACKENDS):
            return None
        raise invalid(
            f"'{folder}' is not a folder",
            field="--backend-directory",
            hint="name the folder that holds a folder for each backend",
        )


def _number(option: str, value: int, least: int = 0, most: int = MOST_MS) -> int:
    if not least <= value <= most:
        raise invalid(f"{value} is not between {least} and {most}", field=option)
    return value


def cache_folder(environment: Mapping[str, str] = os.environ) -> Path:
    """Where downloads are kept: NAIAD_CACHE, else `naiad` in the user's cache folder."""
    if chosen := environment.get("NAIAD_CACHE"):
        return Path(chosen)
    return Path(environment.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "naiad"
