"""ONNX Runtime: the embedded default. Runs on any CPU; CUDA and TensorRT execution providers by option."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort

from .base import Buffer, Computing, EngineOptions, Shared, check_bindings
from .bundle import Bundle, Graph
from .errors import UserError
from .host import HostLaunch, share
from .machine import card_name, find_cores, processor_name, thread_count
from .machine import usable_cores as usable_cores  # where it used to live
from .text import first_line

PROVIDERS = {
    "cpu": "CPUExecutionProvider",
    "cuda": "CUDAExecutionProvider",
    "tensorrt": "TensorrtExecutionProvider",
    "nvtensorrtrtx": "NvTensorRTRTXExecutionProvider",
}
SLOWER_ON_CPU = ["SkipLayerNormFusion"]  # takes several times as long as the addition and the norm that it fuses
PARSED = ("tensorrt", "nvtensorrtrtx")  # providers that read the graph with TensorRT's parser


class OrtBuffer:
    """An OrtValue of fixed shape. On the CPU it shares its memory with a NumPy array."""

    def __init__(self, shape: Sequence[int], dtype: str, device: str):
        self.shape, self.dtype = tuple(shape), np.dtype(dtype)
        self._host = np.zeros(self.shape, self.dtype) if device == "cpu" else None
        values = np.zeros(self.shape, self.dtype) if self._host is None else self._host
        try:
            self.value = ort.OrtValue.ortvalue_from_numpy(values, device, 0)
        except RuntimeError as error:  # the device's libraries are not there, or its memory is full
            raise UserError(f"a tensor {self.dtype} {list(self.shape)} on {device}: {first_line(error)}") from None

    def write(self, values: np.ndarray) -> None:
        if values.shape != self.shape or values.dtype != self.dtype:
            raise ValueError(f"cannot write {values.dtype} {values.shape} into {self.dtype} {self.shape}")
        if self._host is None:
            self.value.update_inplace(np.ascontiguousarray(values))
        else:
            self._host[...] = values

    def clear(self) -> None:
        self.write(np.zeros(self.shape, self.dtype))

    def read(self) -> np.ndarray:
        return self.value.numpy() if self._host is None else self._host.copy()

    def write_tokens(self, start: int, values: np.ndarray) -> None:
        whole = self.value.numpy() if self._host is None else self._host
        whole[:, :, start : start + values.shape[2]] = values
        if self._host is None:
            self.value.update_inplace(whole)

    def read_tokens(self, start: int, stop: int) -> np.ndarray:
        whole = self.value.numpy() if self._host is None else self._host
        return whole[:, :, start:stop].copy()

    def copy_tokens(self, start: int, source: Buffer, begin: int = 0, count: int | None = None) -> None:
        assert isinstance(source, OrtBuffer)
        whole = source.value.numpy() if source._host is None else source._host
        self.write_tokens(start, whole[:, :, begin:][:, :, :count])

    def fetch(self) -> None:
        self._fetched = self.read()

    def fetched(self) -> np.ndarray:
        return self._fetched


class OrtDevice:
    """threads: what passes may use together. With one, passes side by side take turns."""

    def __init__(self, name: str, threads: int):
        self.name, self.threads = name, threads
        # On a CPU two passes with half of the cores each are faster than one after the other with all: no operator keeps
        # every core busy. On a GPU the provider's stream is one.
        self.overlaps = name == "cpu"

    def free(self) -> int | None:
        return None

    def zeros(self, shape: Sequence[int], dtype: str) -> OrtBuffer:
        return OrtBuffer(shape, dtype, self.name)

    def chain(self, passes: Sequence[Callable[[], None]], beside: Sequence[Callable[[], None]] = ()) -> HostLaunch:
        return HostLaunch(passes, beside, threaded=bool(beside) and (self.threads > 1 or self.name != "cpu"))


class OrtEngine:
    """One graph in an inference session."""

    def __init__(self, session: ort.InferenceSession, graph: Graph, device: OrtDevice, file: Path):
        self.session, self.graph, self.device, self.file = session, graph, device, file

    def bind(self, inputs: Mapping[str, Buffer], outputs: Mapping[str, Buffer]) -> Callable[[], None]:
        check_bindings(self.graph, inputs, outputs, self.file)
        binding = self.session.io_binding()
        for name, buffer in inputs.items():
            binding.bind_ortvalue_input(name, _value(buffer))
        for name, buffer in outputs.items():
            binding.bind_ortvalue_output(name, _value(buffer))
        # Before 1.30 an OrtValue does not keep the array whose memory it uses: whoever runs the pass does.
        held = [*inputs.values(), *outputs.values()]

        def run(held: list[Buffer] = held) -> None:
            self.session.run_with_iobinding(binding)

        return run


class OrtBackend:
    """Loads graphs into ONNX Runtime sessions."""

    def __init__(self, options: EngineOptions):
        if options.provider not in PROVIDERS:
            raise UserError(f"provider {options.provider!r}: expected one of {', '.join(PROVIDERS)}")
        self.option, self.provider = options.provider, PROVIDERS[options.provider]
        self.plugged: list[Any] = []  # devices of a provider that is a package of its own
        available = ort.get_available_providers()
        if self.provider not in available:
            if options.provider != "nvtensorrtrtx":
                hint = ": pip install 'everframe[gpu]' in place of onnxruntime" if options.provider != "cpu" else ""
                raise UserError(
                    f"provider {options.provider!r}: this onnxruntime has no {self.provider} "
                    f"(it has {', '.join(available)}){hint}"
                )
            self.plugged = plugged_devices(self.provider)
        self.threads = thread_count(options.threads)
        self.device = OrtDevice("cpu" if options.provider == "cpu" else "cuda", self.threads)
        self._engines: Shared[tuple[str, str, int], OrtEngine] = Shared()  # streams of one bundle share its weights

    def computes(self, bundle: Bundle) -> Computing:
        if self.device.name == "cpu":
            return Computing(f"onnxruntime {ort.__version__}", f"CPU {processor_name()}", "f32")
        return Computing(f"onnxruntime {ort.__version__} {self.option}", card_name(), "tf32")

    def load(self, bundle: Bundle, name: str, beside: bool = False) -> OrtEngine:
        """Loaded once for all streams of this backend."""
        threads = share(self.threads, name, beside)
        key = (bundle.manifest.graphs[name].digest, str(bundle.graph_path(name)), threads)
        return self._engines.get(key, lambda: self._load(bundle, name, threads))

    def _load(self, bundle: Bundle, name: str, threads: int) -> OrtEngine:
        settings = ort.SessionOptions()
        settings.intra_op_num_threads = threads
        settings.inter_op_num_threads = 1
        settings.log_severity_level = 3
        if find_cores().throttled:  # threads that wait by spinning would spend the quota
            settings.add_session_config_entry("session.intra_op.allow_spinning", "0")
        # Signed stays signed: the rewriting to uint8 for old CPUs leaves graphs of opset 21 and later inconsistent (1.32).
        settings.add_session_config_entry("session.qdqisint8allowed", "1")
        file = bundle.graph_path(name)
        if self.option in PARSED and bundle.manifest.form == "in-place":
            # Its parser drops the attention's key-value lengths without an error: the ring's empty slots would be seen.
            raise UserError(
                f"provider {self.option!r} cannot run the in-place form of {bundle.path}: export it with --form portable, "
                "or use --backend tensorrt-rtx"
            )
        if self.plugged:
            settings.add_provider_for_devices(self.plugged, {})
        try:
            providers = None if self.plugged else [self.provider]
            slower = SLOWER_ON_CPU if self.option == "cpu" else None
            session = ort.InferenceSession(file, settings, providers=providers, disabled_optimizers=slower)
        except Exception as error:  # onnxruntime raises many unrelated types
            raise UserError(f"{file}: ONNX Runtime {ort.__version__} cannot load it: {first_line(error)}") from None
        if self.option != "cpu" and session.get_providers()[:1] == [PROVIDERS["cpu"]]:
            # It names its reason on the terminal at most, and would run on the CPU, through copies of everything.
            raise UserError(
                f"provider {self.option!r}: ONNX Runtime fell back to the CPU: its CUDA libraries are missing or of another "
                "version (everframe doctor); --provider cpu runs without a GPU"
            )
        return OrtEngine(session, bundle.manifest.graphs[name], self.device, file)


def plugged_devices(provider: str) -> list[Any]:
    """Devices of the TensorRT-RTX provider's own package. Raises UserError when it is missing or finds no GPU."""
    try:
        import onnxruntime_ep_nv_tensorrt_rtx as plugin  # type: ignore[import-not-found]
    except ImportError:
        raise UserError("provider 'nvtensorrtrtx': pip install onnxruntime-ep-nv-tensorrt-rtx") from None
    try:
        if provider not in {device.ep_name for device in ort.get_ep_devices()}:
            ort.register_execution_provider_library(provider, plugin.get_library_path())
    except Exception as error:  # among others where there is no driver
        reason = first_line(error).split("with error: ")[-1]
        raise UserError(f"provider 'nvtensorrtrtx': {reason}; --provider cpu runs without a GPU") from None
    devices = [device for device in ort.get_ep_devices() if device.ep_name == provider]
    if not devices:
        raise UserError("provider 'nvtensorrtrtx': finds no GPU it can use; --provider cpu runs without one")
    return devices


def _value(buffer: Buffer) -> ort.OrtValue:
    if not isinstance(buffer, OrtBuffer):
        raise ValueError(f"an ONNX Runtime engine needs ONNX Runtime buffers, not {type(buffer).__name__}")
    return buffer.value
