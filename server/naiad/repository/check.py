"""`naiad check`: everything that is wrong with a repository, with file and line, without a server.

Goes the way of a load, but does not stop at the first mistake. With backends at hand it also lets
them complete the configurations from the models' files, and load each model once.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from naiad.repository.config import TEXT_FILE, YAML_FILE, ModelConfig
from naiad.repository.layout import ModelFolder, Repositories, duplicate, subfolders
from naiad.repository.mistakes import ConfigError, Mistake, place
from naiad_backends.api import Backend, ModelSpec
from naiad_backends.errors import NaiadError
from naiad_backends.registry import BackendRegistry


@dataclass(frozen=True, slots=True)
class Finding:
    """A mistake or a warning and its place. `line` is 0 and `path` empty where there is none."""

    file: Path
    line: int
    path: str
    message: str
    hint: str = ""

    def __str__(self) -> str:
        path = f"{self.path}: " if self.path else ""
        hint = f"; {self.hint}" if self.hint else ""
        return f"{place(str(self.file), self.line)}: {path}{self.message}{hint}"


Versions = Sequence[tuple[ModelConfig, ModelSpec]]
"""A model's versions that would serve, ascending, with the completed configuration."""

Graphs = Callable[[ModelConfig, ModelSpec, Callable[[str], Versions]], Sequence[Mistake]]
"""What is wrong with an ensemble among the models that it finds by their names."""


@dataclass(slots=True)
class ModelReport:
    """What was found about one model.

    file: its configuration, or its folder if it has none.
    completed: the configuration as it would be served, as config.pbtxt; as far as it came.
    """

    name: str
    file: Path
    mistakes: list[Finding] = field(default_factory=list)
    warnings: list[Finding] = field(default_factory=list)
    completed: str = ""


def check(
    paths: Sequence[Path],
    backends: BackendRegistry | None,
    models: Sequence[str] = (),
    config_name: str = "",
    graphs: Graphs | None = None,
) -> list[ModelReport]:
    """One report for each model, sorted by name.

    paths: repositories, or folders of single models.  backends: None leaves out what only a
    backend can tell.  models: check only these.  graphs: holds ensembles against their steps, which
    may also lie beside the folder of a single model; None leaves that out.
    Raises INVALID_ARG for a path that is no folder, NOT_FOUND for a model that is nowhere.
    """
    single = [path for path in paths if _is_model(path)]
    repositories = Repositories([path for path in paths if path not in single])
    folders = {folder.name: folder for folder in map(ModelFolder.at, single)}
    duplicates = repositories.duplicates()
    folders |= repositories.scan()
    for name in models:
        if name not in folders and name not in duplicates:
            repositories.find(name)
    beside = Repositories([path.parent for path in single]).scan() if single else {}
    checks = _Checks({**beside, **folders}, backends, config_name)
    reports = [checks.of(folder.name).report for folder in folders.values()]
    if backends is not None and graphs is not None:
        for folder in folders.values():
            checks.graph(folder.name, graphs)
    reports += [_duplicate_report(name, places) for name, places in duplicates.items()]
    wanted = [report for report in reports if not models or report.name in models]
    return sorted(wanted, key=lambda report: report.name)


def render(reports: Sequence[ModelReport]) -> str:
    """The reports as text: one line a finding, the completed configurations, and a summary."""
    lines: list[str] = []
    for report in reports:
        lines += [str(finding) for finding in report.mistakes]
        lines += [f"warning: {finding}" for finding in report.warnings]
        if report.completed and not report.mistakes:
            lines += ["", f"# {report.name}: completed configuration", report.completed]
    counts = (
        (len(reports), "model"),
        (sum(len(report.mistakes) for report in reports), "mistake"),
        (sum(len(report.warnings) for report in reports), "warning"),
    )
    lines.append(", ".join(f"{n} {noun}{'' if n == 1 else 's'}" for n, noun in counts))
    return "\n".join(lines) + "\n"


def _is_model(path: Path) -> bool:
    """Whether a folder is a model rather than a repository of models.

    A repository may hold a model whose name is a number, so a version folder only tells if nothing
    beside or in it looks like a model.
    """
    if _has_config(path) or not path.is_dir():
        return _has_config(path)
    has_versions = bool(ModelFolder.at(path).versions)
    return has_versions and not any(_looks_like_model(path / name) for name in subfolders(path))


def _looks_like_model(path: Path) -> bool:
    return _has_config(path) or bool(ModelFolder.at(path).versions)


def _has_config(path: Path) -> bool:
    return (path / TEXT_FILE).is_file() or (path / YAML_FILE).is_file()


def _duplicate_report(name: str, places: Sequence[Path]) -> ModelReport:
    return ModelReport(name, places[0], [_finding(places[0], duplicate(name, places))])


@dataclass(slots=True)
class _Check:
    """What is known of a model. config: as far as it came; None if it cannot be read."""

    report: ModelReport
    folder: ModelFolder
    config: ModelConfig | None = None

    @property
    def versions(self) -> Versions:
        """Of a model without mistakes; none of another one."""
        if self.config is None or self.report.mistakes:
            return ()
        config = self.config
        numbers = config.versions(self.folder.versions)
        return [(config, config.spec(number, self.folder)) for number in numbers]


