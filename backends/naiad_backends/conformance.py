"""The tests that every backend must pass, ours or a stranger's; see docs/backends.md.

Subclass `BackendSuite` in a test file, under a name that starts with `Test`, and say which
backend, which model and which requests. Needs pytest; the server never imports this file.
"""

import asyncio
import threading
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from queue import SimpleQueue

import numpy as np
import pytest

from naiad_backends.api import (
    Array,
    Backend,
    Execution,
    Instance,
    InstanceState,
    Model,
    ModelSpec,
    Placement,
    RemoteInstance,
    Request,
    Response,
    Tensor,
)
from naiad_backends.errors import NaiadError

_ROUNDS = 20
_PATIENCE_S = 30


@dataclass(frozen=True, slots=True)
class Loaded:
    """A backend with one model loaded and two of its instances."""

    backend: Backend
    spec: ModelSpec
    model: Model
    instances: tuple[Instance, Instance]


class BackendSuite:
    """What the contract in `naiad_backends.api` promises, as tests.

    A subclass overrides `backend`, `spec`, `requests` and `expected`, and the others where they
    apply. Each is called anew for each test.
    """

    rtol = 1e-6
    atol = 1e-6
    """How far floating-point outputs may lie from `expected` and from each other."""

    def backend(self) -> Backend:
        """A new backend."""
        raise NotImplementedError

    def spec(self, folder: Path) -> ModelSpec:
        """A model that was written into `folder`, which is empty and this test's own.

        inputs and outputs must be filled in, as from a full configuration.
        """
        raise NotImplementedError

    def requests(self) -> Sequence[Request]:
        """Two or more valid requests that differ in content, with all their inputs.

        A batching model: of different batch sizes, two of which fit into one batch.
        """
        raise NotImplementedError

    def expected(self, request: Request) -> Mapping[str, Array]:
        """The right answer to one of `requests`: all outputs by name, in `Tensor.numpy()` form."""
        raise NotImplementedError

    def kept_output(self) -> str:
        """An output of `spec` that the server may keep as a state; empty if the backend has no
        models with states, or this one has no other output."""
        return ""

    def bad_request(self) -> Request | None:
        """A request that fits the configuration but that the model must refuse, if there is one."""
        return None

    def bad_parameters(self) -> Mapping[str, str] | None:
        """Model parameters with which loading must fail, if the backend reads any."""
        return None

    @pytest.fixture
    def loaded(self, tmp_path: Path) -> Iterator[Loaded]:
        """The model, completed, loaded and with two instances; closed as the server would."""
        backend = self.backend()
        spec = self.spec(tmp_path)
        completion = backend.complete(spec)
        if completion is not None:
            spec = replace(
                spec,
                inputs=completion.inputs,
                outputs=completion.outputs,
                max_batch_size=completion.max_batch_size,
            )
        places = (Placement(f"{spec.name}_0"), Placement(f"{spec.name}_1"))
        spec = replace(spec, placements=places)
        model = backend.load(spec)
        loaded = Loaded(
            backend, spec, model, (model.instance(places[0]), model.instance(places[1]))
        )
        yield loaded
        for instance in loaded.instances:
            instance.close()
        model.close()

    # Completion and loading

    def test_completion_agrees_with_the_configuration(self, tmp_path: Path) -> None:
        """Given parts stay as they are; what is left out is found again in the file."""
        backend, spec = self.backend(), self.spec(tmp_path)
        full = backend.complete(spec)
        if full is not None:
            assert (full.inputs, full.outputs) == (spec.inputs, spec.outputs)
        found = backend.complete(replace(spec, inputs=(), outputs=()))
        if found is not None:
            assert {(t.name, t.datatype) for t in found.inputs} >= {
                (t.name, t.datatype) for t in spec.inputs if not t.optional
            }
            assert {(t.name, t.datatype) for t in found.outputs} >= {
                (t.name, t.datatype) for t in spec.outputs
            }

    def test_models_load_side_by_side(self, tmp_path: Path) -> None:
        """`complete` and `load` may run at the same time for different models."""
        backend = self.backend()
        specs = []
        for name in ("one", "two"):
            folder = tmp_path / name
            folder.mkdir()
            specs.append(replace(self.spec(folder), name=name))
        start = threading.Barrier(len(specs))

        def load(spec: ModelSpec) -> Model:
            start.wait()
            backend.complete(spec)
            return backend.load(replace(spec, placements=(Placement(spec.name),)))

        with ThreadPoolExecutor(len(specs)) as pool:
            models = list(pool.map(load, specs))
        request = self.requests()[0]
        for spec, model in zip(specs, models, strict=True):
            instance = model.instance(Placement(spec.name))
            self._check(request, _execute(instance, [request])[0])
            instance.close()
            model.close()

    def test_unknown_device_is_refused(self, tmp_path: Path) -> None:
        """A GPU that the backend does not list fails with a NaiadError, in `load` or after."""
        backend, spec = self.backend(), self.spec(tmp_path)
        place = Placement("nowhere", "GPU", max(backend.gpus(), default=0) + 1)
        with pytest.raises(NaiadError):
            backend.load(replace(spec, placements=(place,))).instance(place)

    def test_bad_parameters_are_refused(self, tmp_path: Path) -> None:
        """A parameter that cannot be fails the load with a NaiadError that names it."""
        parameters = self.bad_parameters()
        if parameters is None:
            pytest.skip("the backend has no parameters to get wrong")
        backend, spec = self.backend(), self.spec(tmp_path)
        place = Placement(spec.name)
        with pytest.raises(NaiadError) as caught:
            backend.load(replace(spec, parameters=parameters, placements=(place,))).instance(place)
        assert any(key in str(caught.value) for key in parameters)

    def test_closing_unused_parts(self, tmp_path: Path) -> None:
        """`close` never raises, used or not."""
        backend, spec = self.backend(), self.spec(tmp_path)
        place = Placement(spec.name)
        spec = replace(spec, placements=(place,))
        backend.load(spec).close()
        model = backend.load(spec)
        model.instance(place).close()
        model.close()

    # Execution

    def test_answers_are_right(self, loaded: Loaded) -> None:
        """One request at a time, all of its outputs."""
        for request in self.requests():
            self._check(request, _execute(loaded.instances[0], [request])[0])

    def test_outputs_have_their_form(self, loaded: Loaded) -> None:
        """Datatype and shape of each output are those of the configuration."""
        for request in self.requests():
            response = _execute(loaded.instances[0], [request])[0]
            by_name = {tensor.name: tensor for tensor in response.outputs}
            for spec in loaded.spec.outputs:
                tensor = by_name[spec.name]
                assert tensor.datatype == spec.datatype
                shape = tensor.shape[1:] if loaded.spec.max_batch_size else tensor.shape
                assert len(shape) == len(spec.dims), f"{tensor} does not fit {spec}"
                assert all(d in (-1, n) for n, d in zip(shape, spec.dims, strict=True))

    def test_many_requests_at_once(self, loaded: Loaded) -> None:
        """A batch of mixed sizes gives each request what it gets alone, in order."""
        for group in self._groups(loaded.spec):
            responses = _execute(loaded.instances[0], group)
            assert len(responses) == len(group)
            for request, response in zip(group, responses, strict=True):
                self._check(request, response)

    def test_only_wanted_outputs(self, loaded: Loaded) -> None:
        """A request that names outputs gets these and no others, also inside a batch."""
        for group in self._groups(loaded.spec):
            for output in loaded.spec.outputs:
                asked = [replace(group[0], outputs=[output.name]), *group[1:]]
                responses = _execute(loaded.instances[0], asked)
                for request, response in zip(asked, responses, strict=True):
                    self._check(request, response)

    def test_an_output_that_the_server_keeps(self, tmp_path: Path) -> None:
        """It goes to a request that names it, and to no other, also inside a batch."""
        spec, kept = self.spec(tmp_path), self.kept_output()
        if not kept:
            pytest.skip("the backend has no models with states")
        theirs = tuple(output for output in spec.outputs if output.name != kept)
        ours = tuple(output for output in spec.outputs if output.name == kept)
        place = Placement(f"{spec.name}_0")
        spec = replace(spec, outputs=theirs, server_outputs=ours, placements=(place,))
        model = self.backend().load(spec)
        instance = model.instance(place)
        for group in self._groups(spec):
            names = [output.name for output in (*theirs, *ours)]
            asked = [replace(group[0], outputs=names), *group[1:]]
            wanted = [names] + [[output.name for output in theirs] for _ in group[1:]]
            for response, expected in zip(_execute(instance, asked), wanted, strict=True):
                assert [output.name for output in response.outputs] == expected
        instance.close()
        model.close()

    def test_inputs_are_left_alone(self, loaded: Loaded) -> None:
        """Inputs may share memory with other requests, so nobody writes into them."""
        for group in self._groups(loaded.spec):
            before = [_contents(request) for request in group]
            _execute(loaded.instances[0], group)
            assert [_contents(request) for request in group] == before

    def test_inputs_at_any_address(self, loaded: Loaded) -> None:
        """A tensor may begin at any byte of a read-only message."""
        for request in self.requests():
            shifted = replace(
                request,
                inputs={name: _shifted(tensor) for name, tensor in request.inputs.items()},
            )
            self._check(request, _execute(loaded.instances[0], [shifted])[0])

    def test_outputs_stay(self, tmp_path: Path) -> None:
        """Outputs keep their content when the instance runs again and after it is closed."""
        backend, spec = self.backend(), self.spec(tmp_path)
        place = Placement(spec.name)
        model = backend.load(replace(spec, placements=(place,)))
        instance = model.instance(place)
        requests = self.requests()
        kept = [(request, _execute(instance, [request])[0]) for request in requests]
        for _ in range(_ROUNDS):
            for request in requests:
                _execute(instance, [request])
        instance.close()
        model.close()
        for request, response in kept:
            self._check(request, response)

    def test_instances_run_in_parallel(self, loaded: Loaded) -> None:
        """Two instances in two threads do not disturb each other."""
        requests = self.requests()
        start = threading.Barrier(len(loaded.instances))

        def work(instance: Instance) -> None:
            start.wait()
            for _ in range(_ROUNDS):
                for request in requests:
                    self._check(request, _execute(instance, [request])[0])

        with ThreadPoolExecutor(len(loaded.instances)) as pool:
            list(pool.map(work, loaded.instances))

    def test_batches_begun_at_once_end_in_order(self, loaded: Loaded) -> None:
        """An instance elsewhere takes more than it asks for, and ends what it has in that order."""
        instance, loop = self._elsewhere(loaded)
        groups = self._groups(loaded.spec) * 4
        ends: SimpleQueue[tuple[int, Execution | NaiadError | None]] = SimpleQueue()

        def begin() -> None:
            for number, group in enumerate(groups):
                instance.begin(group, (), partial(put, number))

        def put(number: int, end: Execution | NaiadError | None) -> None:
            ends.put((number, end))

        loop.call_soon_threadsafe(begin)
        found = [ends.get(timeout=_PATIENCE_S) for _ in groups]
        assert [number for number, _ in found] == list(range(len(groups)))
        for group, (_, end) in zip(groups, found, strict=True):
            assert isinstance(end, Execution), end
            for request, response in zip(group, end.responses, strict=True):
                self._check(request, response)

    def test_an_instance_elsewhere_tells_its_state(self, loaded: Loaded) -> None:
        """It takes work when it is made, and none when it is closed, which its watchers hear."""
        loop = self._elsewhere(loaded)[1]
        instance = loaded.model.instance(Placement(f"{loaded.spec.name}_2"))
        assert isinstance(instance, RemoteInstance)
        states: SimpleQueue[tuple[InstanceState, str]] = SimpleQueue()

        def tell() -> None:
            states.put((instance.state, instance.trouble()))

        loop.call_soon_threadsafe(tell)
        loop.call_soon_threadsafe(instance.watch, tell)
        assert states.get(timeout=_PATIENCE_S) == (InstanceState.READY, "")
        assert instance.window >= 1
        unready = asyncio.run_coroutine_threadsafe(instance.unready(), loop)
        assert unready.result(_PATIENCE_S) == ""
        instance.close()
        state, trouble = states.get(timeout=_PATIENCE_S)
        assert state is InstanceState.DOWN
        assert trouble
        ends: SimpleQueue[Execution | NaiadError | None] = SimpleQueue()
        loop.call_soon_threadsafe(instance.begin, self.requests()[:1], (), ends.put)
        assert ends.get(timeout=_PATIENCE_S) is None

    def _elsewhere(self, loaded: Loaded) -> tuple[RemoteInstance, asyncio.AbstractEventLoop]:
        instance = loaded.instances[0]
        if not isinstance(instance, RemoteInstance):
            pytest.skip("the instances are here")
        return instance, loaded.backend.services.loop

    def test_bad_request_harms_nobody(self, loaded: Loaded) -> None:
        """What concerns one request is that request's error, and the instance goes on."""
        bad = self.bad_request()
        if bad is None:
            pytest.skip("every request that fits the configuration is fine")
        good = self.requests()[0]
        instance = loaded.instances[0]
        with pytest.raises(NaiadError):
            _raise_error(_execute(instance, [bad])[0])
        self._check(good, _execute(instance, [good])[0])
        limit = loaded.spec.max_batch_size
        if limit == 0 or _size(good) + _size(bad) <= limit:
            first, second = _execute(instance, [good, bad])
            self._check(good, first)
            assert second.error is not None

    def test_cancelled_requests_harm_nobody(self, loaded: Loaded) -> None:
        """They still get a response each, which nobody reads, and their neighbours their own."""
        for group in self._groups(loaded.spec):
            gone = replace(group[0], cancelled=True)
            responses = _execute(loaded.instances[0], [gone, *group[1:]])
            for request, response in zip(group[1:], responses[1:], strict=True):
                self._check(request, response)
            _execute(loaded.instances[0], [replace(request, cancelled=True) for request in group])
            self._check(group[0], _execute(loaded.instances[0], group)[0])

    # Helpers

    def _groups(self, spec: ModelSpec) -> list[list[Request]]:
        """The requests in lists that the server might hand over at once."""
        requests = list(self.requests())
        if spec.max_batch_size == 0:
            return [requests]
        groups: list[list[Request]] = []
        room = 0
        for request in requests:
            size = _size(request)
            if size > room:
                groups.append([])
                room = spec.max_batch_size
            groups[-1].append(request)
            room -= size
        assert spec.max_batch_size == 1 or any(len(group) > 1 for group in groups), (
            "no two neighbours of requests() fit into one batch"
        )
        return groups

    def _check(self, request: Request, response: Response) -> None:
        _raise_error(response)
        expected = self.expected(request)
        names = [tensor.name for tensor in response.outputs]
        assert sorted(names) == sorted(request.outputs or expected)
        for tensor in response.outputs:
            array = tensor.numpy()
            assert array.shape == tensor.shape
            self._check_values(tensor.name, array, expected[tensor.name])

    def _check_values(self, name: str, array: Array, expected: Array) -> None:
        assert array.shape == expected.shape, f"shape of output '{name}'"
        assert array.dtype == expected.dtype, f"type of output '{name}'"
        if array.dtype.kind == "f":
            np.testing.assert_allclose(array, expected, rtol=self.rtol, atol=self.atol)
        else:
            np.testing.assert_array_equal(array, expected)


def _execute(instance: Instance, requests: Sequence[Request]) -> Sequence[Response]:
    execution = instance.execute(requests)
    assert len(execution.responses) == len(requests), "one response for each request"
    assert execution.compute_start_ns <= execution.compute_end_ns
    return execution.responses


def _raise_error(response: Response) -> None:
    if response.error is not None:
        raise response.error


def _size(request: Request) -> int:
    """Number of batch elements, for a model that batches."""
    return next(iter(request.inputs.values())).shape[0]


def _contents(request: Request) -> dict[str, bytes]:
    """Encoded anew, because a tensor remembers the wire form it had before."""
    return {
        name: bytes(Tensor.from_numpy(name, tensor.numpy(), tensor.datatype).wire())
        for name, tensor in request.inputs.items()
    }


def _shifted(tensor: Tensor) -> Tensor:
    wire = memoryview(b"\0" + bytes(tensor.wire()))[1:]
    return Tensor.from_wire(tensor.name, tensor.datatype, tensor.shape, wire)
