"""What a paper's sheet holds, as pydantic models. The docstring under a key is its description in ``docs/sheet.md`` and in the JSON
schema, which ``python -m kdcore.papers.sheet_page`` writes.

Only ``papers.problems`` and ``papers.sheet_page`` import this module, and ``Paper`` skips it where pydantic is missing: a machine that
only trains does not need it. The code itself uses the sheet as a plain dict.
"""

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, field_validator, model_validator

from kdcore import validation

BLANK, WORD, DOTTED, LINK = r"\S", r"^[A-Za-z0-9_]+$", r"^[A-Za-z0-9_.]+$", r"^https?://\S+$"
PATTERNS = {  # what a text must be, in words
    BLANK: "it must not be blank",
    WORD: "use letters, digits and underscores only",
    DOTTED: "use letters, digits, underscores and dots only",
    LINK: "it must start with http:// or https:// and have no spaces",
}
Text = Annotated[str, Field(min_length=1, pattern=BLANK)]
Name = Annotated[str, Field(pattern=WORD)]  # of a file
Metric = Annotated[str, Field(pattern=DOTTED)]
Number = Annotated[float, Field(allow_inf_nan=False)]
Amount = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Mark = Literal["V", "C", "I", "M", "M?", "?"]
MARKS = {
    "V": "verified: read in the named source",
    "C": "computed: follows from what the source says, such as a count of parameters that comes out exactly",
    "I": "inferred: not stated, but hardly anything else can be meant",
    "M": "from memory, not looked up",
    "M?": "from memory, and unsure",
    "?": "not stated anywhere: what we do is our choice",
}
Scale = Literal["protocol", "short", "scaled", "demo"]
Better = Literal["lower", "higher"]
Sweep = Annotated[dict[Text, Annotated[list[str | float], Field(min_length=1)]], Field(min_length=1)]
Seeds = Annotated[int, Field(ge=1, le=validation.MOST_SEEDS)]


def _once(names: list[str]) -> list[str]:
    if twice := [name for name in names if names.count(name) > 1]:
        raise ValueError(f"it names {validation.shown(twice[0])} twice")
    return names


Texts = Annotated[list[Text], Field(min_length=1), AfterValidator(_once)]
Names = Annotated[list[Name], Field(min_length=1), AfterValidator(_once)]


class Model(BaseModel):
    # an optional key without a default is left out, never null: the code asks whether a sheet has it
    model_config = ConfigDict(extra="forbid", strict=True, use_attribute_docstrings=True)


class Fact(Model):
    """One point of the protocol: what the paper says, what we do, and how certain the paper's side is."""

    what: Text
    """The point: data, batch size, loss, ..."""
    paper: Text
    """What the paper says; "not stated" if it says nothing."""
    ours: Text
    """What we do; "the same" if that is all."""
    mark: Mark
    """How certain ``paper`` is."""
    source: Text
    """Where it is stated: section, table, equation, or file and line; none if nowhere."""


class Equation(Model):
    """An equation that the paper states or uses, where it stands, and the code that computes it. A cell of the notebook must show it
    with the same LaTeX; ``docs/equations.md`` lists all equations."""

    what: Text
    """Its name."""
    number: Text
    """Its number in the paper, "eq. 2"; if it has none, the section or the source."""
    mark: Mark
    """How certain ``number`` is."""
    latex: Text
    """The equation, without dollar signs."""
    code: Texts
    """The code that computes it, closest first: dotted names such as ``kdcore.losses.kd``."""


class Deviation(Model):
    """Where we depart from the paper's protocol, and why. Results stand in ``findings``. The one kind of typed number that belongs here
    explains a choice made on held-out training cases, before the trials and without a record."""

    what: Text
    """The point, with the budget in brackets if it concerns only one."""
    paper: Text | Number
    """What the paper does."""
    ours: Text | Number
    """What we do."""
    why: Text
    """The reason."""


class Config(BaseModel):
    """Every parameter of an arm, with its value at budget ``paper`` and, unless obvious, a comment on its unit and meaning. Apart from
    the keys below, the paper's ``trial.py`` defines the parameters: each one that it reads as ``config["..."]`` must be listed here, and
    only parameters listed here can be set in an arm or a budget. Where a paper has ``scale``, it multiplies all lengths."""

    model_config = ConfigDict(extra="allow", strict=True, use_attribute_docstrings=True)
    data: Text | None
    """Name of a data set (``kdcore.data``); null if each arm names its own."""
    teacher: Text | None
    """The arm that teaches, trained first with the same budget and seed; null for none."""
    is_teacher: bool | Literal["derived"] = False
    """``derived``: true for an arm that another arm names as its teacher. Its weights are kept."""
    teacher_network: Text | None = None
    """``derived``: the teacher's ``network`` at the same budget; null without a teacher."""
    network: Text | None = None
    """A name that ``kdcore.models.create`` knows, such as ``resnet_26``."""
    batch_size: Annotated[int, Field(ge=1)] | None = None
    """Training cases a step."""
    scale: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = None
    """A factor of all lengths."""
    share: Annotated[float, Field(gt=0, le=1)] | None = None
    """The share of each class of the training set that is used."""

    @field_validator("is_teacher", mode="before")
    @classmethod
    def _derived(cls, value):
        if value != "derived" and not isinstance(value, bool):
            raise ValueError(f"write derived (or true, or false), not {validation.shown(value)}")
        return value


