"""The papers. Each is a folder with sheet.yaml (what the paper says and what we run), trial.py (how to train and measure a
trial), figures.py if it has figures of its own, and any module that only this paper needs.

    paper = papers.get("hinton_mnist")
    paper.trials("fast", arms=["small"], seeds=[0])

trial.py defines VERSION, METRICS (its metrics, each with a description), ``prepare(trials, context, teacher_weights) -> Run`` and,
if trials can train side by side, ``cohort(config)``; figures.py defines ``figures(records)``.

With ``KDCORE_PAPERS=FOLDER``, the papers of that folder replace the suite's own.
"""

import copy
import difflib
import fnmatch
import importlib
import math
import traceback
from functools import cached_property, lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

import yaml

from kdcore import validation
from kdcore.errors import KdcoreError
from kdcore.papers.spec import Cohort, Trial

if TYPE_CHECKING:  # what needs PyTorch is imported where it is used: a command that trains nothing starts without it
    from kdcore.training import Run

HERE = validation.other_papers() or Path(__file__).parent
__path__.insert(0, str(HERE))  # so that kdcore.papers.KEY.trial can be imported from any folder
DERIVED = "derived"  # in a sheet, the value of a parameter that follows from others: is_teacher, teacher_network
MOST_NODES, MOST_LEVELS = 100_000, 20  # of a sheet; the largest has 4,000 and 6


def names() -> list[str]:
    """Keys of all papers."""
    return sorted(path.parent.name for path in HERE.glob("*/sheet.yaml"))


def get(key: str) -> "Paper":
    """The paper with this key. Raises KdcoreError for an unknown one."""
    return _paper(validation.one_of(key, "paper", names()))


@lru_cache
def _paper(key: str) -> "Paper":
    return Paper(key)


class BadSheet(KdcoreError):
    """An invalid sheet. problems: one sentence for each thing that is wrong."""

    def __init__(self, key: str, problems: list[str]):
        self.problems = [f"{key}/sheet.yaml: {problem}" for problem in problems]
        more = len(problems) - 1
        super().__init__(self.problems[0] + (f" ({more} more: kdcore check lists them)" if more else ""))


