"""What the data plane tells of models -> the messages that say it. Everything but inference."""

from collections.abc import Iterable, Sequence

from naiad.core.dataplane import ModelMetadata, TensorMetadata
from naiad.core.log import LogSettings
from naiad.core.model import ServedModel
from naiad.core.registry import IndexEntry
from naiad.core.stats import BatchStatistics, Duration, ResponseStatistics
from naiad.core.tracesettings import TraceSettings
from naiad_proto import grpc_service_pb2 as pb


def metadata(model: ModelMetadata) -> pb.ModelMetadataResponse:
    """The answer to ModelMetadata."""
    return pb.ModelMetadataResponse(
        name=model.name,
        versions=model.versions,
        platform=model.platform,
        inputs=_tensors(model.inputs),
        outputs=_tensors(model.outputs),
    )


def _tensors(
    tensors: Sequence[TensorMetadata],
) -> list[pb.ModelMetadataResponse.TensorMetadata]:
    return [
        pb.ModelMetadataResponse.TensorMetadata(name=t.name, datatype=t.datatype, shape=t.shape)
        for t in tensors
    ]


def index(entries: Iterable[IndexEntry]) -> pb.RepositoryIndexResponse:
    """The answer to RepositoryIndex; a model that was never loaded is only its name."""
    return pb.RepositoryIndexResponse(
        models=[
            pb.RepositoryIndexResponse.ModelIndex(
                name=entry.name,
                version=entry.version,
                state=entry.state or "",
                reason=entry.reason,
            )
            for entry in entries
        ]
    )


def log_settings(settings: LogSettings) -> pb.LogSettingsResponse:
    """The answer to LogSettings."""
    answer = pb.LogSettingsResponse()
    for name, value in settings.document().items():
        if isinstance(value, bool):
            answer.settings[name].bool_param = value
        elif isinstance(value, int):
            answer.settings[name].uint32_param = value
        else:
            answer.settings[name].string_param = value
    return answer


def trace_settings(settings: TraceSettings) -> pb.TraceSettingResponse:
    """The answer to TraceSetting."""
    answer = pb.TraceSettingResponse()
    for name, value in settings.document().items():
        answer.settings[name].value.extend(value if isinstance(value, list) else [value])
    return answer


def statistics(models: Iterable[ServedModel]) -> pb.ModelStatisticsResponse:
    """The answer to ModelStatistics."""
    return pb.ModelStatisticsResponse(model_stats=[_model(served) for served in models])


def _model(served: ServedModel) -> pb.ModelStatistics:
    stats = served.stats
    return pb.ModelStatistics(
        name=served.name,
        version=served.version,
        last_inference=stats.last_inference,
        inference_count=stats.inference_count,
        execution_count=stats.execution_count,
        inference_stats=pb.InferStatistics(
            success=_duration(stats.success),
            fail=_duration(stats.fail),
            queue=_duration(stats.queue),
            compute_input=_duration(stats.compute_input),
            compute_infer=_duration(stats.compute_infer),
            compute_output=_duration(stats.compute_output),
            cache_hit=_duration(stats.cache_hit),
            cache_miss=_duration(stats.cache_miss),
        ),
        batch_stats=[_batch(size, stats.batches[size]) for size in sorted(stats.batches)],
        response_stats={str(index): _response(one) for index, one in stats.responses.items()},
    )


def _batch(size: int, batch: BatchStatistics) -> pb.InferBatchStatistics:
    return pb.InferBatchStatistics(
        batch_size=size,
        compute_input=_duration(batch.compute_input),
        compute_infer=_duration(batch.compute_infer),
        compute_output=_duration(batch.compute_output),
    )


def _response(response: ResponseStatistics) -> pb.InferResponseStatistics:
    return pb.InferResponseStatistics(
        compute_infer=_duration(response.compute_infer),
        compute_output=_duration(response.compute_output),
        success=_duration(response.success),
        fail=_duration(response.fail),
        empty_response=_duration(response.empty_response),
        cancel=_duration(response.cancel),
    )


def _duration(duration: Duration) -> pb.StatisticDuration:
    return pb.StatisticDuration(count=duration.count, ns=duration.ns)
