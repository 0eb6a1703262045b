"""Claims about the course of a run, against plain loops over its updates."""

from __future__ import annotations

from itertools import islice, pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tiny_task import NumberCollator, Numbers

from bert_pretrain.data.course import Course
from bert_pretrain.data.loader import training_windows
from bert_pretrain.data.stream import Place, TrainingStream, WholeEpochs
from bert_pretrain.errors import InputError

STEPS = st.integers(1, 300)
SHARES = st.lists(st.integers(1, 20), min_size=1, max_size=5).map(
    lambda parts: tuple(part / sum(parts) for part in parts)
)


@given(STEPS, st.integers(1, 40), st.integers(0, 400), st.floats(0.01, 1))
def test_rows_are_the_largest_multiple_below_a_line_until_they_are_all(
    max_steps: int, start: int, more: int, share: float
) -> None:
    course = Course(start + more, max_steps, ramp_start=start, ramp_share=share)
    num_rising = round(share * max_steps)
    found = [course.rows(step) for step in range(max_steps + 3)]
    for step, rows in enumerate(found):
        expected = start + more
        if step < num_rising:
            # One multiple more as long as it lies below start + more * step / num_rising.
            expected = start
            while expected * num_rising <= more * step:
                expected += start
        assert rows == expected
        assert course.is_rising(step) == (rows < start + more)
    assert all(before <= after for before, after in pairwise(found))
    assert found[num_rising:] == [start + more] * (max_steps + 3 - num_rising)


@given(STEPS, SHARES)
def test_phases_have_their_shares_of_the_updates_and_the_last_one_the_end(
    max_steps: int, shares: tuple[float, ...]
) -> None:
    course = Course(8, max_steps, phase_shares=shares)
    phases = [course.phase(step) for step in range(max_steps + 1)]
    assert phases == sorted(phases)
    assert phases[-1] == len(shares) - 1
    for number, share in enumerate(shares):
        # Each end is rounded.
        assert abs(phases[:-1].count(number) - share * max_steps) <= 1 + 1e-9
    if all(phases[:-1].count(number) for number in range(len(shares))):
        course.check_phases([""] * len(shares), "max_seq_length")
    else:
        with pytest.raises(InputError, match=r"`max_seq_length` gives .*`max_steps`"):
            course.check_phases([""] * len(shares), "max_seq_length")


@given(st.integers(0, 300))
def test_progress_is_a_share_and_nothing_changes_without_a_length(step: int) -> None:
    assert Course(8, 300).progress(step) == step / 300
    assert Course(8, 100).progress(step + 100) == 1.0
    endless = Course(8)
    assert (endless.progress(step), endless.rows(step), endless.phase(step)) == (0.0, 8, 0)