class Paper:
    """A replicated paper: its sheet (the YAML as a dict), arms, budgets and trials."""

    def __init__(self, key: str, sheet: dict | None = None):
        """sheet: by default, that of ``key`` is read. Raises BadSheet for an invalid one, unless pydantic is not installed."""
        self.key = key
        self.sheet = read(HERE / key / "sheet.yaml") if sheet is None else sheet
        rules = _rules()
        if rules and (problems := rules.structure_problems(self.sheet)):
            raise BadSheet(key, problems)
        self.arms = _expanded(self.sheet["arms"])
        self.budgets = self.sheet["budgets"]
        self._configs: dict[tuple[str, str], dict] = {}
        self._teachers: dict[str, list] = {}
        self._trials: dict[tuple[str, str, int], Trial] = {}
        if rules and (problems := rules.problems(self)):
            raise BadSheet(key, problems)
        self.__dict__.pop("tables", None)  # cached by the check

    def refuse_unbuildable(self, trials: list[Trial]) -> None:
        """Raises BadSheet if a network of these trials cannot be built."""
        arms: dict[str, dict[str, None]] = {}
        for trial in trials:
            arms.setdefault(trial.budget, {})[trial.arm] = None
        rules = _rules()
        if rules and (problems := [problem for budget in arms for problem in rules.network_problems(self, budget, arms[budget])]):
            raise BadSheet(self.key, problems)

    @cached_property
    def tables(self) -> list[dict]:
        """The paper's tables. Every row has label, arm (None for a number that the paper quotes from others), metric, unit, better
        ("lower", "higher" or None), margin, paper (the reported number or None) and its mark; in a table with a ``reference``
        (someone else who reports numbers), rows may also have reference (that number or None).

        A row with a sweep becomes one row for each combination; its numbers may be lists, one number for each. Raises
        KdcoreError if such a list has the wrong length."""
        tables = []
        for table in self.sheet["tables"]:
            defaults = {key: table[key] for key in ("metric", "unit", "margin")}
            mark = {"mark": table["mark"]} if "mark" in table else {}
            rows = []
            for row in table["rows"]:
                combinations = _combinations(row.get("sweep", {}))
                numbers = {key: self._numbers(row, key, len(combinations)) for key in ("paper", "reference", "margin") if key in row}
                for i, chosen in enumerate(combinations):
                    names = {"label": row["label"].format(**chosen), "arm": row["arm"] and row["arm"].format(**chosen)}
                    values = {key: column[i] for key, column in numbers.items()}
                    better = {"better": None if "unit" in row else table.get("better")}
                    rows.append(defaults | better | (mark if values.get("paper") is not None else {}) | row | names | values)
            tables.append(table | {"rows": rows})
        return tables

    def _numbers(self, row: dict, key: str, count: int) -> list:
        """The reported numbers of a row, or its margins, one for each combination of its sweep."""
        numbers = row[key] if isinstance(row[key], list) else [row[key]] * count
        if len(numbers) != count:
            raise KdcoreError(
                f"{self.key}/sheet.yaml: the sweep of row '{row['label']}' gives {count} rows, but '{key}' has {len(numbers)} numbers"
            )
        return numbers

    @staticmethod
    def compared(pair: dict) -> list[str]:
        """The arms of both sides of a claim, or of a finding's value."""
        return [arm for side in (pair["left"], pair.get("right") or {}) for arm in side.get("arms") or []]

    def margins_of(self, table: str, row: dict) -> list[dict]:
        """The entries of the sheet's ``margins`` that concern a row of a table (given by its id)."""
        if row["arm"] is None or row["paper"] is None:
            return []
        return [
            entry
            for entry in self.sheet.get("margins", [])
            if table in entry["tables"] and any(fnmatch.fnmatchcase(row["label"], pattern) for pattern in entry.get("rows", ["*"]))
        ]

    def reported(self, pair: dict) -> tuple[list[tuple[float, float]], list[tuple[float, float]]] | None:
        """The paper's own numbers on both sides of a claim or of a finding's value (without a right side, 0): (number, standard deviation
        or nan) of each arm. None if one is missing; unverified ones (``validation.DOUBTFUL``) are.

        The numbers are those of one table if a table has all of them, else the first of each arm in the sheet. Where an error is asked
        for, an accuracy counts as 100 - accuracy.
        """
        tables = [_known(table) for table in self.tables]
        everywhere = {key: number for known in reversed(tables) for key, number in known.items()}
        for known in (*tables, everywhere):
            left, right = (
                [known.get((arm, side["metric"])) for arm in side["arms"]] if side.get("arms") else [(float(side["value"]), math.nan)]
                for side in (pair["left"], pair.get("right") or {"value": 0})
            )
            if None not in (*left, *right):
                return left, right
        return None

    @cached_property
    def module(self):
        return self._import("trial")

    @property
    def notebook(self) -> Path:
        """The path of its notebook, which need not exist."""
        name = f"{self.key}.ipynb"
        return validation.checkout() / "notebooks" / name if validation.other_papers() is None else HERE / self.key / name

    def figures(self, records: list[dict]) -> dict:
        """Functions that draw the paper's own figures, by name, from the records of one budget; figures without records are left out."""
        if not (HERE / self.key / "figures.py").exists():
            return {}
        return self._import("figures").figures(records)

    def _import(self, part: str):
        """A Python file of the paper's folder. Raises KdcoreError if it is missing or cannot be imported, ModuleNotFoundError for a
        package that is not installed."""
        file = HERE / self.key / f"{part}.py"
        if not file.exists():
            raise KdcoreError(f"{self.key}/{part}.py is missing: docs/adding_a_paper.md says what it holds")
        try:
            return importlib.import_module(f"kdcore.papers.{self.key}.{part}")
        except (Exception, SystemExit) as error:  # a file that is being written may raise anything
            if isinstance(error, ModuleNotFoundError) and (error.name or "").partition(".")[0] != "kdcore":
                raise
            lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(file)]
            reason = " ".join(f"{type(error).__name__}: {error}".split())
            where = f"line {lines[-1]}: " if lines else ""
            raise KdcoreError(f"{self.key}/{part}.py cannot be imported ({where}{reason})") from error

    def prepare(self, trials, context, teacher_weights) -> "Run":
        """Build the run of a cohort's trials, without training it. teacher_weights: those that the teacher's trial handed on; None
        without a teacher, and in a rehearsal."""
        from kdcore.training import Run

        run = self.module.prepare(trials, context, teacher_weights)
        if not isinstance(run, Run):
            raise KdcoreError(f"{self.key}/trial.py: prepare returned a {type(run).__name__}, not a kdcore.training.Run")
        return run

    def cohort(self, config: dict):
        """A key: trials with the same seed, teacher and key train side by side. None, the default: each trains alone."""
        return self.module.cohort(config) if hasattr(self.module, "cohort") else None

    def refuse_undeclared(self, results: list[dict]) -> None:
        """Raises KdcoreError for a metric that trial.py measures but does not declare, since sheets are checked against METRICS."""
        if unknown := {name for result in results for name in result["metrics"]} - set(self.module.METRICS):
            names = ", ".join(sorted(unknown))
            raise KdcoreError(f"{self.key}/trial.py measures {names}, which its METRICS does not declare: add a line for each")

    def work(self, config: dict) -> float:
        """A rough size of a trial's training, epochs x cases x parameters, to order trials that were never timed."""
        return self.module.work(config) if hasattr(self.module, "work") else 1.0

    def precision(self, device: str, wanted: str = "auto") -> str:
        """The precision of matrix products in training. "auto": bfloat16 if the device is fast at it and the sheet's ``bfloat16``
        says that an equivalence test found this paper's errors equal with it, else float32."""
        from kdcore.training import fast_precision

        if wanted != "auto":
            return wanted
        return fast_precision(device) if self.sheet.get("bfloat16") else "float32"

    def budget(self, name: str) -> dict:
        return self.budgets[validation.one_of(name, "budget", self.budgets, start=f"{self.key} has no {{what}} {{value}}")]

    def budget_arms(self, budget: str) -> list[str]:
        """The arms that a budget runs, in the order of the sheet."""
        patterns = self.budget(budget).get("only", ["*"])
        return [arm for arm in self.arms if any(fnmatch.fnmatchcase(arm, pattern) for pattern in patterns)]

    def seeds(self, budget: str, arm: str) -> int:
        """The number of seeds (0, 1, ...) that a budget runs for an arm."""
        return self._overrides(budget, arm).get("seeds", self.budget(budget)["seeds"])

    def config(self, budget: str, arm: str) -> dict:
        """The resolved configuration: the paper's protocol, overridden by the arm's settings, then by the budget's; then parameters
        that the sheet gives as ``derived`` are filled in."""
        return copy.deepcopy(self._config(budget, arm))

    def _config(self, budget: str, arm: str) -> dict:
        """``config``, resolved once for all trials; must not be modified."""
        if (budget, arm) not in self._configs:
            self._configs[budget, arm] = copy.deepcopy(self.resolved(budget, arm))
        return self._configs[budget, arm]

    def resolved(self, budget: str, arm: str) -> dict:
        """``config``, resolved again and sharing lists and dicts with the sheet; must not be modified."""
        validation.one_of(arm, "arm", self.arms, start=f"{self.key} has no {{what}} {{value}}")
        config = self._written(budget, arm)
        if unknown := set(config) - set(self.sheet["config"]):
            near = difflib.get_close_matches(min(unknown), self.sheet["config"], 1)
            hint = f" (did you mean '{near[0]}'?)" if near else ""
            names = ", ".join(sorted(unknown)) + hint
            raise KdcoreError(f"{self.key}/sheet.yaml sets unknown parameters for '{arm}' at {budget}: {names}")
        if config.get("is_teacher") == DERIVED:
            if budget not in self._teachers:
                self._teachers[budget] = [self._written(budget, each).get("teacher") for each in self.arms]
            config["is_teacher"] = arm in self._teachers[budget]
        if config.get("teacher_network") == DERIVED:
            teacher = config.get("teacher")
            known = isinstance(teacher, str) and teacher in self.arms
            config["teacher_network"] = self._written(budget, teacher).get("network") if known else None
        return config

    def _written(self, budget: str, arm: str) -> dict:
        """The configuration as written in the sheet, without derived values."""
        overrides = {key: value for key, value in self._overrides(budget, arm).items() if key != "seeds"}
        return self.sheet["config"] | self.arms[arm] | overrides

    def _overrides(self, budget: str, arm: str) -> dict:
        """A budget's overrides for an arm: its ``config``, then each matching entry of its ``arms`` in turn."""
        overrides = dict(self.budget(budget).get("config", {}))
        for pattern, values in self.budget(budget).get("arms", {}).items():
            if fnmatch.fnmatchcase(arm, pattern):
                overrides |= values
        return overrides

    def trial(self, budget: str, arm: str, seed: int) -> Trial:
        """One trial of the grid, cached so that comparing it with thousands of records costs one look-up each."""
        if (budget, arm, seed) in self._trials:
            return self._trials[budget, arm, seed]
        from kdcore import data

        config = self._config(budget, arm)
        teacher = config["teacher"]
        trial = self._trials[budget, arm, seed] = Trial(
            paper=self.key,
            arm=arm,
            budget=budget,
            seed=seed,
            config=config,
            data=data.fingerprint(config["data"]),
            teacher=None if teacher is None else self.trial(budget, teacher, seed).id,
            version=self.module.VERSION,
        )
        return trial

    def teacher_of(self, trial: Trial) -> Trial | None:
        name = trial.config["teacher"]
        return None if name is None else self.trial(trial.budget, name, trial.seed)

    def trials(self, budget: str, arms: list[str] | None = None, seeds: list[int] | None = None) -> list[Trial]:
        """The grid of a budget, ordered by seed; by default every arm with its own number of seeds.

        Raises KdcoreError for an unknown arm, or one that this budget leaves out.
        """
        available = self.budget_arms(budget)
        for arm in arms or ():
            if arm not in self.arms:
                self.config(budget, arm)  # raises, and lists the arms
            if arm not in available:
                raise KdcoreError(
                    f"budget '{budget}' of {self.key} leaves out '{arm}': use budget fast or paper, or one of {'; '.join(available)}"
                )
        pairs = [
            (s, a)
            for a in available
            if not arms or a in arms
            for s in (range(self.seeds(budget, a)) if seeds is None else dict.fromkeys(seeds))
        ]
        return [self.trial(budget, arm, seed) for seed, arm in sorted(pairs, key=lambda pair: pair[0])]

    def cohorts(self, trials: list[Trial]) -> list[Cohort]:
        """Group trials into cohorts, which train side by side, in order of first appearance; duplicates are dropped."""
        groups: dict = {}
        for trial in {trial.id: trial for trial in trials}.values():
            key = self.cohort(trial.config)
            groups.setdefault((trial.budget, trial.seed, trial.teacher, key if key is not None else trial.id), []).append(trial)
        return [Cohort(tuple(group)) for group in groups.values()]


