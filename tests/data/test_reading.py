"""What a card says of its rows: read again, or refused."""

from pathlib import Path

import pytest

from llmtool.core.errors import DataError
from llmtool.data.reading import restore_encoder


@pytest.mark.parametrize("state", [{}, {"as": "sounds"}])
def test_an_encoder_of_another_version_is_refused(state):
    with pytest.raises(DataError, match=r"runs/a: its encoder .* is not known"):
        restore_encoder({"encoder": state}, Path("runs/a"))
