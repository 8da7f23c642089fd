"""Jobs after others, and workflows, from Python."""

from __future__ import annotations

from itertools import pairwise

import pytest

from cluster import Cluster
from jobschedd import Client
from jobschedd.errors import InvalidJob, NoParent, NotEnded, UsageError
from jobschedd.job import State


def after_of(client: Client, job_id: str) -> tuple[str, ...]:
    return client.job(job_id).view.spec.after


class TestAfter:
    def test_in_every_way_to_write_it(self, client: Client):
        one, two = client.submit(["true"]), client.submit(["true"])
        for way in (one, one.id, int(one.id), f"{one.id}:ok", (one, "ok"), [one], f" {one.id} ", [one, one.id]):
            assert after_of(client, client.submit(["true"], after=way).id) == ("1:ok",)
        both = client.submit(["true"], after=[one, (two, "any")])
        assert (after_of(client, both.id), both.state) == (("1:ok", "2:any"), "waiting")
        assert after_of(client, client.submit(["true"], after="1:fail,2").id) == ("1:fail", "2:ok")

    def test_nothing_to_wait_for(self, client: Client):
        assert client.submit(["true"], after=[]).state == "pending"

    def test_one_that_is_not_there(self, client: Client):
        with pytest.raises(NoParent, match=r"^after: job 99 has no record"):
            client.submit(["true"], after="99")
        assert list(client.jobs()) == []

    def test_a_name_that_nobody_has(self, client: Client):
        with pytest.raises(InvalidJob, match="after: 'build' is no job id"):
            client.submit(["true"], after="build")

    def test_it_is_listed_while_it_waits(self, client: Client):
        parent = client.submit(["true"])
        child = client.submit(["true"], after=parent, delay="1h")
        assert [job.id for job in client.jobs("waiting")] == [child.id]
        assert client.inspect.counts().waiting == 1
        said = child.view.json()
        assert (said["state"], said["after"], said["workflow"]) == ("waiting", ["1:ok"], None)
        assert said["due"] == pytest.approx(said["submitted"] + 3600)
        assert said["since"] == said["submitted"]


class TestMany:
    def test_items_refer_to_those_before_them(self, client: Client):
        items = [
            {"command": ["true"], "ref": "a"},
            {"command": ["true"], "ref": "b", "after": "a"},
            {"command": ["true"], "after": ["a:any", "b:fail"]},
        ]
        a, b, c = client.submit_many(items)
        assert (after_of(client, b.id), after_of(client, c.id)) == ((f"{a.id}:ok",), (f"{a.id}:any", f"{b.id}:fail"))

    @pytest.mark.parametrize("submit", ["submit_many", "submit_stream"])
    def test_over_many_calls(self, client: Client, submit: str):
        items = [{"command": ["true"], "ref": "j0"}]
        items += [{"command": ["true"], "ref": f"j{n}", "after": [f"j{n - 1}", "j0:ok"]} for n in range(1, 1300)]
        jobs = list(getattr(client, submit)(items))
        assert len({job.id for job in jobs}) == 1300
        for n in (1, 2, 499, 500, 501, 1299):
            assert set(after_of(client, jobs[n].id)) == {f"{jobs[0].id}:ok", f"{jobs[n - 1].id}:ok"}
        assert client.inspect.counts().waiting == 1299

    def test_a_later_one_is_unknown(self, client: Client):
        items = [{"command": ["true"], "after": "b"}, {"command": ["true"], "ref": "b"}]
        with pytest.raises(InvalidJob, match=r"^item 0: after: 'b' is no job id, and no job before it has that ref"):
            client.submit_many(items)

    def test_a_missing_job_refuses_all_of_many_calls(self, client: Client):
        items = [{"command": ["true"]} for _ in range(1200)] + [{"command": ["true"], "after": 9_999_999}]
        with pytest.raises(NoParent, match=r"^item 1200: after: job 9999999 has no record"):
            client.submit_many(items)
        assert list(client.jobs()) == []

    def test_a_ref_is_given_once(self, client: Client):
        with pytest.raises(InvalidJob, match="item 1: ref: 'a' is taken"):
            client.submit_many([{"command": ["true"], "ref": "a"}] * 2)