def _rules():
    """``papers.problems``, or None on a machine without pydantic."""
    try:
        return importlib.import_module("kdcore.papers.problems")
    except ModuleNotFoundError as error:
        if error.name != "pydantic":
            raise
        return None


class _Loader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # the loader in C, if there is one, is ten times as fast
    """A YAML loader that refuses repeated keys, of which the last would win silently, and merges of unbounded size."""

    def construct_mapping(self, node, deep=False):
        known = set()
        for name, _ in node.value:
            if (name.tag, name.value) in known if isinstance(name, yaml.ScalarNode) else False:
                raise yaml.constructor.ConstructorError(None, None, f"the key '{name.value}' is given twice", name.start_mark)
            known.add((name.tag, name.value if isinstance(name, yaml.ScalarNode) else id(name)))
        return super().construct_mapping(node, deep)

    def flatten_mapping(self, node):
        super().flatten_mapping(node)
        if len(node.value) > MOST_NODES:
            raise yaml.constructor.ConstructorError(None, None, "its merges are too large", node.start_mark)


def _refuse_depth(text: str) -> None:
    """Raises RecursionError for YAML so deep that the loader in C would crash on it."""
    depth = 0
    for event in yaml.parse(text, _Loader):
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if depth > 10 * MOST_LEVELS:
            raise RecursionError


