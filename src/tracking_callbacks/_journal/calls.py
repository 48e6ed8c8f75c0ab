"""Calls of MLflow's that a program has made through the plugin and that concern more than the points of its run.

The names say what a call does; its fields are MLflow's own arguments. An id may be provisional (`provisional`);
delivery puts the server's in its place. An empty `run_id` is the run that the journal belongs to.
"""

from __future__ import annotations

from typing import Literal

import msgspec

__all__ = [
    "AddModelParams",
    "Call",
    "ChangeRegisteredModel",
    "ChangeVersion",
    "CreateExperiment",
    "CreateModel",
    "CreateRegisteredModel",
    "CreateVersion",
    "DropAlias",
    "FinishModel",
    "LinkPoints",
    "ModelFiles",
    "SetAlias",
    "TagModel",
    "TagRegisteredModel",
    "TagVersion",
    "UntagModel",
    "UntagRegisteredModel",
    "UntagVersion",
    "UseModel",
    "decode_call",
    "encode_call",
]


class CreateExperiment(msgspec.Struct, frozen=True, array_like=True, tag="create_experiment"):
    """Creates an experiment, unless one of that name exists."""

    name: str
    artifact_location: str | None = None
    tags: dict[str, str] = {}


class CreateModel(msgspec.Struct, frozen=True, array_like=True, tag="create_model"):
    """Creates a logged model; `model_id` is provisional."""

    model_id: str
    experiment_id: str
    name: str
    run_id: str | None
    model_type: str | None
    tags: dict[str, str]
    params: dict[str, str]


class ModelFiles(msgspec.Struct, frozen=True, array_like=True, tag="model_files"):
    """Uploads the content of a snapshot to the root of a logged model."""

    model_id: str


class FinishModel(msgspec.Struct, frozen=True, array_like=True, tag="finish_model"):
    """Says whether a logged model has all its files."""

    model_id: str
    status: Literal["READY", "FAILED", "PENDING"]


class TagModel(msgspec.Struct, frozen=True, array_like=True, tag="tag_model"):
    """Sets tags of a logged model."""

    model_id: str
    tags: dict[str, str]


class UntagModel(msgspec.Struct, frozen=True, array_like=True, tag="untag_model"):
    """Deletes a tag of a logged model."""

    model_id: str
    key: str


class AddModelParams(msgspec.Struct, frozen=True, array_like=True, tag="model_params"):
    """Adds params to a logged model."""

    model_id: str
    params: dict[str, str]


class UseModel(msgspec.Struct, frozen=True, array_like=True, tag="use_model"):
    """Records a logged model as an output of a run; as an input where `step` is None."""

    model_id: str
    run_id: str = ""
    step: int | None = None


class LinkPoints(msgspec.Struct, frozen=True, array_like=True, tag="link_points"):
    """Links points of a run, each a name, value, time and step, to a logged model and perhaps to a dataset."""

    model_id: str
    points: list[tuple[str, float, int, int]]
    dataset: tuple[str, str] | None = None
    run_id: str = ""


class CreateRegisteredModel(msgspec.Struct, frozen=True, array_like=True, tag="create_registered"):
    """Creates a registered model, unless one of that name exists."""

    name: str
    tags: dict[str, str] = {}
    description: str | None = None


class ChangeRegisteredModel(msgspec.Struct, frozen=True, array_like=True, tag="change_registered"):
    """Sets the description of a registered model."""

    name: str
    description: str


class TagRegisteredModel(msgspec.Struct, frozen=True, array_like=True, tag="tag_registered"):
    """Sets tags of a registered model."""

    name: str
    tags: dict[str, str]


class UntagRegisteredModel(msgspec.Struct, frozen=True, array_like=True, tag="untag_registered"):
    """Deletes a tag of a registered model."""

    name: str
    key: str


class CreateVersion(msgspec.Struct, frozen=True, array_like=True, tag="create_version"):
    """Creates a model version; `version` is provisional.

    Attributes:
        source: ``models:/<model id>``, the place of an artifact of a run, or another URI.
        place: The folder among the artifacts of the run `run_id` that is the source; None means that `source` says it.
    """

    version: str
    name: str
    source: str
    run_id: str | None = None
    place: str | None = None
    tags: dict[str, str] = {}
    description: str | None = None


class ChangeVersion(msgspec.Struct, frozen=True, array_like=True, tag="change_version"):
    """Sets the description of a model version."""

    name: str
    version: str
    description: str


class TagVersion(msgspec.Struct, frozen=True, array_like=True, tag="tag_version"):
    """Sets tags of a model version."""

    name: str
    version: str
    tags: dict[str, str]


class UntagVersion(msgspec.Struct, frozen=True, array_like=True, tag="untag_version"):
    """Deletes a tag of a model version."""

    name: str
    version: str
    key: str


class SetAlias(msgspec.Struct, frozen=True, array_like=True, tag="set_alias"):
    """Points an alias at a model version."""

    name: str
    alias: str
    version: str


class DropAlias(msgspec.Struct, frozen=True, array_like=True, tag="drop_alias"):
    """Deletes an alias."""

    name: str
    alias: str


Call = (
    CreateExperiment
    | CreateModel
    | ModelFiles
    | FinishModel
    | TagModel
    | UntagModel
    | AddModelParams
    | UseModel
    | LinkPoints
    | CreateRegisteredModel
    | ChangeRegisteredModel
    | TagRegisteredModel
    | UntagRegisteredModel
    | CreateVersion
    | ChangeVersion
    | TagVersion
    | UntagVersion
    | SetAlias
    | DropAlias
)

_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(Call).decode


def encode_call(call: Call) -> msgspec.Raw:
    """Return a call as the journal's record holds it."""
    return msgspec.Raw(_encode(call))


def decode_call(encoded: msgspec.Raw) -> Call:
    """Return the call that `encode_call` has encoded.

    Raises:
        MsgspecError: It is none that this version knows.
    """
    call: Call = _decode(encoded)
    return call
