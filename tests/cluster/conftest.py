"""What the tests on clusters share: the grid by the basic launcher."""

from pathlib import Path

import pytest
from grids import CELLS, finish, standings, start


@pytest.fixture(scope="session")
def basic(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Outputs of the grid in one process."""
    outputs = tmp_path_factory.mktemp("grids") / "basic"
    assert finish(start(outputs, environment={}), outputs) == 0, (outputs / "err").read_text()[-3000:]
    assert [standing.state for _, standing in standings(outputs)] == ["done"] * CELLS
    return outputs
