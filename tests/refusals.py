"""What a library says of wrong use: ValueError with one sentence."""

import pytest


def refused(words, call, *arguments, **options):
    """``call`` raises ValueError with one sentence that has these words, a pattern."""
    with pytest.raises(ValueError, match=words) as caught:
        call(*arguments, **options)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 500, "one sentence"
