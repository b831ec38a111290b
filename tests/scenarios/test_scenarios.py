"""Every scenario prints what its file says."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.scenarios.script import files, replay


@pytest.mark.parametrize("path", files(), ids=lambda path: path.stem)
def test_scenario(path: Path) -> None:
    text = path.read_text()
    assert replay(text) == text, "changed on purpose? python -m tests.scenarios --rewrite, and read the diff"


def test_there_are_scenarios_and_each_prints_something() -> None:
    assert len(files()) > 10
    for path in files():
        assert path.read_text().count("\n----\n") > 1, path.name


def test_an_altered_output_and_an_unknown_command_are_noticed() -> None:
    text = "A story.\n\ncluster 3/2/2\n----\nintersecting: False\n"
    assert replay(text) == text.replace("False", "True")
    with pytest.raises(ValueError, match="no command 'fly'"):
        replay("A story.\n\nfly a\n----\n")
