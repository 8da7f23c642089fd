"""Questions to the masters and their answers: who is asked, what comes back, what goes away by itself."""

from __future__ import annotations

import pytest

from jobschedd.errors import ProtocolError
from jobschedd.store.attempts import AnsweringMachine, Archives, Attempt, Query
from jobschedd.store.connect import blocking

ROW = ("data", "7", 1, 1, "", "true", "n1", "1", "succeeded", "exit", 0, None, 1.0, 2.0, 3.0, 4.0, "", "", "")


@pytest.fixture
def machine(driver):
    made = []

    def make(instance: str, node: str = "m", predecessor: str = "") -> AnsweringMachine:
        client = blocking(driver.config, instance, 0.5)
        made.append(client)
        return AnsweringMachine(client, driver.keys, instance, node, 0.5, predecessor)

    yield make
    for client in made:
        client.close()


@pytest.fixture
def archives(driver):
    archives = Archives(driver.client, blocking(driver.config, "asker", 1.0), driver.keys)
    yield archives
    archives.close()


def test_who_is_there_is_asked_and_answers(driver, machine, archives):
    first, second, gone = machine("a"), machine("b"), machine("c")
    for each in (first, second, gone):
        each.attend(60)
    gone.attend(0)
    question, asked = archives.ask(Query(node="n1", after=(1.25, "data", "7", 1, 1)))
    assert asked == {"a m", "b m"}
    for each in (first, second):
        taken = each.take(0.1)
        assert taken is not None and taken.query == Query(node="n1", after=(1.25, "data", "7", 1, 1))
        each.answer(taken, [ROW], True)
    answers = archives.hear(question, 2, 5)
    assert sorted(answer.master for answer in answers) == ["a m", "b m"]
    assert answers[0].rows == [Attempt(*ROW)] and answers[0].more
    assert gone.take(0.01) is None


def test_a_master_that_says_nothing_any_more_is_not_asked(driver, machine, archives):
    machine("a").attend(0.02)
    driver.wait_ms(driver.now_ms() + 30)
    assert archives.ask(Query())[1] == set()
    assert driver.client.zcard(driver.keys.masters) == 0


def test_a_successor_takes_the_place_of_a_dead_instance(machine, archives):
    machine("dead", "m").attend(60)
    machine("new", "m", predecessor="dead").attend(60)
    assert archives.ask(Query())[1] == {"new m"}


def test_nobody_answers_in_time(machine, archives):
    machine("a").attend(60)
    question, _ = archives.ask(Query())
    assert archives.hear(question, 1, 0.05) == []


def test_questions_and_answers_go_away(driver, machine, archives):
    one = machine("a")
    one.attend(60)
    for _ in range(150):
        question, _ = archives.ask(Query())
    assert driver.client.llen(driver.keys.questions("a")) == 100
    assert 0 < driver.client.pttl(driver.keys.questions("a")) <= 60_000
    taken = one.take(0.1)
    assert taken is not None
    one.answer(taken, [], False, "the disk is gone")
    assert 0 < driver.client.pttl(driver.keys.answers(taken.id)) <= 60_000
    (answer,) = archives.hear(taken.id, 1, 1)
    assert answer.error == "the disk is gone" and question != taken.id


@pytest.mark.parametrize("text", [b"", b"[]", b'{"id": 3}', b"\xff", b'{"id": "x", "query": {"limit": "many"}}'])
def test_what_is_no_question_is_said_so(driver, machine, text):
    driver.client.rpush(driver.keys.questions("a"), text)
    with pytest.raises(ProtocolError, match="unreadable question"):
        machine("a").take(0.1)


def test_a_newer_asker_and_a_newer_master_are_understood(driver, machine, archives):
    one = machine("a")
    driver.client.rpush(driver.keys.questions("a"), b'{"id": "x", "query": {"node": "n1", "mood": "fine"}, "new": 1}')
    taken = one.take(0.1)
    assert taken is not None and taken.query.node == "n1"
    one.answer(taken, [(*ROW, "a new field")], False)
    (answer,) = archives.hear("x", 1, 1)
    assert answer.rows == [Attempt(*ROW)]
