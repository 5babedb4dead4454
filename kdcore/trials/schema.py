"""The structure of a record, as a pydantic model. Only ``store`` uses it, if pydantic is installed: training does not need it."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

Id = Annotated[str, Field(pattern=r"^[0-9a-f]{12}$")]
Name = Annotated[str, Field(pattern=r"^\w+$")]  # name of a folder
Text = Annotated[str, Field(min_length=1)]
Amount = Annotated[float, Field(ge=0, le=1e12)]  # sums of them stay finite


class Model(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class Cost(Model):
    """The cost of one trial: its share of its cohort's, interrupted runs included. cpu_seconds: of all threads; not in older records."""

    seconds: Amount
    cpu_seconds: Amount = 0.0
    peak_memory_mb: Amount
    device: Text


class Environment(Model):
    """Where a trial ran. precision: of matrix products in training, float32 in older records. teacher_processor: name of the
    processor or GPU that trained the teacher, None without a teacher and in older records. without_graph: why steps on a GPU ran
    without a CUDA graph, if they did."""

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
    """The measures of one epoch: numbers, or lists with one number per net of an ensemble."""

    model_config = ConfigDict(extra="allow", strict=True)
    __pydantic_extra__: dict[str, float | list[float]]
    stage: str = ""


class Record(Model):
    """One trial. Numbers in config and metrics may be nested in lists and dicts; ``store`` checks that all are finite."""

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
            raise ValueError("a trial that is done must have a number among its metrics")
        if self.status != "done" and not isinstance(self.metrics.get("message"), str):
            raise ValueError("a failed trial must have a text in metrics.message")
        return self


def complaint(record: dict) -> str | None:
    """What is wrong with a record, and where; None if nothing is."""
    try:
        Record.model_validate(record)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        place = ".".join(map(str, first["loc"]))
        words = first["msg"].removeprefix("Value error, ")
        words = f"{place}: {words[0].lower()}{words[1:]}" if place else words
        return words if first["type"] in ("missing", "extra_forbidden", "value_error") else f"{words}, not {first['input']!r:.60}"
    return None
