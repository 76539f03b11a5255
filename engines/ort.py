"""ONNX Runtime: the embedded default. Runs on any CPU; CUDA and TensorRT execution providers by option."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import onnxruntime as ort

from .base import Buffer, Computing, EngineOptions, Shared, check_bindings
from .bundle import Bundle, Graph
from .cuda import Cuda, CudaBuffer
from .cudalaunch import CudaDevice
from .errors import RunError, UserError
from .files import cache_place
from .host import HostBuffer, HostDevice, HostLaunch, share
from .inspection import ORT_GPU
from .machine import card_name, find_cores, processor_name, thread_count
from .machine import usable_cores as usable_cores  # where it used to live
from .store import FOLDER
from .text import first_line

PROVIDERS = {
    "cpu": "CPUExecutionProvider",
    "cuda": "CUDAExecutionProvider",
    "tensorrt": "TensorrtExecutionProvider",
    "nvtensorrtrtx": "NvTensorRTRTXExecutionProvider",
}
SLOWER_ON_CPU = ["SkipLayerNormFusion"]  # takes several times as long as the addition and the norm that it fuses
OTHERWISE = "--provider cpu runs without a GPU"
PARSED = ("tensorrt", "nvtensorrtrtx")  # providers that read the graph with TensorRT's parser


class OrtBuffer(HostBuffer):
    """Host memory that an OrtValue shares."""

    def __init__(self, shape: Sequence[int], dtype: str):
        super().__init__(shape, dtype)
        self.value = ort.OrtValue.ortvalue_from_numpy(self.array, "cpu", 0)


class OrtDevice(HostDevice):
    """A CPU."""

    def zeros(self, shape: Sequence[int], dtype: str) -> OrtBuffer:
        return OrtBuffer(shape, dtype)


class GpuBuffer(CudaBuffer):
    """Device memory between passes that wait for themselves."""

    def fetch(self, stream: Any = None) -> None:
        super().fetch(stream)
        self.cuda.wait()


class GpuDevice(CudaDevice):
    """A card whose passes are the provider's own: they begin and end on its stream, which is one.

    What the loop moves between passes (the portable form's keys and values, a flush, moving sinks) stays on the card.
    place: ONNX Runtime's name of its memory.
    """

    overlaps = False

    def __init__(self, cuda: Cuda, place: str = "cuda"):
        super().__init__(cuda)
        self.place = place

    def zeros(self, shape: Sequence[int], dtype: str) -> GpuBuffer:
        return GpuBuffer(self.cuda, shape, dtype)

    def chain(self, passes: Sequence[Callable[[], None]], beside: Sequence[Callable[[], None]] = ()) -> HostLaunch:
        return HostLaunch(passes, beside, threaded=bool(beside))


class OrtEngine:
    """One graph in an inference session."""

    def __init__(self, session: ort.InferenceSession, graph: Graph, device: OrtDevice | GpuDevice, file: Path):
        self.session, self.graph, self.device, self.file = session, graph, device, file

    def bind(self, inputs: Mapping[str, Buffer], outputs: Mapping[str, Buffer]) -> Callable[[], None]:
        check_bindings(self.graph, inputs, outputs, self.file)
        binding = self.session.io_binding()
        # Before 1.30 an OrtValue does not keep the array whose memory it uses: whoever runs the pass does.
        held = [*inputs.values(), *outputs.values()]
        if isinstance(self.device, GpuDevice):
            return self._bind_on_card(binding, inputs, outputs, held)
        for name, buffer in inputs.items():
            binding.bind_ortvalue_input(name, _value(buffer))
        for name, buffer in outputs.items():
            binding.bind_ortvalue_output(name, _value(buffer))

        def run(held: list[Buffer] = held) -> None:
            self._run(binding)

        return run

    def _run(self, binding: Any) -> None:
        """Raises RunError: what ONNX Runtime cannot do now, as where a card is full, it says with exceptions of its own."""
        try:
            self.session.run_with_iobinding(binding)
        except Exception as error:
            raise RunError(f"{self.file}: ONNX Runtime cannot run it: {first_line(error)}") from error

    def _bind_on_card(
        self, binding: Any, inputs: Mapping[str, Buffer], outputs: Mapping[str, Buffer], held: list[Buffer]
    ) -> Callable[[], None]:
        device = self.device
        assert isinstance(device, GpuDevice)
        for side, bind in ((inputs, binding.bind_input), (outputs, binding.bind_output)):
            for name, buffer in side.items():
                if not isinstance(buffer, CudaBuffer):
                    raise ValueError(f"an engine on a GPU needs buffers there, not {type(buffer).__name__}")
                bind(name, device.place, 0, buffer.dtype, buffer.shape, buffer.address)

        def run(held: list[Buffer] = held) -> None:
            device.cuda.wait()  # what was written and moved; the provider's own stream does not wait for ours
            self._run(binding)  # returns when its outputs are there

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
                hint = f": {ORT_GPU}" if options.provider != "cpu" else ""
                raise UserError(
                    f"provider {options.provider!r}: this onnxruntime has no {self.provider} "
                    f"(it has {', '.join(available)}){hint}"
                )
            self.plugged = plugged_devices(self.provider)
        if options.provider in ("cuda", "tensorrt"):
            with contextlib.redirect_stdout(io.StringIO()):  # it prints what it does not find
                ort.preload_dlls()  # CUDA's libraries that pip installed
        self.threads = thread_count(options.threads)
        on_cpu = options.provider == "cpu"
        self.device = OrtDevice(self.threads) if on_cpu else GpuDevice(Cuda(otherwise=OTHERWISE))
        self._engines: Shared[tuple[str, str, int], OrtEngine] = Shared()  # streams of one bundle share its weights

    def computes(self, bundle: Bundle) -> Computing:
        if self.option == "cpu":
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
            providers = None if self.plugged else self._providers(bundle, name)
            slower = SLOWER_ON_CPU if self.option == "cpu" else None
            session = ort.InferenceSession(file, settings, providers=providers, disabled_optimizers=slower)
        except Exception as error:  # onnxruntime raises many unrelated types
            kind = UserError
            if isinstance(self.device, GpuDevice):
                graph = bundle.manifest.graphs[name]
                size = sum(ref.bytes for ref in (graph.model, *graph.data))
                kind = self.device.cuda.load_error(str(error), size)
            raise kind(f"{file}: ONNX Runtime {ort.__version__} cannot load it: {first_line(error)}") from None
        took = session.get_providers()[:1]
        if took != [PROVIDERS[self.option]] and (not self.plugged or took == [PROVIDERS["cpu"]]):
            # It names its reason on the terminal at most, and would run elsewhere, through copies of everything.
            where = {PROVIDERS["cpu"]: "the CPU", PROVIDERS["cuda"]: "CUDA"}[took[0]]
            raise UserError(
                f"provider {self.option!r}: ONNX Runtime fell back to {where}: its CUDA or TensorRT libraries are "
                f"missing or of another version (everframe doctor); {OTHERWISE}"
            )
        return OrtEngine(session, bundle.manifest.graphs[name], self.device, file)

    def _providers(self, bundle: Bundle, name: str) -> list[Any]:
        """TensorRT's compiles for minutes, and keeps what it has compiled only where it is told to: by the graph's name, so
        that each content has a folder of its own. What it does not take would run on the CPU."""
        if self.option != "tensorrt":
            return [self.provider]
        place = cache_place(bundle.path / FOLDER) / f".ort-{bundle.manifest.graphs[name].digest[:16]}"
        kept = {"trt_engine_cache_enable": "1", "trt_engine_cache_path": str(place), "trt_timing_cache_enable": "1"}
        try:
            place.mkdir(parents=True, exist_ok=True)
        except OSError:  # nothing can be written: every start compiles
            kept = {}
        return [(self.provider, kept), PROVIDERS["cuda"]]


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
        raise UserError(f"provider 'nvtensorrtrtx': {reason}; {OTHERWISE}") from None
    devices = [device for device in ort.get_ep_devices() if device.ep_name == provider]
    if not devices:
        raise UserError(f"provider 'nvtensorrtrtx': finds no GPU it can use; {OTHERWISE}")
    return devices[:1]  # it takes one; ours, which CUDA counts as the first


def _value(buffer: Buffer) -> ort.OrtValue:
    if not isinstance(buffer, OrtBuffer):
        raise ValueError(f"an ONNX Runtime engine needs ONNX Runtime buffers, not {type(buffer).__name__}")
    return buffer.value