class Augmentation(Model):
    """How training images are shifted and mirrored (``kdcore.data.augment.Views``)."""

    pad: Annotated[int, Field(ge=0)] = 0
    """Pixels of padding on each side before a random crop."""
    border: Literal["zero", "reflect"] | None = None
    """What fills the padding: black, or the mirrored image."""
    flip: bool = False
    """Whether to mirror an image left to right, with probability 1/2."""


class Moments(Model):
    """Normalisation with given statistics of the channels, for pixel values from 0 to 1."""

    mean: Annotated[list[Number], Field(min_length=1)]
    """Of each channel."""
    std: Annotated[list[Annotated[float, Field(gt=0, allow_inf_nan=False)]], Field(min_length=1)]
    """Of each channel."""


class Ramp(Model):
    """A value that changes during a stage."""

    start: Annotated[Number, Field(alias="from")]
    """The value before the span."""
    to: Number
    """The value after it."""
    span: Annotated[list[Number], Field(min_length=2, max_length=2)]
    """The fractions of the stage at which the change starts and ends."""
    geometric: bool = False
    """Change by equal factors instead of equal steps."""


class Rates(Model):
    """A piecewise constant learning rate: ``lr[i]`` until step ``until[i]`` times ``scale``; the last of these steps is the length."""

    lr: Annotated[list[Amount], Field(min_length=1)]
    """The rates."""
    until: Annotated[list[Amount], Field(min_length=1)]
    """The step at which each rate ends, in increasing order."""

    @model_validator(mode="after")
    def _as_many(self):
        if len(self.lr) != len(self.until) or self.until != sorted(self.until):
            raise ValueError("it needs one end for each rate, in increasing order")
        return self


class Budget(Model):
    """One size of the replication: what it runs, for how long, with how many seeds. Of several patterns in ``arms`` that match, the last
    one wins."""

    about: Text
    """A one-line summary: data, lengths, and which arms if not all."""
    scale: Scale
    """How close it comes to the paper, which decides what gets a verdict. ``protocol``: the paper's own networks, data and lengths, as at
    budget ``paper``; numbers and claims. ``short``: the same networks and data, trained for less; claims, and numbers that agree with the
    paper's. ``scaled``: smaller networks, or less data; claims alone. ``demo``: embedded data, as at budget ``smoke``; nothing."""
    time: Text
    """How long it takes, and on what."""
    seeds: Seeds
    """How many seeds of each arm."""
    only: Texts = ["*"]
    """Patterns of the arms that it runs; all by default."""
    config: dict[Text, Any] = {}
    """Parameters that it changes for every arm, overriding the arm's own settings."""
    arms: dict[Text, dict[Text, Any]] = {}
    """By pattern of arm names: parameters, and ``seeds``, that it changes for the arms that match."""


class Row(Model):
    """One number of a table. ``metric``, ``unit``, ``margin`` and ``mark`` are the table's unless the row has its own; so is
    ``better``, unless the row has a ``unit`` of its own."""

    label: Text
    """What the row is called."""
    arm: Text | None
    """The arm whose mean over seeds is shown; null for a number that the paper quotes from others."""
    sweep: Sweep = None
    """As in an arm: the row stands for one row per combination."""
    paper: Number | None | list[Number | None]
    """The number that the paper reports, null if none; for a sweep, also a list with one number per combination."""
    reference: Number | None | list[Number | None] = None
    """The number from the source that the table's ``reference`` names."""
    std: Amount = None
    """The standard deviation that the paper gives with its number."""
    mark: Mark = None
    """How certain the reported number is."""
    metric: Metric = None
    """The metric that is shown: a name in ``METRICS`` of the paper's ``trial.py``."""
    margin: Amount | list[Amount] = None
    """How far our number may be from the paper's and still count as the same result, in the metric's unit; for a sweep, also a list with
    one number per combination."""
    unit: Text = None
    """The metric's unit."""
    better: Better = None
    """Whether lower or higher numbers are better; none if neither is."""


