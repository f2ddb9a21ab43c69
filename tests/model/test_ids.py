"""Identifiers sort by age and are unique; other text is no id."""

from __future__ import annotations

import threading
import time

import pytest

from belljar.model.ids import is_job_id, new_id

#: Written out: the names of the tests must be the same in every worker of a parallel run.
JOB = "job_01M8C7ARVTEWXC40Z685RZH43P"
KEY = "key_01M8C7ARVT1JDAZ9FD9FAM7S3A"


def test_ids_sort_by_the_time_they_were_made() -> None:
    made = [new_id("job") for _ in range(5000)]
    assert made == sorted(set(made))
    time.sleep(0.002)
    assert new_id("job") > made[-1]


def test_ids_of_several_threads_are_all_different_and_sorted_in_each() -> None:
    made: list[list[str]] = [[] for _ in range(4)]

    def make(mine: list[str]) -> None:
        mine.extend(new_id("job") for _ in range(2000))

    threads = [threading.Thread(target=make, args=(mine,)) for mine in made]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({each for mine in made for each in mine}) == 8000
    assert all(mine == sorted(mine) for mine in made)


def test_an_id_is_taken_for_one() -> None:
    assert is_job_id(new_id("job")) and is_job_id(JOB)


@pytest.mark.parametrize(
    "text",
    ["", "job_", "job_1", KEY, JOB.lower(), JOB + "\n", "job_" + "U" * 26, "../etc"],
)
def test_other_text_is_no_job_id(text: str) -> None:
    assert not is_job_id(text)
