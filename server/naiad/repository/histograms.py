"""The histograms of durations that metrics have, and their buckets.

A configuration may choose other buckets for its model: `model_metrics.metric_control`.
"""

from collections.abc import Mapping

FIRST_RESPONSE = "nv_inference_first_response_histogram_ms"
"""Until the first response to a request was there, in milliseconds."""

_DURATION = (
    10.0,
    50.0,
    100.0,
    250.0,
    500.0,
    1_000.0,
    2_500.0,
    5_000.0,
    10_000.0,
    25_000.0,
    50_000.0,
    100_000.0,
    250_000.0,
    500_000.0,
    1_000_000.0,
    5_000_000.0,
)

BUCKETS: Mapping[str, tuple[float, ...]] = {
    FIRST_RESPONSE: (100.0, 500.0, 2_000.0, 5_000.0),
    "nv_inference_request_duration_histogram_us": _DURATION,
    "nv_inference_queue_duration_histogram_us": _DURATION,
    "nv_inference_compute_input_duration_histogram_us": _DURATION,
    "nv_inference_compute_infer_duration_histogram_us": _DURATION,
    "nv_inference_compute_output_duration_histogram_us": _DURATION,
}
"""Family -> upper bounds, ascending, in the unit at the end of its name. The first is Triton's."""
