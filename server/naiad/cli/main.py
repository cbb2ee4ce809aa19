"""The command group: argv -> Settings -> exit code. No decisions about models or sockets."""

import sys
from collections.abc import Callable, Sequence
from dataclasses import MISSING, Field, fields
from enum import StrEnum
from pathlib import Path
from typing import Any, get_type_hints

import click

import naiad
from naiad.settings import Settings, cache_folder
from naiad_backends.errors import NaiadError


class _Commands(click.Group):
    """Turns Naiad's own errors into one line on stderr and exit code 1."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except NaiadError as error:
            raise click.ClickException(str(error)) from error


@click.group(cls=_Commands)
@click.version_option(naiad.__version__, prog_name="naiad")
def main() -> None:
    """Serve every model from one repository."""


def _settings_options(command: Callable[..., None]) -> Callable[..., None]:
    """An option for each field of Settings, with Triton's spelling: --http-port 8000 or =8000."""
    types = get_type_hints(Settings)
    for item in reversed(fields(Settings)):
        command = _option(item, types[item.name])(command)
    return command


def _option(item: Field[Any], kind: Any) -> Callable[[Callable[..., None]], Callable[..., None]]:
    flag = "--" + item.name.replace("_", "-")
    default = None if item.default is MISSING else item.default
    common: dict[str, Any] = {"help": item.metadata["help"], "default": default}
    if item.name == "disable_auto_complete_config":
        return click.option(flag, is_flag=True, **common)
    if kind == tuple[str, ...]:
        names = [flag, "--model-store"] if item.name == "model_repository" else [flag]
        return click.option(*names, item.name, multiple=True, **common)
    if isinstance(kind, type) and issubclass(kind, StrEnum):
        common |= {"type": click.Choice([choice.value for choice in kind]), "default": str(default)}
        return click.option(
            flag, callback=lambda _c, _p, text: kind(text), show_default=True, **common
        )
    return click.option(flag, type=kind, show_default=default != "", **common)


@main.command(context_settings={"auto_envvar_prefix": "NAIAD"})
@_settings_options
def serve(**options: Any) -> None:
    """Start a server on one or more model repositories."""
    from naiad import app
    from naiad.cli.banner import banner

    settings = Settings(**options)
    if not settings.model_repository:
        raise click.UsageError("--model-repository is missing: name the folder of your models")
    app.tune_memory()
    app.run(settings, lambda server, addresses: click.echo(banner(server, addresses)))


@main.command()
@click.argument("paths", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--model-config-name", default="", help="As for serve.")
@click.option("--backend-directory", default=Settings.backend_directory, help="As for serve.")
def check(paths: Sequence[Path], model_config_name: str, backend_directory: str) -> None:
    """Explain every mistake in repositories or single models, and complete their configurations.

    Exit code 1 if there is any mistake.
    """
    from naiad.core import ensembles
    from naiad.repository import check as checker
    from naiad_backends.registry import BackendRegistry

    settings = Settings(backend_directory=backend_directory)
    backends = BackendRegistry(settings.backend_options(), settings.backend_folder())
    reports = checker.check(
        paths, backends, config_name=model_config_name, graphs=ensembles.mistakes
    )
    click.echo(checker.render(reports), nl=False)
    sys.exit(any(report.mistakes for report in reports))


@main.command()
@click.argument("model")
@click.option(
    "--model-repository",
    type=click.Path(path_type=Path),
    multiple=True,
    default=("models",),
    show_default=True,
    help="As for serve.",
)
@click.option("--model-config-name", default="", help="As for serve.")
@click.option("--url", default="", help="HTTP address of a server, for the time that steps take.")
def graph(model: str, model_repository: Sequence[Path], model_config_name: str, url: str) -> None:
    """Print the steps of the ensemble MODEL as a diagram in Mermaid's language."""
    from naiad.cli.graph import mermaid

    click.echo(mermaid(model, model_repository, model_config_name, url))


@main.command()
@click.argument("models", nargs=-1)
@click.option(
    "--source",
    type=click.Path(path_type=Path),
    default="model_repository",
    show_default=True,
    help="Folder of models with recipes for their weights.",
)
@click.option(
    "--into",
    type=click.Path(path_type=Path),
    help="Repository to put together; default: examples in the cache folder.",
)
@click.option(
    "--cache",
    type=click.Path(path_type=Path),
    help="Folder for downloads; default: naiad in the user's cache folder.",
)
def fetch(models: Sequence[str], source: Path, into: Path | None, cache: Path | None) -> None:
    """Fetch the weights of example MODELS (default: all) and put a repository together."""
    from naiad.repository.fetch import assemble

    cache = cache or cache_folder()
    target = into or cache / "examples"
    assemble(source, target, cache, models, echo=lambda text: click.echo(text, err=True))
    click.echo(target)


@main.group()
def init() -> None:
    """Begin something new."""


@init.command("model")
@click.argument("name")
@click.option(
    "--model-repository",
    type=click.Path(path_type=Path),
    default="models",
    show_default=True,
    help="Folder of models to put it into; made if it is not there.",
)
@click.option("--decoupled", is_flag=True, help="Many responses to a request, one after the other.")
@click.option("--force", is_flag=True, help="Write over files that are there.")
def init_model(name: str, model_repository: Path, decoupled: bool, force: bool) -> None:
    """Write the beginnings of a model in Python, with comments: NAME/config.pbtxt and
    NAME/1/model.py."""
    from naiad.cli.starter import next_steps, write_model

    for path in write_model(name, model_repository, decoupled, force):
        click.echo(f"wrote {path}")
    click.echo(f"\n{next_steps(name, model_repository, decoupled)}")
