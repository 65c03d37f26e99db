"""Builds kagglesdk's requests from names, so that modules that describe a request need not import kagglesdk."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Enumerated:
    """A member of an enum of kagglesdk, by name."""

    name: str
    member: str


@dataclass(frozen=True)
class Nested:
    """An object of kagglesdk inside a request, by class name and fields."""

    name: str
    fields: dict[str, Any]


def build_request(service: str, method: str, fields: dict[str, Any]) -> Any:
    """Return kagglesdk's request for a call; replace each `Nested` and `Enumerated` in the fields by kagglesdk's object."""
    from kagglesdk.blobs.types import blob_api_service
    from kagglesdk.datasets.types import dataset_api_service, dataset_enums
    from kagglesdk.kernels.types import kernels_api_service, kernels_enums
    from kagglesdk.models.types import model_api_service, model_enums
    from kagglesdk.security.types import oauth_service

    modules = {
        "kernels": (kernels_api_service, kernels_enums),
        "datasets": (dataset_api_service, dataset_enums),
        "blobs": (blob_api_service,),
        "models": (model_api_service, model_enums, dataset_api_service),
        "security": (oauth_service,),
    }[service]

    def find(name: str) -> Any:
        return next(getattr(module, name) for module in modules if hasattr(module, name))

    def build(name: str, values: dict[str, Any]) -> Any:
        made = find(name)()
        for field, value in values.items():
            setattr(made, field, convert(value))
        return made

    def convert(value: Any) -> Any:
        match value:
            case Enumerated(name, member):
                return find(name)[member]
            case Nested(name, values):
                return build(name, values)
            case list():
                return [convert(item) for item in value]
        return value

    words = "".join(word.capitalize() for word in method.split("_"))
    return build(f"{'' if service == 'security' else 'Api'}{words}Request", fields)
