import threading

import pytest

from hyperlane.errors import LoadFailed
from hyperlane.stage.later import Later


def test_it_is_made_at_the_first_call_and_once():
    made = []
    later = Later(lambda: made.append(1) or len(made), soon_s=60)
    assert made == []
    assert [later.get(), later.get()] == [1, 1]
    later.close()


def test_it_is_made_without_a_call_soon():
    done = threading.Event()
    later = Later(done.set, soon_s=0.0)
    assert done.wait(30)
    later.close()


def test_what_cannot_be_made_is_none_and_not_tried_again(caplog):
    tries = []

    def refuse():
        tries.append(1)
        raise LoadFailed("its files are gone")

    later = Later(refuse, soon_s=60)
    assert [later.get(), later.get()] == [None, None]
    assert tries == [1]
    assert "its files are gone" in caplog.text
    later.close()


@pytest.mark.parametrize("first", [True, False])
def test_nothing_is_left_or_made_after_it_is_closed(first):
    made = []
    later = Later(lambda: made.append(1) or "session", soon_s=60)
    if first:
        later.get()
    later.close()
    later.close()
    assert later.get() is None
    assert len(made) == first
