"""What a paper's sheet holds, as pydantic models. The docstring under a key is what ``docs/sheet.md`` and the JSON schema say of it:
``python -m kdcore.papers.sheet_page`` writes both anew.

Only ``papers.problems`` and ``papers.sheet_page`` import it, and ``Paper`` does without where there is no pydantic: a machine that
trains needs none. The sheet that the code uses stays the plain dict.
"""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from kdcore import validation

Text = Annotated[str, Field(min_length=1, pattern=r"\S")]
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9_]+$")]  # of a file
Metric = Annotated[str, Field(pattern=r"^[A-Za-z0-9_.]+$")]
Number = Annotated[float, Field(allow_inf_nan=False)]
Amount = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Mark = Literal["V", "C", "I", "M", "M?", "?"]
MARKS = {
    "V": "verified: read in the named source",
    "C": "computed: follows from what the source says, such as a count of parameters that comes out exactly",
    "I": "inferred: not said, but hardly anything else is meant",
    "M": "from memory, not looked up",
    "M?": "from memory, and not sure",
    "?": "stated nowhere: what we do is our choice",
}
Sweep = Annotated[dict[Text, Annotated[list[str | float], Field(min_length=1)]], Field(min_length=1)]
Seeds = Annotated[int, Field(ge=1, le=validation.MOST_SEEDS)]


class Model(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, use_attribute_docstrings=True)


class Fact(Model):
    """What the paper says of one point of its protocol, what we do, and how sure that is."""

    what: Text
    """The point: data, batch size, loss, ..."""
    paper: Text
    """What the paper says of it; "not stated" where it says nothing."""
    ours: Text
    """What we do; "the same" where that is all."""
    mark: Mark
    """How sure ``paper`` is."""
    source: Text
    """Section, table, equation or file and line where it is said; none where it is said nowhere."""


class Equation(Model):
    """An equation that the paper has or uses: where it stands, what computes it. A cell of the notebook shows it with the same LaTeX;
    ``docs/equations.md`` lists all."""

    what: Text
    """What it is called."""
    number: Text
    """The paper's own number, "eq. 2"; where it has none, the section, or whose it is."""
    mark: Mark
    """How sure ``number`` is."""
    latex: Text
    """The equation, without dollars."""
    code: Annotated[list[Text], Field(min_length=1)]
    """What computes it, the closest first: dotted names, such as ``kdcore.losses.kd``."""


class Deviation(Model):
    """Where we do otherwise than the paper, or come to another result, and why."""

    what: Text
    """The point, and in brackets the budget, if it is about one."""
    paper: Text | Number
    """What the paper does or finds."""
    ours: Text | Number
    """What we do or find."""
    why: Text
    """The reason."""


class Config(BaseModel):
    """Every parameter of an arm, with its value at budget ``paper``, and a comment on its unit and meaning where these are not obvious.
    Apart from the ones below, the paper's ``trial.py`` decides which there are: each that it reads as ``config["..."]`` must stand here,
    and only what stands here can be set in an arm or a budget. Lengths are multiplied by ``scale`` where a paper has it."""

    model_config = ConfigDict(extra="allow", strict=True, use_attribute_docstrings=True)
    data: Text | None
    """Name of a data set (``kdcore.data``); null where each arm names its own."""
    teacher: Text | None
    """The arm that teaches, trained first with the same budget and seed; null for none."""
    is_teacher: bool | Literal["derived"] = False
    """``derived``: true for an arm that another one names as its teacher. Such an arm keeps its weights."""
    teacher_network: Text | None = None
    """``derived``: the teacher's ``network`` at the same budget, null without a teacher."""
    network: Text | None = None
    """What ``kdcore.models.create`` builds, such as ``resnet_26``."""

    @field_validator("is_teacher", mode="before")
    @classmethod
    def _derived(cls, value):
        if value != "derived" and not isinstance(value, bool):
            raise ValueError(f"write derived (or true, or false), not {validation.shown(value)}")
        return value


class Augmentation(Model):
    """How training images are shifted and mirrored (``kdcore.data.augment.Views``)."""

    pad: Annotated[int, Field(ge=0)] = 0
    """Pixels of padding on each side, of which a random crop is taken."""
    border: Literal["zero", "reflect"] | None = None
    """What the padding holds: black, or the mirrored image."""
    flip: bool = False
    """Mirrored left to right, one time in two."""


