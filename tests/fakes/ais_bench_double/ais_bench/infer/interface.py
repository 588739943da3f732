"""`InferSession` in both generations; AIS_BENCH_DOUBLE_GENERATION says which is importable.

"0.0.2" is the wheel of CANN 6; "later" (default) renamed and added members. The choice is made
when this module is imported.
"""

from __future__ import annotations

import os

import aclruntime
import numpy as np


class _Session:
    """What both generations share."""

    def __init__(
        self,
        device_id: int,
        model_path: str,
        acl_json_path: str | None = None,
        debug: bool = False,
        loop: int = 1,
    ) -> None:
        options = aclruntime.session_options()
        options.loop = loop
        self.session = aclruntime.InferenceSession(model_path, device_id, options)
        self.outputs_names = [desc.name for desc in self.session.get_outputs()]

    def get_inputs(self) -> list:
        """Descriptions of the inputs."""
        return self.session.get_inputs()

    def get_outputs(self) -> list:
        """Descriptions of the outputs."""
        return self.session.get_outputs()

    def set_loop_count(self, loop: int) -> None:
        """Executions for each `infer`."""
        self.session.options().loop = loop

    def set_dynamic_batchsize(self, dym_batch: int) -> None:
        """Run an OM with several batches at one of them."""
        self.session.set_dynamic_batchsize(dym_batch)

    def set_dynamic_hw(self, w: int, h: int) -> None:
        """Run an OM with several input sizes at one; rows come first, whatever the names say."""
        self.session.set_dynamic_hw(w, h)

    def run(self, feeds: list, out_array: bool = False) -> list:
        """Run on a list of arrays as it was prepared; a non-contiguous one is read as garbage."""
        tensors = [
            aclruntime.BaseTensor(feed.__array_interface__["data"][0], feed.nbytes)
            for feed in feeds
        ]
        outputs = self.session.run(self.outputs_names, tensors)
        return [np.array(tensor) for tensor in outputs] if out_array else outputs

    def _prepare(self, feeds: list, mode: str) -> None:
        """Choose the batch of a run; the generation of CANN 6 leaves it as it was chosen."""

    def _run(self, feeds: list, mode: str) -> list:
        if mode not in ("static", "dymbatch"):
            raise RuntimeError(f"wrong infer_mode:{mode}, the double plays static and dymbatch")
        self._prepare(feeds, mode)
        return self.run(feeds)


class _InferSession002(_Session):
    """The generation of CANN 6: a non-contiguous array is read as garbage."""

    def infer(self, feeds: list, mode: str = "static", custom_sizes: int = 100000) -> list:
        """Run on a list of arrays, one for each input."""
        return [np.array(tensor) for tensor in self._run(feeds, mode)]

    def sumary(self) -> object:
        """Device times."""
        return self.session.sumary()

    def reset_sumaryinfo(self) -> None:
        """Forget device times."""
        self.session.reset_sumaryinfo()

    def finalize(self) -> None:
        """Release the model and the chip."""
        self.session.release()


class _InferSessionLater(_Session):
    """The later generation: checks its arguments, makes inputs contiguous, has a pipeline."""

    def __init__(
        self,
        device_id: int,
        model_path: str,
        acl_json_path: str | None = None,
        debug: bool = False,
        loop: int = 1,
    ) -> None:
        if not isinstance(device_id, int) or not 0 <= device_id <= 255:
            raise RuntimeError(f"device_id {device_id!r} is not an int within 0 to 255")
        if not isinstance(model_path, str) or not isinstance(debug, bool) or loop < 1:
            raise RuntimeError("model_path must be str, debug bool, loop at least 1")
        super().__init__(device_id, model_path, acl_json_path, debug, loop)

    def _prepare(self, feeds: list, mode: str) -> None:
        if mode == "static":
            self.session.set_staticbatch()
            return
        (wanted,) = self.get_inputs()
        for side, there in zip(wanted.shape, feeds[0].shape, strict=True):
            if side < 0:
                self.set_dynamic_batchsize(there)
                return
            if side != there:
                raise RuntimeError("input datas and intensors dim not matched!")
        raise RuntimeError("not a dymbatch model!")

    def infer(
        self,
        feeds: list,
        mode: str = "static",
        custom_sizes: int = 100000,
        out_array: bool = True,
    ) -> list:
        """Run on a list of arrays, one for each input."""
        tensors = self._run([np.ascontiguousarray(feed) for feed in feeds], mode)
        return [np.array(tensor) for tensor in tensors] if out_array else tensors

    def infer_pipeline(
        self, feeds_list: list, mode: str = "static", custom_sizes: int = 100000
    ) -> list:
        """Run on a list of feeds; copies and execution overlap on a real chip."""
        return [self.infer(feeds, mode) for feeds in feeds_list]

    def summary(self) -> object:
        """Device times."""
        return self.session.sumary()

    def reset_summaryinfo(self) -> None:
        """Forget device times."""
        self.session.reset_sumaryinfo()

    def free_resource(self) -> None:
        """Release the model."""
        self.session.release()

    @staticmethod
    def finalize() -> None:
        """End ACL for the whole process."""


_GENERATIONS = {"0.0.2": _InferSession002, "later": _InferSessionLater}
InferSession = _GENERATIONS[os.environ.get("AIS_BENCH_DOUBLE_GENERATION", "later")]