class Table(Model):
    """A table of the paper, or one of ours. Its ``metric``, ``unit``, ``margin`` and ``mark`` apply to rows without their own."""

    id: Name
    """A short name, for files and commands."""
    title: Text
    """Its heading."""
    number: int | Text = None
    """Its number in the paper; none for a table of ours."""
    source: Text
    """Where the numbers come from."""
    reference: Text = None
    """Who else reports numbers, in the rows' ``reference``."""
    unit: Text
    """The metric's unit."""
    better: Better = None
    """Whether lower or higher numbers are better, for the rows in this unit; none if neither is."""
    metric: Metric
    """The metric that is shown: a name in ``METRICS`` of the paper's ``trial.py``."""
    margin: Amount
    """How far our number may be from the paper's and still count as the same result, in the metric's unit."""
    mark: Mark = None
    """How certain the reported numbers are."""
    curves: bool = True
    """Whether to draw the learning curves of its arms."""
    rows: Annotated[list[Row], Field(min_length=1)]
    """In the order in which they are shown."""


class Margin(Model):
    """A margin that could not tell the paper's own results apart, and its replacement; or one that stays, wide as it is, and why. Margins
    are only changed before new records, and the tables show which verdicts the old ones gave."""

    tables: Names
    """Ids of the tables."""
    rows: Texts = ["*"]
    """Patterns of the labels of the rows with a reported number that it concerns; all by default."""
    old: Amount = None
    """The margin before; none if it was not changed."""
    since: Text = None
    """The day of the change; none if it was not changed."""
    why: Text
    """What was wrong with the old margin, or why it stays."""

    @model_validator(mode="after")
    def _both(self):
        if (self.old is None) != (self.since is None):
            raise ValueError("a margin that was changed has both old and since; one that stays has neither")
        return self


class Side(Model):
    """One side of a claim: the mean of a metric over arms, seed by seed, or a constant."""

    arms: Texts = None
    """Their names."""
    metric: Metric = None
    """A name in ``METRICS`` of the paper's ``trial.py``."""
    value: Number = None
    """The constant, instead of ``arms`` and ``metric``."""

    @model_validator(mode="after")
    def _one_of_two(self):
        if (self.value is None) == (self.arms is None) or (self.arms is None) != (self.metric is None):
            raise ValueError("write {arms: [...], metric: ...} or {value: ...}")
        return self


class Claim(Model):
    """A statement of the paper that our numbers can support or contradict."""

    id: Name
    """A short name, for files."""
    text: Text
    """The statement, in our words."""
    effect: Text = None
    """What is compared, in a few words: "soft targets instead of labels". Needed for a claim in the sheet's ``headline``."""
    source: Text
    """Where the paper says so."""
    left: Side
    """What is compared."""
    relation: Literal["<", "same"]
    """``<``: left is smaller. ``same``: they differ by less than ``margin``."""
    margin: Annotated[float, Field(gt=0, allow_inf_nan=False)] = None
    """Only for ``same``, in the metric's unit."""
    right: Side
    """What it is compared with."""

    @model_validator(mode="after")
    def _margin(self):
        if (self.relation == "same") != (self.margin is not None):
            raise ValueError("it needs the relation '<', or 'same' with a margin")
        if self.left.arms is None and self.right.arms is None:
            raise ValueError("it compares two constants: name the arms of a side")
        if self.left == self.right:
            raise ValueError("it compares a side with itself")
        return self


SHOWN = {
    "": "the mean over seeds",
    "interval": "the mean with its 95 % interval: 2.4 [1.1, 3.7]",
    "range": "the smallest and the largest seed: 1.5 to 3.5",
    "each": "every seed: 4.6, 4.6 and 1.5",
    "spread": "the standard deviation over seeds",
    "seeds": "in how many seeds the value is within its bounds: all 3 seeds, 2 of 3 seeds",
    "paper": "the same value of the numbers that the paper reports",
}


class Value(Model):
    """A number of a finding: ``left``, or ``left`` minus ``right``, seed by seed. Its bounds are what the words of the finding rely on: if
    the text says "fewer errors", the difference must stay on one side of 0 when more seeds arrive. A difference without bounds is shown
    with its sign."""

    left: Side
    """What is measured."""
    right: Side = None
    """What is subtracted."""
    above: Number = None
    """The value must be larger than this."""
    below: Number = None
    """The value must be smaller than this."""
    of: Literal["mean", "every", "spread"] = "mean"
    """What the bounds apply to: the mean over seeds, every seed, or the standard deviation over seeds."""

    @model_validator(mode="after")
    def _bounds(self):
        if self.left.arms is None:
            raise ValueError("left is a constant: name its arms and metric")
        if self.left == self.right:
            raise ValueError("it subtracts a side from itself")
        if self.above is not None and self.below is not None and self.above >= self.below:
            raise ValueError(f"no number is above {self.above:g} and below {self.below:g}")
        if "of" in self.model_fields_set and self.above is None and self.below is None:
            raise ValueError("'of' says what the bounds apply to: write above or below")
        return self