class Moments(Model):
    """Normalisation by given values of the channels, in units of 0..1."""

    mean: Annotated[list[Number], Field(min_length=1)]
    """Of each channel."""
    std: Annotated[list[Annotated[float, Field(gt=0, allow_inf_nan=False)]], Field(min_length=1)]
    """Of each channel."""


class Ramp(Model):
    """A value that changes while a stage goes on."""

    start: Annotated[Number, Field(alias="from")]
    """The value before the span."""
    to: Number
    """The value after it."""
    span: Annotated[list[Number], Field(min_length=2, max_length=2)]
    """Shares of the stage between which the value changes."""
    geometric: bool = False
    """By equal factors; otherwise by equal steps."""


class Rates(Model):
    """A learning rate that falls in steps: ``lr[i]`` until step ``until[i]``, times ``scale``; the last of them is the length."""

    lr: Annotated[list[Amount], Field(min_length=1)]
    """The rates."""
    until: Annotated[list[Amount], Field(min_length=1)]
    """Where each of them ends, in rising order."""

    @model_validator(mode="after")
    def _as_many(self):
        if len(self.lr) != len(self.until) or self.until != sorted(self.until):
            raise ValueError("it needs as many rates as ends, and rising ends")
        return self


class Budget(Model):
    """One size of the replication: what it runs, for how long, with how many seeds. What matches later in ``arms`` wins."""

    about: Text
    """What it shows, in a line: data, lengths, and which arms where these are not all."""
    comparable: bool = True
    """Whether its numbers may be compared with the paper's; false for ``smoke``."""
    time: Text
    """How long it takes, and on what."""
    seeds: Seeds
    """How many seeds of each arm."""
    only: Annotated[list[Text], Field(min_length=1)] = ["*"]
    """Patterns of the arms that it runs; all by default."""
    config: dict[Text, Any] = {}
    """Parameters that it changes for every arm, over the arm's own settings."""
    arms: dict[Text, dict[Text, Any]] = {}
    """By pattern of arms: parameters, and ``seeds``, that it changes for these."""


class Row(Model):
    """One number of a table. ``metric``, ``unit``, ``margin`` and ``mark`` are the table's unless the row has its own."""

    label: Text
    """What the reader sees."""
    arm: Text | None
    """Whose mean over seeds stands there; null for a number that the paper quotes from others."""
    sweep: Sweep | None = None
    """As of an arm: the row stands for one of each combination."""
    paper: Number | None | list[Number | None]
    """The number that the paper reports, null where it has none; for a sweep also a list, one for each combination."""
    reference: Number | None | list[Number | None] = None
    """The same from whom the table's ``reference`` names."""
    std: Amount | None = None
    """The standard deviation that the paper gives with its number."""
    mark: Mark | None = None
    """How sure the reported number is."""
    metric: Metric | None = None
    """What of a trial is shown: a name in METRICS of the paper's ``trial.py``."""
    margin: Amount | None = None
    """How far ours may lie from the paper's number and still be the same result, in the metric's unit."""
    unit: Text | None = None
    """Of the metric."""


class Table(Model):
    """A table of the paper, or one of ours. Its ``metric``, ``unit``, ``margin`` and ``mark`` hold for the rows without their own."""

    id: Name
    """Short, for file names and commands."""
    title: Text
    """What the reader sees."""
    number: int | Text | None = None
    """Its number in the paper; none for a table of ours."""
    source: Text
    """Where the numbers stand."""
    reference: Text | None = None
    """Who else reports numbers, in the rows' ``reference``."""
    unit: Text
    """Of the metric."""
    metric: Metric
    """What of a trial is shown: a name in METRICS of the paper's ``trial.py``."""
    margin: Amount
    """How far ours may lie from the paper's number and still be the same result, in the metric's unit."""
    mark: Mark | None = None
    """How sure the reported numbers are."""
    curves: bool = True
    """Whether the errors of its arms over the epochs are drawn."""
    rows: Annotated[list[Row], Field(min_length=1)]
    """In the order in which the reader sees them."""


