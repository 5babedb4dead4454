"""What a record holds, as a pydantic model. Only ``store`` imports it, and does without: a machine that trains needs no pydantic."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

Id = Annotated[str, Field(pattern=r"^[0-9a-f]{12}$")]
Name = Annotated[str, Field(pattern=r"^\w+$")]  # of a folder
Text = Annotated[str, Field(min_length=1)]
Amount = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class Model(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class Cost(Model):
    """Of one trial: its share of what its cohort took, interrupted runs included. cpu_seconds: of all threads; not in older records."""

    seconds: Amount
    cpu_seconds: Amount = 0.0
    peak_memory_mb: Amount
    device: Text


class Environment(Model):
    """Where a trial ran. precision: of the products in training, float32 in records without it; teacher_processor: what the teacher
    was trained on (a processor's or GPU's name), None without a teacher and in records from before it was written down.
    without_graph: why steps on a GPU were no CUDA graph, where they were none."""

    python: Text
    torch: Text = "unknown"
    cuda: Text | None = None
    gpu: Text | None = None
    processor: Text = "unknown"
    threads: Annotated[int, Field(ge=1)] = 1
    system: Text = "unknown"
    commit: Text = "unknown"
    precision: Literal["float32", "bfloat16"] = "float32"
    teacher_processor: Text | None = None
    without_graph: Text | None = None


class Data(Model):
    fingerprint: Text


class Row(BaseModel):
    """What one epoch measured: numbers, or a list of them, one for each net of an ensemble."""

    model_config = ConfigDict(extra="allow", strict=True)
    __pydantic_extra__: dict[str, float | list[float]]
    stage: str = ""


class Record(Model):
    """One trial. Numbers in config and metrics may lie in lists and dicts; ``store`` checks that all are finite."""

    id: Id
    paper: Name
    arm: Text
    budget: Name
    seed: Annotated[int, Field(ge=0, lt=2**63)]
    status: Literal["done", "nan", "oom", "timeout", "killed", "error"]
    config: dict[str, Any]
    metrics: dict[str, Any]
    history: list[Row]
    cost: Cost
    environment: Environment
    data: Data
    teacher: Id | None
    version: Annotated[int, Field(ge=0)]

    @model_validator(mode="after")
    def _measured(self):
        if self.status == "done" and not any(isinstance(value, int | float) for value in self.metrics.values()):
            raise ValueError("a trial that is done has a number among its metrics")
        if self.status != "done" and not isinstance(self.metrics.get("message"), str):
            raise ValueError("a failure says why in metrics.message")
        return self


def complaint(record: dict) -> str | None:
    """What is wrong with a record, with its place; None where nothing is."""
    try:
        Record.model_validate(record)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        place = ".".join(map(str, first["loc"]))
        words = first["msg"].removeprefix("Value error, ")
        words = f"{place}: {words[0].lower()}{words[1:]}" if place else words
        return words if first["type"] in ("missing", "extra_forbidden", "value_error") else f"{words}, not {first['input']!r:.60}"
    return None
