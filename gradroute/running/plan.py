"""What one command makes: its jobs, their runs, and the report at the end."""

import itertools
import json
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from gradroute.config.schema import Config
from gradroute.errors import MachineError, UserError
from gradroute.running.exit_status import one_line, report_failure
from gradroute.running.jobs import Index, Job


@dataclass
class Plan:
    """The jobs of one command; `folder` is that of a sweep, or None; `resumed` is the run that its only job resumes."""

    folder: Path | None = None
    jobs: list[Job] = field(default_factory=list)
    resumed: Path | None = None
    elsewhere: bool = False  # whether other processes make its jobs
    settle: Callable[[Config], Config] = lambda config: config  # called before a run: finds what is to be found

    def execute(self) -> None:
        """Make the missing runs, all in one call, so that runs of several jobs can be trained together."""
        todo = [job for job in self.jobs if job.configs and not job.outcomes]
        if not todo:
            return
        from gradroute.running.runner import execute  # imported late, so that --help and mistakes are quick

        self._settle(todo)
        todo = [job for job in todo if not job.outcomes]
        outcomes = iter(execute([c for job in todo for c in job.configs], self.folder is not None, self.resumed))
        for job in todo:
            job.outcomes = list(itertools.islice(outcomes, len(job.configs)))
        if self.folder is None:
            return
        for job in todo:  # retry alone what ran out of memory beside others
            for place, outcome in enumerate(job.outcomes):
                if isinstance(outcome, MachineError):
                    report_failure(outcome)
                    print(f"retry: {' '.join(job.overrides)}", file=sys.stderr)
                    job.outcomes[place] = execute([replace(job.configs[place], stack=1)], True)[0]

    def _settle(self, todo: Sequence[Job]) -> None:
        """Settle every configuration; a job for which that fails has the error as its outcome."""
        for job in todo:
            try:
                job.configs = [self.settle(config) for config in job.configs]
            except UserError as error:
                job.outcomes = [error]

    def compare(self) -> None:
        """Compare several runs on the terminal and in the sweep's folder."""
        runs = list(dict.fromkeys(o for job in self.jobs for o in job.outcomes if isinstance(o, Path)))
        if self.folder is None and len(runs) < 2:
            return
        from gradroute.comparison.compare import compare
        from gradroute.comparison.runs import SWEEP_FILE
        from gradroute.records.atomic import write_atomically

        paths = list(map(str, runs))
        if self.folder is not None:
            self.folder.mkdir(parents=True, exist_ok=True)
            index = Index(self.folder)
            if not self.elsewhere:
                for job in self.jobs:
                    index.note(job, "failed" if job.failures() else "finished")
            index.write_table()
            failed = [{"job": ", ".join(job.overrides), "error": one_line(e)} for job, e in self.failures()]
            listed = {"runs": [os.path.relpath(run, self.folder) for run in runs], "failed": failed}
            write_atomically(self.folder / SWEEP_FILE, json.dumps(listed, indent=2) + "\n")
            paths = [str(self.folder)]
        try:
            compare(paths, out=self.folder, failed=False)
        except UserError as error:  # such as runs without evaluation
            print(f"no comparison: {error}", file=sys.stderr)
        if self.folder is not None:
            print(self.folder)

    def failures(self) -> list[tuple[Job, Exception]]:
        """Return every error with the job it belongs to."""
        return [(job, failure) for job in self.jobs for failure in job.failures()]

    def finish(self) -> None:
        """Make the runs, compare them, and report failures. Raises: the last failure."""
        self.execute()
        self.compare()
        failures = self.failures()
        for what, error in failures:
            if self.folder is not None:
                print(f"failed: {', '.join(what.overrides) or 'the only job'}", file=sys.stderr)
            if error is not failures[-1][1]:
                report_failure(error)
        if failures:
            raise failures[-1][1]
