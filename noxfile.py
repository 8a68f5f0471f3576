"""The tests with each supported Python that is installed: make matrix."""

import nox

# Those that are not installed are named, and skipped.
nox.options.error_on_missing_interpreters = False
nox.options.reuse_existing_virtualenvs = True
nox.options.download_python = "never"


@nox.session(python=["3.11", "3.12", "3.13"], venv_backend="uv")
def tests(session: nox.Session) -> None:
    """Run pytest; options after -- are its."""
    session.install("-r", "requirements.lock")
    session.install("--no-deps", "-e", ".", "-e", "./client")
    session.run("python", "-m", "pytest", *session.posargs)