class Finding(Model):
    """What came out: a sentence whose numbers are computed from records. Write a number of ours in ``text``, ``paper`` or ``why`` as
    ``{name}`` or ``{name:how}``, with the name of one of ``values``. Where the records leave the bounds of a value, the finding is shown
    as no longer true, and ``kdcore check`` says so. A finding without records is not shown."""

    id: Name
    """A short name."""
    budget: Text
    """The budget whose records it is about."""
    text: Text
    """The sentence."""
    values: Annotated[dict[Name, Value], Field(min_length=1)]
    """Its numbers, by name."""
    paper: Text = None
    """What the paper finds; left out if it says nothing."""
    why: Text = None
    """The reason, as far as it was tested."""


class Resampled(Model):
    """How trials draw random test sets from one data set. Training sets that share most of their cases make the results alike, so intervals
    and tests are corrected (Nadeau & Bengio 2003, Machine Learning 52:239)."""

    repetitions: Text
    """The parameter with the number of random test sets in one trial."""
    share: Text
    """The parameter with the share of the cases in each of them."""
    values: Text
    """The entry of a record's metrics that holds, by metric, the value of each test set. A metric without them is tested by its means over
    a trial's test sets."""


class Size(Model):
    """The size of a network in the first table, as the paper prints it and as counted."""

    row: Text
    """The label of its row."""
    layers: Text
    """In the paper's notation."""
    parameters_printed: Annotated[Text, Field(alias="parameters printed")]
    """As the paper prints them."""
    parameters: Amount
    """As counted."""
    hidden_units_printed: Annotated[Text, Field(alias="hidden units printed")]
    """As the paper prints them."""
    hidden_units: Annotated[Amount, Field(alias="hidden units")]
    """As counted."""
    note: Text
    """What explains the difference."""


class Sheet(Model):
    """The sections of a sheet, in this order."""

    title: Text
    """The paper's title."""
    authors: Text
    """First names first."""
    year: Annotated[int, Field(ge=1900, le=2100)]
    """The year of publication."""
    citation: Text
    """Where it was published, and which sections are replicated."""
    url: Annotated[str, Field(pattern=LINK)]
    """Where it can be read."""
    short: Text
    """Its name in tables: "Hinton 2015, MNIST"."""
    question: Text
    """The question that the paper asks, in one sentence."""
    protocol: Annotated[list[Fact], Field(min_length=1)]
    """The paper's protocol and ours, point by point."""
    equations: list[Equation] = []
    """The paper's equations, and the code that computes them."""
    sizes: list[Size] = None
    """One per row of the first table, for a paper that draws a figure of sizes."""
    bfloat16: bool = False
    """Whether training may multiply in bfloat16 where that is fast: true only once ``python -m benchmarks.precision`` has found equal
    errors."""
    config: Config
    """Every parameter of an arm."""
    arms: Annotated[dict[Text, dict[Text, Any]], Field(min_length=1)]
    """The ways to train a model, by name: what each sets differently from ``config``. An arm with a ``sweep`` stands for one arm per
    combination, with ``{variable}`` in its name and settings filled in."""
    trained: Texts = None
    """Parameters that say what is trained and on what. Where a budget is scaled down, each table shows their values beside the paper's, as
    its title and labels are the paper's. By default those of data, network, teacher_network and share that ``config`` has."""
    budgets: Annotated[dict[Literal["smoke", "laptop", "fast", "paper"], Budget], Field(min_length=1)]
    """Sizes of the replication, from seconds to the full protocol."""
    runs: Annotated[int, Field(ge=2)] = None
    """The number of runs behind the paper's means and standard deviations."""
    resampled: Resampled = None
    """For trials that draw random test sets from one data set."""
    measures: dict[Text, Text] = {}
    """Measures taken while training, in words for the learning curves, with their unit. Needed where a name does not speak for itself."""
    tables: Annotated[list[Table], Field(min_length=1)]
    """Reported numbers and their sources; the first table is the paper's headline."""
    margins: list[Margin] = []
    """Margins that were replaced, or that stay although they are wide."""
    claims: list[Claim]
    """What the paper claims about its numbers."""
    headline: Annotated[Names, Field(max_length=3)] = None
    """Ids of the claims that stand for the paper, the most important first. Their effects are shown beside the paper's own."""
    deviations: list[Deviation]
    """Where we depart from the paper's protocol."""
    findings: list[Finding] = []
    """What came out, in sentences."""


DERIVABLE = {"is_teacher", "teacher_network"}  # what ``Paper.resolved`` finds out where config says ``derived``
SHAPES = {"augmentation": Augmentation, "normalisation": Moments}
KEYS = sorted({field.alias or name for model in Model.__subclasses__() for name, field in model.model_fields.items()})
