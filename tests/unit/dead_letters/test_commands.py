"""The commands of dead letters refuse a wrong choice before they connect to anything."""

import pytest
from click.testing import CliRunner

from orderstream.cli import main


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("redrive", "choose letters"),
        ("discard --note x --yes", "choose letters"),
        ("redrive --all --reason FAILED", "choose letters"),
        ("redrive --all --letter order-service/0@1", "choose letters"),
        ("redrive --letter order-service/0@x", "is not SERVICE/PARTITION@OFFSET"),
        ("redrive --all --yes", "--note is needed"),
        ("discard --reason FAILED --count 3", "--note is needed"),
        ("redrive --all --rate 0", "--rate"),
        ("redrive --all --count 0", "--count"),
        ("redrive --service other", "--service"),
        ("list --from yesterday", "--from"),
    ],
)
def test_a_wrong_choice_is_a_usage_error(words: str, said: str) -> None:
    done = CliRunner().invoke(main, ["dlq", *words.split()])
    assert done.exit_code == 2
    assert said in done.output