class TestWorkflow:
    def test_all_in_one_step(self, client: Client):
        with client.workflow("night") as w:
            last = w.submit(["true"], after="first", name="late")
            first = w.shell("true", ref="first")
            every = w.after_all(["true"])
            with pytest.raises(NotEnded, match="first is no job yet"):
                _ = first.job
            assert list(client.jobs()) == []
        assert w.id == first.id == "1", "no job comes before one that it waits for"
        assert after_of(client, last.id) == ("1:ok",)
        assert set(after_of(client, every.id)) == {f"{first.id}:any", f"{last.id}:any"}
        assert [job.view.spec.workflow for job in w.jobs] == ["1"] * 3
        assert [job.view.spec.name for job in w.jobs] == ["late", "first", "job.3"]
        (view,) = client.inspect.workflows()
        assert (view.id, view.name, view.jobs, view.statuses) == ("1", "night", 3, {"pending": 1, "waiting": 2})
        assert not view.ended

    def test_none_after_an_error(self, client: Client):
        def breaks() -> None:
            with client.workflow() as w:
                w.submit(["true"])
                raise ZeroDivisionError

        with pytest.raises(ZeroDivisionError):
            breaks()
        assert list(client.jobs()) == []

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"ref": "a", "after": "b"}, "^a: after: these jobs wait for each other: a -> b -> a|^b: after: these"),
            ({"ref": "a", "after": "nobody"}, "^a: after: no job of the workflow has the ref 'nobody'"),
            ({"ref": "b"}, "^b: ref: 'b' is taken"),
            ({"ref": "a", "timeout": "soon"}, "^a: timeout: "),
            ({"ref": "a", "key": "k"}, "^a: ref: and key exclude each other"),
            ({"ref": "12"}, "^12: ref: '12' is no name for a job"),
        ],
        ids=str,
    )
    def test_what_is_refused(self, client: Client, options: dict, message: str):
        w = client.workflow()
        w.submit(["true"], ref="b", after="a" if options.get("after") == "b" else ())
        w.submit(["true"], **options)
        with pytest.raises(InvalidJob, match=message):
            w.commit()
        assert list(client.jobs()) == []

    def test_an_empty_one_is_nothing(self, client: Client):
        with client.workflow():
            pass
        assert list(client.inspect.workflows()) == []

    def test_nothing_is_added_afterwards(self, client: Client):
        with client.workflow() as w:
            w.submit(["true"])
        with pytest.raises(UsageError, match="workflow 1 is submitted"):
            w.submit(["true"])

    def test_too_many(self, client: Client):
        w = client.workflow()
        for _ in range(10_001):
            w.submit(["true"])
        with pytest.raises(InvalidJob, match="are 10001 jobs; a workflow has 10000 at most"):
            w.commit()

    def test_it_depends_on_jobs_outside(self, client: Client):
        outside = client.submit(["true"])
        with client.workflow() as w:
            inside = w.submit(["true"], after=[outside])
        assert after_of(client, inside.id) == (f"{outside.id}:ok",)
        with pytest.raises(NoParent), client.workflow() as w:
            w.submit(["true"], after="999")

    def test_ids_that_were_reserved_and_not_used(self, client: Client):
        client.session.reach()
        client.session.moves.reserve(5)
        with client.workflow() as w:
            w.submit(["true"])
        assert (w.id, client.submit(["true"]).id) == ("6", "7")

    def test_only_the_newest_are_listed(self, client: Client):
        for _ in range(3):
            with client.workflow() as w:
                w.submit(["true"])
        assert [view.id for view in client.inspect.workflows(limit=2)] == ["3", "2"]
        assert client.inspect.workflow("1").jobs == 1
        assert client.inspect.workflow("77") is None


def test_it_runs_in_order(fleet: Cluster):
    with fleet.client() as client:
        with client.workflow("real") as w:
            good = w.submit(["true"])
            bad = w.submit(["false"], after=good)
            skipped = w.submit(["true"], after=bad)
            handler = w.submit(["true"], after=(bad, "fail"))
            end = w.after_all(["true"])
        w.wait(30)
        outcomes = [node.job.outcome for node in (good, bad, skipped, handler, end)]
        assert outcomes == ["succeeded", "failed", "skipped", "succeeded", "succeeded"]
        assert (skipped.job.cause, skipped.job.error) == (
            "dependency",
            f"job {bad.id} failed; this job waited for its success",
        )
        views = [node.job.view for node in (good, bad, handler, end)]
        for before, then in pairwise(views):
            assert before.result.ended <= then.result.started
        assert client.inspect.workflow(w.id).ended
        assert client.retried(skipped.id) == State.WAITING.word
        assert client.wait([skipped.id], 10)[0].outcome == "skipped"
