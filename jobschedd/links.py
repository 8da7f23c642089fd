"""Jobs that refer to each other before they have ids: by their ``ref``, within a call, a file or a workflow. No I/O."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from graphlib import CycleError, TopologicalSorter

from msgspec.structs import replace

from jobschedd.errors import InvalidJob
from jobschedd.job import Submission, decode_spec, encode
from jobschedd.submission import JOB_ID

#: Jobs of one workflow: it is submitted in one step, and must not hold up the server.
MOST_IN_WORKFLOW = 10_000
MOST_CONDITIONS_IN_WORKFLOW = 100_000


class BadItem(InvalidJob):
    """One of several jobs is wrong: ``number``, from 0."""

    def __init__(self, number: int, field: str, problem: str) -> None:
        super().__init__(field, problem)
        self.number = number


class Refs:
    """The names given so far, where jobs go by one after the other: each may refer to those before it."""

    def __init__(self) -> None:
        self._seen: set[str] = set()
        self.ids: dict[str, str] = {}  # of those that are submitted

    def check(self, submission: Submission) -> Submission:
        """The same again. Raises InvalidJob for a name that is taken, or that nothing before it has."""
        for ref in references(submission) if submission.after else ():
            if ref not in self._seen:
                raise InvalidJob("after", f"{ref!r} is no job id, and no job before it has that ref")
        if submission.ref:
            if submission.ref in self._seen:
                raise InvalidJob("ref", f"{submission.ref!r} is taken: a job before it has it")
            self._seen.add(submission.ref)
        return submission


def references(submission: Submission) -> list[str]:
    """The refs of the jobs that it waits for."""
    return [target for target in targets(submission) if JOB_ID.fullmatch(target) is None]


def targets(submission: Submission) -> list[str]:
    """The ids and refs of the jobs that it waits for."""
    return [condition.rpartition(":")[0] for condition in submission.after]


def ordered(submissions: Sequence[Submission]) -> list[int]:
    """The numbers of the jobs of a workflow, each after those that it waits for. Raises BadItem.

    Refused are refs that nobody or several have, circles, and more jobs or conditions than one step may have.
    """
    if len(submissions) > MOST_IN_WORKFLOW:
        problem = f"are {len(submissions)} jobs; a workflow has {MOST_IN_WORKFLOW} at most"
        raise BadItem(MOST_IN_WORKFLOW, "jobs", problem)
    conditions = 0
    for number, submission in enumerate(submissions):
        conditions += len(submission.after)
        if conditions > MOST_CONDITIONS_IN_WORKFLOW:
            problem = f"too many conditions; a workflow has {MOST_CONDITIONS_IN_WORKFLOW} at most: let a job join many"
            raise BadItem(number, "after", problem)
    numbers: dict[str, int] = {}
    for number, submission in enumerate(submissions):
        if submission.ref and numbers.setdefault(submission.ref, number) != number:
            raise BadItem(number, "ref", f"{submission.ref!r} is taken: another job has it")
    graph: TopologicalSorter[int] = TopologicalSorter()
    for number, submission in enumerate(submissions):
        for ref in references(submission):
            if ref not in numbers:
                raise BadItem(number, "after", f"no job of the workflow has the ref {ref!r}")
        graph.add(number, *(numbers[ref] for ref in references(submission)))
    try:
        return list(graph.static_order())
    except CycleError as error:
        circle = error.args[1]
        names = " -> ".join(submissions[number].ref or f"job {number}" for number in reversed(circle))
        raise BadItem(circle[0], "after", f"these jobs wait for each other: {names}") from None


def within(submissions: Iterable[Submission]) -> bool:
    """Whether any of them refers to another of them: then their ids must be known before they are submitted."""
    refs = {submission.ref for submission in submissions} - {""}
    return bool(refs) and any(not refs.isdisjoint(references(submission)) for submission in submissions)


def linked(
    submissions: Sequence[Submission], known: Mapping[str, str], first: int = 0, workflow: bool = False
) -> list[Submission]:
    """The same with ids for refs: ``known`` ones, and their own, which are counted from ``first`` (0: not reserved)."""
    ids = dict(known)
    if first:
        ids |= {submission.ref: str(first + number) for number, submission in enumerate(submissions) if submission.ref}
    return [
        _linked(submission, ids, first and first + number, str(first) if workflow else "")
        for number, submission in enumerate(submissions)
    ]


def _linked(submission: Submission, ids: Mapping[str, str], number: int, workflow: str) -> Submission:
    pairs = [condition.rpartition(":") for condition in submission.after]
    after = tuple(f"{ids.get(target, target)}:{condition}" for target, _, condition in pairs)
    if after == submission.after and not workflow:
        return replace(submission, id=number)
    spec = decode_spec(submission.spec)
    name = spec.name or (submission.ref if workflow else "")
    return replace(
        submission, id=number, after=after, spec=encode(replace(spec, after=after, workflow=workflow, name=name))
    )
