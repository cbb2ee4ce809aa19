"""Runs inside MLServer: an identity model and one ONNX file, both in the server's own process."""

import onnxruntime as ort
from mlserver import MLModel  # type: ignore[import-not-found]  # in the peer's environment
from mlserver.codecs import NumpyCodec  # type: ignore[import-not-found]
from mlserver.types import (  # type: ignore[import-not-found]
    InferenceRequest,
    InferenceResponse,
    ResponseOutput,
)


class Identity(MLModel):  # type: ignore[misc]  # the base is unknown here
    """OUTPUT0 is INPUT0, without a detour over numpy: the least that MLServer can do."""

    async def predict(self, payload: InferenceRequest) -> InferenceResponse:
        """The data of the first input, untouched."""
        given = payload.inputs[0]
        output = ResponseOutput(
            name="OUTPUT0", shape=given.shape, datatype=given.datatype, data=given.data
        )
        return InferenceResponse(model_name=self.name, outputs=[output])


class Onnx(MLModel):  # type: ignore[misc]
    """The ONNX file of `parameters.uri` on one thread."""

    async def load(self) -> bool:
        """Opens the file."""
        options = ort.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        file = self.settings.parameters.uri
        self.session = ort.InferenceSession(file, options, providers=["CPUExecutionProvider"])
        return True

    async def predict(self, payload: InferenceRequest) -> InferenceResponse:
        """The first output of the file for the inputs of the request."""
        feed = {each.name: NumpyCodec.decode_input(each) for each in payload.inputs}
        name = self.session.get_outputs()[0].name
        result = self.session.run([name], feed)[0]
        output = NumpyCodec.encode_output(name=name, payload=result)
        return InferenceResponse(model_name=self.name, outputs=[output])