def read(path: Path) -> dict:
    """Read a sheet: text keys, plain values, finite numbers. Raises KdcoreError with the file and the place."""
    name = "/".join(path.parts[-2:])  # KEY/sheet.yaml
    try:
        text = path.read_bytes().decode("utf-8")
        _refuse_depth(text)
        sheet = yaml.load(text, _Loader)  # noqa: S506 (a SafeLoader)
    except UnicodeDecodeError as error:
        raise KdcoreError(f"{name} is not UTF-8 (byte {error.start}): save it as UTF-8") from error
    except RecursionError as error:
        raise KdcoreError(f"{name} is nested too deeply: a sheet has six levels") from error
    except yaml.YAMLError as error:
        mark, words = getattr(error, "problem_mark", None), getattr(error, "problem", None) or str(error)
        line = f", line {mark.line + 1}" if mark else ""
        raise KdcoreError(f"{name}{line} is not valid YAML: {' '.join(words.split())}") from error
    except (ValueError, TypeError, OverflowError, AttributeError, OSError) as error:
        raise KdcoreError(f"{name} cannot be read ({error})") from error
    if not isinstance(sheet, dict):
        raise KdcoreError(f"{name} {'is empty' if sheet is None else 'is not a mapping'}: copy the sections of another sheet")
    _plain(sheet, name, [MOST_NODES])
    return sheet