@given(
    st.integers(1, 12), st.integers(0, 60), st.integers(1, 4), st.integers(1, 6), st.integers(0, 19)
)
def test_no_forward_pass_is_empty_or_larger_than_that_of_a_full_update(
    start: int, more: int, num_processes: int, num_micro_batches: int, step: int
) -> None:
    full = start + more
    if full < num_processes * num_micro_batches:
        return  # refused by the layout
    course = Course(full, 20, ramp_start=start, ramp_share=0.8)
    layout = {"num_processes": num_processes, "num_micro_batches": num_micro_batches}
    levels = {course.rows(step) for step in range(20)} | {start}
    at_once = -(-full // (num_processes * num_micro_batches))

    def sizes(rows: int, pieces: int) -> list[int]:
        shares = np.diff([rows * i // num_processes for i in range(num_processes + 1)]).tolist()
        return [s * (i + 1) // pieces - s * i // pieces for s in shares for i in range(pieces)]

    rows = course.rows(step)
    pieces = course.micro_batches(step, **layout)
    assert max(sizes(rows, pieces)) <= at_once
    try:
        course.check_rows(**layout)
    except InputError:
        # It is right to refuse: some level that is a multiple leaves a forward pass without a row.
        multiples = range(start, full, start)
        assert any(0 in sizes(r, -(-r // (num_processes * at_once))) for r in {*levels, *multiples})
    else:
        assert min(sizes(rows, pieces)) >= 1


def numbers_of(
    course: Course, place: Place, first_step: int, count: int, *, workers: int = 0, **layout: int
) -> tuple[list[list[int]], list[Place]]:
    """Return the rows of windows, as numbers that say phase, epoch and row."""

    def phase(number: int) -> WholeEpochs:
        def plan(epoch: int) -> Numbers:
            size = 7 + 3 * epoch + number
            return (np.arange(size) + 1000 * epoch + 100_000 * number).view(Numbers)

        return WholeEpochs(plan)

    first, *later = map(phase, range(len(course.phase_shares)))
    found: list[list[int]] = [[] for _ in range(count)]
    places: list[Place] = []
    for process in range(layout.get("num_processes", 1)):
        windows = training_windows(
            TrainingStream(first, NumberCollator(), identity={}, later_phases=later),
            place,
            course=course,
            first_step=first_step,
            num_processes=layout.get("num_processes", 1),
            process_index=process,
            num_micro_batches=layout.get("num_micro_batches", 1),
            num_workers=workers,
        )
        places = []
        for rows, window in zip(found, islice(windows, count), strict=True):
            for batch in window.micro_batches:
                rows += batch["x"].flatten().int().tolist()
            places.append(window.next_place)
    return found, places


COURSE = Course(12, 20, ramp_start=3, ramp_share=0.6, phase_shares=(0.3, 0.4, 0.3))


def test_windows_are_those_of_a_plain_loop() -> None:
    found, _ = numbers_of(COURSE, Place(), 0, 20)
    expected, epoch, row, phase = [], 0, 0, 0
    for step in range(20):
        wanted: list[int] = []
        now = 0 if step < 6 else 1 if step < 14 else 2
        if now != phase:  # data begin anew, with an epoch that no other phase has
            phase, epoch, row = now, epoch + 1, 0
        rows = 12 if step >= 12 else 3 * ((3 * 12 + 9 * step) // (3 * 12))
        while len(wanted) < rows:
            if row == 7 + 3 * epoch + phase:
                epoch, row = epoch + 1, 0
            wanted.append(100_000 * phase + 1000 * epoch + row)
            row += 1
        expected.append(wanted)
    assert found == expected


@pytest.mark.parametrize(
    "layout",
    [
        {"num_processes": 2},
        {"num_micro_batches": 4},
        {"num_processes": 3, "num_micro_batches": 2},
        {"workers": 2},
    ],
)
def test_layouts_divide_the_same_windows(layout: dict[str, int]) -> None:
    assert numbers_of(COURSE, Place(), 0, 20, **layout)[0] == numbers_of(COURSE, Place(), 0, 20)[0]


def test_a_run_goes_on_from_any_update_also_from_the_edge_of_a_phase() -> None:
    whole, places = numbers_of(COURSE, Place(), 0, 20)
    for step in range(1, 20):
        kept = Place.of(list(places[step - 1]))  # as a checkpoint keeps it
        assert kept == places[step - 1]
        assert numbers_of(COURSE, kept, step, 20 - step)[0] == whole[step:]


def test_epochs_count_what_was_read_and_old_places_have_no_phase() -> None:
    blocks = WholeEpochs(lambda _: np.arange(10).view(Numbers))
    stream: TrainingStream = TrainingStream(
        blocks, NumberCollator(), identity={}, later_phases=[blocks, blocks]
    )
    _, place = stream.take(Place(), 13)
    assert stream.num_epochs(place) == 1.3
    place = stream.enter(place, 1)
    assert (place.epoch, place.position, place.phase) == (2, 0, 1)
    assert stream.num_epochs(place) == pytest.approx(1.3)
    _, place = stream.take(place, 5)
    place = stream.enter(stream.take(stream.enter(place, 2), 4)[1], 2)
    assert stream.num_epochs(place) == pytest.approx(2.2)
    assert Place.of([3, 1, 5, 1, 0.5]) == Place(3, 1, 5, phase=1, unread=0.5)
    with pytest.raises(InputError, match="another version"):
        Place.of([1, 2])