class Side(Model):
    """Of a claim: the mean of a metric over arms, seed by seed, or a constant."""

    arms: Annotated[list[Text], Field(min_length=1)] | None = None
    """Their names."""
    metric: Metric | None = None
    """A name in METRICS of the paper's ``trial.py``."""
    value: Number | None = None
    """The constant, in place of both."""

    @model_validator(mode="after")
    def _one_of_two(self):
        if (self.value is None) == (self.arms is None) or (self.arms is None) != (self.metric is None):
            raise ValueError("write {arms: [...], metric: ...} or {value: ...}")
        if self.arms and len(set(self.arms)) < len(self.arms):
            raise ValueError("it names an arm twice")
        return self


class Claim(Model):
    """A sentence of the paper that our numbers can bear out or contradict."""

    id: Name
    """Short, for files."""
    text: Text
    """The sentence, in our words."""
    source: Text
    """Where the paper says so."""
    left: Side
    """What is compared."""
    relation: Literal["<", "same"]
    """``<``: left is smaller. ``same``: they differ by less than ``margin``."""
    margin: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = None
    """For ``same`` alone, in the metric's unit."""
    right: Side
    """With what it is compared."""

    @model_validator(mode="after")
    def _margin(self):
        if (self.relation == "same") != (self.margin is not None):
            raise ValueError("it needs the relation '<', or 'same' with a margin")
        if self.left.arms is None and self.right.arms is None:
            raise ValueError("it compares two constants: name the arms of a side")
        return self


class Size(Model):
    """A network of the first table: its size as the paper prints it, and as it is."""

    row: Text
    """Its label."""
    layers: Text
    """In the paper's notation."""
    parameters_printed: Annotated[Text, Field(alias="parameters printed")]
    """As the paper prints them."""
    parameters: Amount
    """As they are."""
    hidden_units_printed: Annotated[Text, Field(alias="hidden units printed")]
    """As the paper prints them."""
    hidden_units: Annotated[Amount, Field(alias="hidden units")]
    """As they are."""
    note: Text
    """What the difference comes from."""


class Sheet(Model):
    """Everything that is said of a paper, in this order."""

    title: Text
    """Of the paper."""
    authors: Text
    """First names first."""
    year: Annotated[int, Field(ge=1900, le=2100)]
    """Of publication."""
    citation: Text
    """Where it was published, and which sections are replicated."""
    url: Annotated[str, Field(pattern=r"^https?://\S+$")]
    """Where it can be read."""
    short: Text
    """Its name in tables: "Hinton 2015, MNIST"."""
    question: Text
    """What the paper asks, in a sentence."""
    protocol: Annotated[list[Fact], Field(min_length=1)]
    """The paper's protocol and ours, point by point."""
    equations: list[Equation] = []
    """What the paper computes, and which of our functions does."""
    sizes: list[Size] | None = None
    """One for each row of the first table, for a paper with a figure of sizes of its own."""
    bfloat16: bool = False
    """Whether training may multiply in bfloat16 where that is fast: only after ``python -m benchmarks.precision`` found equal errors."""
    config: Config
    """Every parameter of an arm."""
    arms: Annotated[dict[Text, dict[Text, Any]], Field(min_length=1)]
    """By name, what each way to train a model sets otherwise than ``config``. An arm with a ``sweep`` stands for one of each combination:
    ``{variable}`` in its name and settings is filled in."""
    budgets: Annotated[dict[Literal["smoke", "laptop", "fast", "paper"], Budget], Field(min_length=1)]
    """Sizes of the replication, from seconds to the full protocol."""
    runs: Annotated[int, Field(ge=2)] | None = None
    """How many runs the paper's means and standard deviations are of."""
    tables: Annotated[list[Table], Field(min_length=1)]
    """Reported numbers and where they stand; the first is the paper's headline."""
    claims: list[Claim]
    """What the paper says of its numbers."""
    deviations: list[Deviation]
    """Where we depart from the paper."""


DERIVABLE = {"is_teacher", "teacher_network"}  # what ``Paper.resolved`` finds out where config says ``derived``
SHAPES = {"augmentation": Augmentation, "normalisation": Moments}
KEYS = sorted({field.alias or name for model in Model.__subclasses__() for name, field in model.model_fields.items()})