def _plain(value, where: str, left: list[int], depth: int = 0) -> None:
    """Raises KdcoreError for what a record cannot hold (keys that are not text, dates, sets, infinities) and for aliases that
    expand without bound (``left``: how many more values there may be)."""
    left[0] -= 1
    if left[0] < 0 or depth > MOST_LEVELS:
        raise KdcoreError(f"{where}: it has more than {MOST_NODES:,} values or {MOST_LEVELS} levels; does an alias contain itself?")
    if isinstance(value, dict):
        for key, inner in value.items():
            if not isinstance(key, str):
                raise KdcoreError(f"{where}: the key {validation.shown(key)} must be text: write it in quotes")
            _plain(inner, f"{where}, {key}" if len(where) < 200 else where, left, depth + 1)
    elif isinstance(value, list):
        for number, inner in enumerate(value):
            _plain(inner, f"{where} [{number}]" if len(where) < 200 else where, left, depth + 1)
    elif isinstance(value, float) and not math.isfinite(value) or isinstance(value, int) and abs(value) > 2**53:
        raise KdcoreError(f"{where}: {validation.shown(value)} is not a finite number that every machine can represent")
    elif value is not None and not isinstance(value, str | int | float):
        raise KdcoreError(f"{where}: {validation.shown(value)} is a {type(value).__name__}: write text, in quotes, or a number")


def _expanded(arms: dict) -> dict:
    """Expand each arm with a ``sweep`` into one arm for each combination: ``"{width} units"`` with sweep {width: [300, 30]}.

    A setting that consists of a placeholder alone ("{width}") becomes the value itself, so that a number stays a number;
    in other text ("teacher, {width} units") placeholders are filled in.
    """
    expanded = {}
    for name, settings in arms.items():
        for values in _combinations(settings.get("sweep", {})):
            expanded[name.format(**values)] = {key: _filled(value, values) for key, value in settings.items() if key != "sweep"}
    return expanded


def _known(table: dict) -> dict[tuple[str, str], tuple[float, float]]:
    """{(arm, metric): (number, standard deviation or nan)} of what the paper reports in a table, with the errors that accuracies imply."""
    known: dict[tuple[str, str], tuple[float, float]] = {}
    for row in table["rows"]:
        if row["arm"] is None or row["paper"] is None or row.get("mark") in validation.DOUBTFUL:
            continue
        std = math.nan if row.get("std") is None else float(row["std"])
        known.setdefault((row["arm"], row["metric"]), (float(row["paper"]), std))
        if "accuracy_percent" in row["metric"]:
            error = row["metric"].replace("accuracy_percent", "error_percent")
            known.setdefault((row["arm"], error), (round(100 - row["paper"], 9), std))
    return known


def _combinations(sweep: dict) -> list[dict]:
    combinations = [{}]
    for variable, values in sweep.items():
        combinations = [known | {variable: value} for known in combinations for value in values]
    return combinations


def _filled(value, values: dict):
    if isinstance(value, list):
        return [_filled(item, values) for item in value]
    if not isinstance(value, str):
        return value
    return next((values[name] for name in values if value == f"{{{name}}}"), value.format(**values))
