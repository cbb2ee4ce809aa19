"""GET /v1/models: the models that this API serves."""

from typing import Any

from naiad.core.dataplane import DataPlane
from naiad.http.openai.served import either
from naiad_backends.errors import not_found


def every(dataplane: DataPlane, created: int) -> dict[str, Any]:
    """All of them, by name. created: a time in seconds; nobody knows when a model was made."""
    served = {each.name: each for each in dataplane.statistics()}
    fit = [name for name, each in served.items() if either(each.spec)]
    return {"object": "list", "data": [_model(dataplane, name, created) for name in fit]}


def one(dataplane: DataPlane, name: str, created: int) -> dict[str, Any]:
    """One of them. Raises NOT_FOUND for another name."""
    for model in every(dataplane, created)["data"]:
        if model["id"] == name:
            return dict(model)
    raise not_found(
        f"the model '{name[:200]}' is not served", field="model", hint="see GET /v1/models"
    )


def _model(dataplane: DataPlane, name: str, created: int) -> dict[str, Any]:
    tools = dataplane.text_tools(name)
    told: dict[str, Any] = {
        "id": name,
        "object": "model",
        "created": created,
        "owned_by": "naiad",
        "root": name,
        "parent": None,
    }
    if tools is not None:
        told["max_model_len"] = tools.max_model_len
    return told