class _Checks:
    """The checks of all models, each done once and when it is asked for."""

    def __init__(
        self,
        folders: Mapping[str, ModelFolder],
        backends: BackendRegistry | None,
        config_name: str,
    ) -> None:
        self._folders = folders
        self._backends = backends
        self._config_name = config_name
        self._done: dict[str, _Check] = {}

    def of(self, name: str) -> _Check:
        """Of a model that is there, by itself."""
        if name not in self._done:
            found = _check_model(self._folders[name], self._backends, self._config_name)
            self._done[name] = found
        return self._done[name]

    def graph(self, name: str, graphs: Graphs) -> None:
        """Hold an ensemble against its steps, if both are fine by themselves."""
        check = self.of(name)
        if check.config is None or not check.config.is_ensemble or not check.versions:
            return
        config, spec = check.versions[-1]
        found = self._broken_steps(config) or graphs(config, spec, self._versions)
        check.report.mistakes += [
            _placed(check.report.file, mistake) for mistake in config.source.placed(found)
        ]

    def _versions(self, name: str) -> Versions:
        return self.of(name).versions if name in self._folders else ()

    def _broken_steps(self, config: ModelConfig) -> list[Mistake]:
        return [
            Mistake(
                f"ensemble_scheduling.step[{index}].model_name",
                f"model '{model}' has mistakes itself",
                "mend those first",
            )
            for index, step in enumerate(config.ensemble_steps())
            for model in step.models
            if model in self._folders and not self._versions(model)
        ]


def _check_model(folder: ModelFolder, backends: BackendRegistry | None, config_name: str) -> _Check:
    report = ModelReport(folder.name, folder.path)
    report.warnings += _folder_warnings(folder)
    try:
        config = ModelConfig.read(folder, config_name)
    except NaiadError as error:
        _add(report, folder, error)
        if not folder.versions:
            report.mistakes.append(_no_version(folder))
        return _Check(report, folder)
    report.file = _file(folder, config.source.file)
    report.warnings += [_placed(report.file, one) for one in _config_warnings(config, folder)]
    config = _completed(config, folder, backends, report)
    known = {finding.path for finding in report.mistakes if finding.path}
    report.mistakes += [
        _placed(report.file, mistake) for mistake in config.mistakes() if mistake.path not in known
    ]
    report.mistakes.sort(key=lambda finding: finding.line)
    report.completed = config.to_text()
    return _Check(report, folder, config)


def _completed(
    config: ModelConfig, folder: ModelFolder, backends: BackendRegistry | None, report: ModelReport
) -> ModelConfig:
    """The configuration after as many stages as it bears; what stops it goes into the report."""
    try:
        newest = config.versions(folder.versions)[-1]
        config = config.with_backend(folder, newest)
    except NaiadError as error:
        _add(report, folder, error)
        return config
    refused = config.refused()
    if refused is not None:
        _add(report, folder, refused)
        return config
    if backends is None or config.is_ensemble:
        return config
    try:
        backend = backends.get(config.backend)
        found = backend.complete(config.spec(newest, folder))
        if found is not None:
            config = config.with_completion(found)
        config = config.with_defaults(backend.gpus(), backend.default_cpu_instances)
        if not config.mistakes():
            # Only a load tells whether the file is sound and agrees with what is given.
            _load_once(backend, config.spec(newest, folder))
    except NaiadError as error:
        _add(report, folder, config.placed(error))
    return config


def _load_once(backend: Backend, spec: ModelSpec) -> None:
    """Load the model with one instance on each of its devices, and give all back. Raises what the
    backend raises."""
    devices = {(place.kind, place.device): place for place in reversed(spec.placements)}
    placements = tuple(devices.values())
    model = backend.load(replace(spec, placements=placements))
    try:
        for placement in placements:
            model.instance(placement).close()
    finally:
        model.close()


def _folder_warnings(folder: ModelFolder) -> Iterator[Finding]:
    for name in folder.skipped:
        yield Finding(
            folder.path / name,
            0,
            "",
            "this folder is skipped: its name is no version number",
            "use digits without leading zeros, such as 1",
        )
    if (folder.path / "config.yml").is_file():
        yield Finding(
            folder.path / "config.yml", 0, "", "this file is not read", f"rename it to {YAML_FILE}"
        )


def _config_warnings(config: ModelConfig, folder: ModelFolder) -> Iterator[Mistake]:
    yield from config.ignored_mistakes()
    missing = config.missing_versions(folder.versions)
    if missing:
        listed = ", ".join(map(str, missing))
        yield from config.source.placed(
            [Mistake("version_policy.specific.versions", f"there is no folder for {listed}")]
        )


def _no_version(folder: ModelFolder) -> Finding:
    return Finding(
        folder.path, 0, "", "has no version folder", f"put the model's files into {folder.name}/1"
    )


def _add(report: ModelReport, folder: ModelFolder, error: NaiadError) -> None:
    if isinstance(error, ConfigError):
        file = _file(folder, error.file)
        report.mistakes += [_placed(file, mistake) for mistake in error.mistakes]
    else:
        report.mistakes.append(_finding(report.file, error))


def _finding(file: Path, error: NaiadError) -> Finding:
    return Finding(file, 0, error.field, error.message, error.hint)


def _placed(file: Path, mistake: Mistake) -> Finding:
    return Finding(file, mistake.line, mistake.path, mistake.message, mistake.hint)


def _file(folder: ModelFolder, name: str) -> Path:
    """The configuration's file, or the model's folder where there is none."""
    return folder.path / name if (folder.path / name).is_file() else folder.path
