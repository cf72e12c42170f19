"""The fork server has imported what the commands import: else each of hundreds of forks would do so again."""

from forked import exit_with_missing, fork


def test_a_fork_has_imported_what_the_commands_import() -> None:
    process = fork(exit_with_missing)
    process.start()
    process.join(60)
    assert process.exitcode == 0
