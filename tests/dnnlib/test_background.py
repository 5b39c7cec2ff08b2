# SPDX-License-Identifier: Apache-2.0
"""Work in other threads: order, overlap, bounds, and errors that reach the caller."""

import threading

import pytest

from dnnlib.background import Background, ahead

WAIT = 20  # seconds until a test that hangs fails


@pytest.mark.parametrize("overlap", [False, True])
def test_items_come_in_order_and_all(overlap):
    with ahead((n * n for n in range(20)), overlap) as squares:
        assert list(squares) == [n * n for n in range(20)]


def test_an_item_is_made_while_the_one_before_is_used():
    made = [threading.Event(), threading.Event()]

    def items():
        for event in made:
            event.set()
            yield event

    with ahead(items()) as events:
        next(events)
        assert made[1].wait(WAIT)


def test_all_items_are_made_in_one_thread_that_ends_with_the_block():
    before = threading.active_count()
    with ahead(threading.get_ident() for _ in range(100)) as makers:
        first, second = next(makers), next(makers)
    assert first == second != threading.get_ident()
    assert threading.active_count() == before


@pytest.mark.parametrize("overlap", [False, True])
def test_an_error_comes_in_place_of_the_item(overlap):
    with ahead((1 / n for n in (1, 2, 0)), overlap) as fractions:
        assert [next(fractions), next(fractions)] == [1, 0.5]
        with pytest.raises(ZeroDivisionError):
            next(fractions)


def test_leaving_the_block_waits_for_all_calls():
    done = []
    with Background(threads=3, most=4) as background:
        for n in range(50):
            background.submit(done.append, n)
    assert sorted(done) == list(range(50))


def test_calls_run_at_once_and_no_more_wait_than_allowed():
    meeting, running = threading.Barrier(2), threading.Semaphore(0)
    with Background(threads=2, most=3) as background:
        background.submit(meeting.wait, WAIT)
        background.submit(meeting.wait, WAIT)  # either would break the barrier alone
    with Background(threads=1, most=2) as background:
        for _ in range(2):
            background.submit(running.acquire)
        third = threading.Thread(target=background.submit, args=(running.acquire,))
        third.start()
        third.join(0.05)
        assert third.is_alive()
        running.release(3)
        third.join(WAIT)
        assert not third.is_alive()


def test_an_error_of_a_call_is_raised_by_a_later_one_or_at_the_end():
    with pytest.raises(ZeroDivisionError), Background(threads=1, most=1) as background:
        background.submit(divmod, 1, 0)
    with pytest.raises(ZeroDivisionError), Background(threads=1, most=1) as background:
        background.submit(divmod, 1, 0)
        background.submit(divmod, 1, 1)
        pytest.fail("the error did not come")


def test_an_error_in_the_block_is_not_replaced():
    with pytest.raises(KeyError), Background(threads=1, most=1) as background:
        background.submit(divmod, 1, 0)
        raise KeyError
