"""Stand-in for Triton's ONNX Runtime backend, as a Python-based backend; requests that Triton joins run as one batch."""

import json
from pathlib import Path

import numpy as np
import onnxruntime
import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    @staticmethod
    def auto_complete_config(config):
        return config

    def initialize(self, args):
        config = json.loads(args["model_config"])
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        path = Path(args["model_repository"]) / args["model_version"] / config["default_model_filename"]
        self.session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        self.batched = config["max_batch_size"] > 0
        self.inputs = [node.name for node in self.session.get_inputs()]

    def execute(self, requests):
        given = [{n: pb_utils.get_input_tensor_by_name(r, n).as_numpy() for n in self.inputs} for r in requests]
        if not self.batched:
            return [self._response(self.session.run(None, feeds)) for feeds in given]
        sizes = [len(feeds[self.inputs[0]]) for feeds in given]
        found = self.session.run(None, {n: np.concatenate([feeds[n] for feeds in given]) for n in self.inputs})
        split = [np.split(array, np.cumsum(sizes)[:-1]) for array in found]
        return [self._response(arrays) for arrays in zip(*split, strict=True)]

    def _response(self, arrays):
        names = [node.name for node in self.session.get_outputs()]
        return pb_utils.InferenceResponse(
            [pb_utils.Tensor(n, np.ascontiguousarray(a)) for n, a in zip(names, arrays, strict=True)]
        )
