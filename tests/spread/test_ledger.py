"""Which unit is next, and what deaths mean; worked by hand."""

from std_cli.spread.ledger import Ledger
from tests.spread.works import Small


def units(**frames):
    return [Small(name, frames=number) for name, number in frames.items()]


def test_longest_first():
    ledger = Ledger(units(a=1, b=9, c=5))
    assert [ledger.take(1, others=False).id for _ in "abc"] == ["b", "c", "a"]
    assert ledger.take(1, others=False) is None


def test_a_unit_does_not_come_back_to_the_worker_that_died_with_it_while_there_are_others():
    ledger = Ledger(units(a=9, b=5))
    ledger.die(1, ledger.take(1, others=True), "killed")
    assert ledger.take(1, others=True).id == "b"
    assert ledger.take(1, others=True) is None
    assert ledger.take(1, others=False).id == "a"


def test_a_unit_is_set_aside_after_three_deaths_which_are_not_held_against_the_workers():
    ledger = Ledger(units(a=9, b=8, c=1))
    for _ in range(2):
        for _ in range(3):
            ledger.die(1, ledger.take(1, others=False), "killed")
    assert list(ledger.failed) == ["a", "b"] and (ledger.lost, ledger.retried) == (6, 4)
    assert not ledger.to_be_dropped(1)
    assert ledger.take(1, others=False).id == "c"


def test_a_worker_is_dropped_after_four_deaths_in_a_row():
    ledger = Ledger(units(a=1, b=1, c=1, d=1, e=1, f=1, g=1))
    for _ in range(3):
        ledger.die(1, ledger.take(1, others=True), "killed")
    ledger.finish(1, ledger.take(1, others=True))
    assert not ledger.failed
    for _ in range(3):
        ledger.die(1, ledger.take(1, others=True), "killed")
        assert not ledger.to_be_dropped(1)
    ledger.die(1, None, "killed as it started")
    assert ledger.to_be_dropped(1) and not ledger.to_be_dropped(2)


def test_the_rest_of_an_input_is_left_out_with_what_failed():
    ledger = Ledger([Small("a", "one", 9), Small("b", "two"), Small("c", "one")])
    left_out = ledger.fail(ledger.take(1, others=False), "no space", others_too=True)
    assert [unit.id for unit in left_out] == ["c"] and list(ledger.failed) == ["a", "c"]
    assert [unit.id for unit in ledger.waiting] == ["b"]
