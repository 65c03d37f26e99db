"""The base class of documents: frozen, strict about fields, with a canonical form and a digest."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection
from typing import Any, Self

from pydantic import BaseModel, ConfigDict, ValidationError

from state.errors import DataError, did_you_mean, shown

_LONGEST_PLACE = 80


class Document(BaseModel):
    """A frozen value that can be printed, stored, compared and hashed."""

    # Validators are built when first used: a command pays only for the documents that it reads.
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, defer_build=True)

    def to_json(self) -> bytes:
        """Return the document as indented JSON with a newline at its end."""
        return (self.model_dump_json(indent=1) + "\n").encode()

    @classmethod
    def from_json(cls, data: bytes | str, origin: str) -> Self:
        """Read a document.

        Args:
            data: JSON text.
            origin: Where it came from, for the message.

        Raises:
            DataError: the text is not a valid document of this kind.
        """
        try:
            return cls.model_validate_json(data)
        except ValidationError as error:
            problems = "; ".join(f"{_place(problem['loc'])}: {problem['msg']}" for problem in error.errors()[:3])
            raise DataError(f"{origin} is not a valid {cls.__name__}: {problems}") from error

    def evolve(self, **changes: Any) -> Self:
        """Return a copy with other values in some fields; validate all of them, and convert none.

        Without validation, a value of a wrong type would be stored and could not be read back.

        Raises:
            TypeError: a field does not exist.
            ValidationError: a value has a wrong type, or the fields contradict each other.
        """
        fields = type(self).model_fields
        if unknown := changes.keys() - fields.keys():
            name = min(unknown)
            hint = did_you_mean(name, list(fields))
            raise TypeError(f"{type(self).__name__} has no field {name!r}{f'; {hint}' if hint else ''}")
        unchanged = {name: getattr(self, name) for name in self.model_fields_set - changes.keys()}
        return type(self).model_validate({**unchanged, **changes}, strict=True)

    def digested_values(self, first_fields: Collection[str]) -> dict[str, Any]:
        """Return the JSON values that a stored digest covers: the first fields, and later ones that differ from their default.

        A run outlives upgrades, so a new field must not change the digest of an earlier document. Its default therefore means
        "as before the field existed", and a field with its default value stays out of the digest.

        Args:
            first_fields: The fields that the document had when its digest was first stored.
        """
        fields = type(self).model_fields
        return {
            name: value
            for name, value in self.model_dump(mode="json").items()
            if name in first_fields or getattr(self, name) != fields[name].get_default(call_default_factory=True)
        }

    def digest(self) -> str:
        """Return the sha256 of the canonical form: 64 hex digits."""
        return digest_of(self.model_dump(mode="json"))


def _place(location: tuple[int | str, ...]) -> str:
    """Return a field's path within a document, safe to print: keys come from outside and may hold anything."""
    place = ".".join(map(str, location)) or "document"
    return place if place.isprintable() and len(place) <= _LONGEST_PLACE else shown(place)


def digest_of(value: Any) -> str:
    """Return the sha256 of a JSON value in canonical form (sorted keys, no spaces): 64 hex digits."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()).hexdigest()
