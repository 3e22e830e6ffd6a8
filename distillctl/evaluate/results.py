"""What an evaluation says: the shape of `metrics.json`, read by the report, `compare` and the API.

Shares and accuracies are in [0, 1], latencies in seconds, money in US dollars. None means unknown (or
not applicable), never zero.
"""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict

from distillctl.types import JSON


class Result(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Interval(Result):
    """An estimate with its 95 % interval; `method` names how it was made."""

    value: float
    low: float
    high: float
    method: str


class Count(Result):
    """`k` of `n`, with the Wilson interval of the share."""

    k: int
    n: int
    share: Interval


class LabelScores(Result):
    """One label: how often it is right when said (precision) and said when right (recall)."""

    label: str
    support: int  # items whose expected label this is
    precision: float | None  # None: never said
    recall: float | None  # None: never expected
    f1: float | None


class CalibrationBin(Result):
    """Items of similar confidence: their mean confidence and the share that was right."""

    n: int
    confidence: float
    accuracy: float


class Calibration(Result):
    """How far stated probabilities can be believed, on the test items that have them.

    temperature: fitted on the dev split by negative log-likelihood, None where there is too little of it;
    the rest is after it. brier: mean over items of the squared error summed over labels, in [0, 2]. ece:
    expected calibration error over bins of equal size; too high at small n, even for true probabilities.
    """

    temperature: float | None
    brier: float
    ece: float
    bins: list[CalibrationBin]


class Latency(Result):
    """Wall time of one request at the client. source: "measured" one at a time, or "recorded". machine: in
    words, where it was measured in a training job."""

    source: Literal["measured", "recorded"]
    machine: str | None = None
    n: int
    p50: Interval
    p95: Interval | None  # None where n is too small to say


class Throughput(Result):
    """Answers per second when many are asked at once."""

    per_second: float
    at_once: int


class Cost(Result):
    """What 1,000 requests cost, and where the figure comes from (a price table and its date, a bill)."""

    usd_per_1000: float
    source: str


class Confusion(Result):
    """counts[i][j]: items expected as labels[i] and answered as columns[j]; the last column is
    "(no valid answer)"."""

    labels: list[str]
    columns: list[str]
    counts: list[list[int]]


class StructuredScores(Result):
    """JSON answers. Shares are of the planned items.

    exact_object: every scored field equals the expected one, whatever likeness the recipe allows. field_f1:
    over all items' scored fields that hold a value (null is none); None where nothing has one.
    """

    schema_valid: Count
    exact_object: Count
    field_f1: Interval | None


class TextScores(Result):
    """Texts against the `n` expected ones. exact: equal after normalisation. chrf, embedding: where
    the recipe asks."""

    n: int
    exact: Count
    rouge_l: Interval
    chrf: Interval | None
    embedding: Interval | None = None


Role = Literal["teacher", "base", "student", "baseline"]


class Evaluation(Result):
    """One entrant on the test split. Missing and unreadable answers count as wrong."""

    name: str
    role: Role
    model: str
    n: int  # planned items, the denominator of everything
    accuracy: Count
    invalid: Count  # no answer, or one that could not be read
    macro_f1: Interval | None = None
    labels: list[LabelScores] = []
    confusion: Confusion | None = None
    parts: dict[str, Interval] = {}  # field or check -> mean score
    structured: StructuredScores | None = None
    text: TextScores | None = None
    calibration: Calibration | None = None
    latency: Latency | None = None
    throughput: Throughput | None = None
    cost: Cost | None = None
    usd_per_hour: float | None = None  # of the endpoint that answered, where it is paid by time
    replayed: bool = False
    size_bytes: int | None = None  # of what has to be deployed beside the base model
    wrong: list[str] | None = None  # ids of the items that are not right; with `n`, all that pairs need
    dev: Count | None = None  # accuracy on dev, where choices are made; None: did not answer it
    dev_wrong: list[str] | None = None


Cell = Literal["inherited", "compression", "both_wrong_differently", "corrected"]


class LedgerItem(Result):
    """One test item on which teacher or student is wrong."""

    id: str
    cell: Cell
    prompt: str
    expected: JSON
    teacher: JSON  # the parsed value, else the raw output
    student: JSON
    student_confidence: float | None = None  # probability it gave its own answer
    parts: dict[str, float] = {}  # the student's score per field or check
    part_cells: dict[str, Cell] = {}  # of each field or check that teacher or student has wrong


class Comparison(Result):
    """A student, base model or baseline (`student` names it) against the teacher, item by item.

    Drops are teacher minus student: above 0 is a loss. Two answers are the same when the task scores one
    right against the other; two unreadable ones when their texts are equal. `items` is the error ledger,
    kept for the student alone.
    """

    student: str
    n: int
    both_right: int
    compression: int  # teacher right, student wrong
    corrected: int  # teacher wrong, student right
    inherited: int  # both wrong, with the same answer
    both_wrong_differently: int
    drop: Interval  # Tango's score interval for paired shares
    mcnemar_p: float  # exact, two-sided
    mcnemar_mid_p: float
    agreement: Count  # same parsed answer as the teacher, right or wrong
    speedup: Interval | None  # teacher's median latency over the student's
    items: list[LedgerItem]
    other_drops: dict[str, Interval] = {}  # by secondary metric, for the student alone
    part_drops: dict[str, Interval] = {}  # by field or check, for the student alone


class Contrast(Result):
    """Two entrants on the same items. The difference is first minus second: above 0, the first is better.

    p: exact McNemar, two-sided. p_holm: adjusted for all the pairs that were looked at, where they were.
    """

    first: str
    second: str
    n: int
    only_first: int  # items on which the first alone is right
    only_second: int
    difference: Interval  # Tango's score interval for paired shares
    p: float
    p_holm: float | None = None


class Verdict(Result):
    """Whether the student can take over, on the recipe's thresholds.

    settled: whether every drop and speed-up inside their 95 % intervals gives this same word (with unknown
    speed: whether the interval of the drop lies wholly on its side of the thresholds). needed: test items
    in all that would settle it if the present estimates hold; None when settled or when no number would.
    sentence: one plain sentence a person can repeat. reasons: what the verdict rests on. next_steps: what
    to try, most promising first.
    """

    student: str
    word: Literal["viable", "marginal", "not ready"]
    on_quality_alone: bool  # speed is unknown: never "viable" then
    settled: bool
    needed: int | None
    sentence: str
    reasons: list[str]
    next_steps: list[str]


class CascadePoint(Result):
    """What one threshold would give on the test split; shown, never chosen by. Costs and seconds take the
    chosen threshold's for a deferred request; None: unknown."""

    threshold: float | None  # None: the student answers nothing
    share: float  # answered by the student
    accuracy: float  # of the whole
    usd_per_1000: float | None = None
    latency_s: float | None = None


class CascadeStep(Result):
    """One threshold on the dev split, where it is chosen. drop: of the whole against the teacher; at_most:
    its upper bound, one-sided at the cascade's level."""

    threshold: float
    share: float  # answered by the student
    drop: float
    at_most: float


class Cascade(Result):
    """The student answers where the probability of its answer reaches the threshold, the teacher elsewhere.

    Measured on test with a threshold from dev, or from the recipe. level, dev_n, steps: how it was chosen on
    dev, the strictest threshold first and the first that was refused last; None and empty where the recipe
    fixed it. alone: the student on the items that it
    answers; alone_at_least: the Clopper-Pearson lower bound of that, one-sided at 97.5 %; both None where it
    answers nothing. usd_per_1000 and latency_s (mean of a request; a deferred one waits for both) are None
    where that of student or teacher is unknown. worth_it: on test the whole keeps within `verdict.max_drop`,
    the student answers a share that pays, and nothing that is known speaks against it.
    """

    threshold: float
    chosen_on: Literal["dev", "recipe"]
    answered: Count
    accuracy: Count  # of the whole
    drop: Interval  # of the whole against the teacher
    alone: Count | None
    alone_at_least: float | None
    usd_per_1000: float | None
    latency_s: float | None
    worth_it: bool
    sentence: str
    curve: list[CascadePoint]  # strictest first
    level: float | None = None
    dev_n: int | None = None
    steps: list[CascadeStep] = []


class JudgeScores(Result):
    """A judge's comparison of the student's texts with the teacher's, each pair in both orders. It never
    decides anything, and is not to be believed unless `believed`.

    student, teacher, tie: of the judged test items; the rest, `unread`, got no readable reply. drop: share
    that prefers the teacher less share that prefers the student, Tango's interval. settled: test items
    decided without asking (equal texts, a missing answer). asked: items of dev and test. disagreed: pairs
    where the two orders gave different winners. agreement: the judge preferred the only answer that passes
    the checks; None where there is no such item or no gold.
    """

    model: str
    student: Count
    teacher: Count
    tie: Count
    unread: int
    drop: Interval
    settled: int
    asked: int
    disagreed: Count | None
    agreement: Count | None
    min_agreement: float
    believed: bool
    usd: float | None
    sentence: str


class Slice(Result):
    """The test items with one value of a field. behind: the student falls behind its teacher here, clearly
    beyond `verdict.max_drop`, or beyond it and clearly further than elsewhere; None: too few items to say.

    p_above: one-sided, that the drop is above max_drop. p_worse: one-sided, that it is larger than on the
    rest. p_holm: the smaller of the two after Holm over all slices.
    """

    field: str
    value: str
    teacher: Count
    student: Count
    drop: Interval
    p_above: float | None = None
    p_worse: float | None = None
    p_holm: float | None = None
    behind: bool | None = None


class Scenario(Result):
    """Costs of the teacher and of who takes over, and when the training is paid back.

    usd_per_1000: None where unknown. break_even_requests: at the saving of a request; None where it never
    is, or unknown; break_even_days: at the recipe's volume. pays_above_per_day: the volume from which a
    machine that is always on costs less than the teacher.
    """

    name: str
    teacher_usd_per_1000: float | None
    student_usd_per_1000: float | None
    pays: bool | None  # at the recipe's volume where there is one; None: unknown
    break_even_requests: int | None = None
    break_even_days: float | None = None
    pays_above_per_day: int | None = None


class VolumePoint(Result):
    """What a day costs at so many requests, in US dollars."""

    requests_per_day: int
    teacher_usd: float
    student_usd: float
    cascade_usd: float | None = None


class Economics(Result):
    """What the student would save. The first scenario is as measured, the others say what if.

    fixed_usd_per_day: of one machine or endpoint that is always on. training_usd: what the student cost to
    get. unknown: what is not known, and what would make it known. assumed: what the figures take for granted;
    of that, `from_recipe` is what the recipe says and nothing measured.
    """

    requests_per_day: int | None
    teacher: Cost | None
    student: Cost | None
    fixed_usd_per_day: float | None
    training_usd: float | None
    training_source: str
    scenarios: list[Scenario]
    curve: list[VolumePoint]
    unknown: list[str]
    assumed: list[str]
    from_recipe: list[str] = []
    sentence: str


class Metrics(Result):
    """Everything that was measured in one run, against gold answers where `gold`, else the teacher's."""

    format: Literal[1] = 1
    task_kind: str
    gold: bool
    test_digest: str  # of the test items, what is expected and how it is scored; equal or not comparable
    dev_digest: str | None = None  # the same of the dev items; None: there are none
    evaluations: list[Evaluation]
    comparisons: list[Comparison]  # each entrant against the teacher, the student first
    contrasts: list[Contrast] = []  # the student against the base model and the baseline
    cascade: Cascade | None = None
    no_cascade: str | None = None  # why no threshold could be chosen though the student states probabilities
    slices: list[Slice] = []
    judge: JudgeScores | None = None
    economics: Economics | None = None
    how_scored: dict[str, str] = {}  # what makes a field or check right, in words
    label_suspects: list[str] = []  # ids in the ledger: a sure student and its teacher agree against gold
    verdict: Verdict
    notes: list[str] = []  # what a reader must know: replayed teacher, unknown figures
