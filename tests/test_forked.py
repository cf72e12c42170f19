"""The fork server has imported what the commands import: else each of hundreds of forks would do so again."""

from forked import exit_with_missing, fork
from warm import MODULES


def test_a_fork_has_imported_what_the_commands_import() -> None:
    process = fork(exit_with_missing, MODULES)
    process.start()
    process.join(60)
    assert process.exitcode == 0
