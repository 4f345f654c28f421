"""Imports of torch, diffusers and transformers without what stylizing does not use.

What they import by themselves takes longer than `import torch`: every network of every model, the
compiler, peft, scipy. Here some packages are deferred: their modules can be imported one by one,
and their own `__init__` is executed when a name is asked for that is not known here. And libraries
that are optional seem to be missing while diffusers and transformers look for them. Everything can
still be imported later.

It is for the process of a command alone, never for a program that imports std_cli.
"""

import gc
import importlib.util
import os
import re
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib import import_module, metadata
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType, SimpleNamespace

TESTED = {"torch": "2.13", "diffusers": "0.42", "transformers": "5.23"}
"""The versions that this suits, as in constraints.txt. Others are imported as usual."""


def _unchanged(function: object = None, *_: object, **__: object) -> object:
    """What a decorator of torch._dynamo makes of a function that is never compiled."""
    return (lambda decorated: decorated) if function is None else function


DEFERRED: Mapping[str, Mapping[str, object]] = {
    # import every network there is, where three are run
    "diffusers.models.autoencoders": {},
    "diffusers.models.transformers": {},
    "diffusers.models.unets": {},
    # read the source of every model, to list what is in it
    "transformers": {
        **dict.fromkeys(
            (
                "CLIPImageProcessor",
                "CLIPImageProcessorPil",
                "CLIPTextConfig",
                "CLIPTextModel",
                "CLIPTextModelWithProjection",
                "CLIPTokenizer",
                "CLIPVisionConfig",
                "CLIPVisionModelWithProjection",
            ),
            "transformers.models.clip",
        ),
        **dict.fromkeys(
            ("SiglipImageProcessor", "SiglipVisionModel"), "transformers.models.siglip"
        ),
        "AutoImageProcessor": "transformers.models.auto",
        "FeatureExtractionMixin": "transformers.feature_extraction_utils",
        "ImageProcessingMixin": "transformers.image_processing_base",
        "PreTrainedModel": "transformers.modeling_utils",
        "PreTrainedTokenizer": "transformers.tokenization_python",
        "PreTrainedTokenizerFast": "transformers.tokenization_utils_tokenizers",
        "ProcessorMixin": "transformers.processing_utils",
        # diffusers looks for its own classes there, too
        **dict.fromkeys(("BaseGuidance", "DiffusionPipeline", "ModelMixin", "ORTModule")),
        **dict.fromkeys(("OnnxRuntimeModel", "SchedulerMixin")),
    },
    "transformers.models": {},
    # is for downloads that diffusers and transformers are never asked for here
    "requests": {},
    # the compiler, asked for its decorators
    "torch._dynamo": {
        **dict.fromkeys(("allow_in_graph", "assume_constant_result", "disable"), _unchanged),
        "eval_frame": SimpleNamespace(OptimizedModule=type("OptimizedModule", (), {})),
    },
}
"""{package: {name: the module that it is in, or what is given for it, or None: it has none}}."""
_TOGETHER = "torch._dynamo."
"""Its modules import each other: they need the `__init__`, but for the one that is imported with
transformers."""
_ALONE = "torch._dynamo._trace_wrapped_higher_order_op"


def import_less() -> None:
    """Import less with the libraries from now on, if they have the tested versions and are not
    imported yet. With STD_IMPORTS=all in the environment it has no effect. Call it once."""
    theirs = {name for name in (*DEFERRED, *_EXECUTE) if name.partition(".")[0] in TESTED}
    if os.environ.get("STD_IMPORTS") == "all" or theirs & sys.modules.keys():
        return
    try:
        versions = {name: metadata.version(name) for name in TESTED}
    except metadata.PackageNotFoundError:
        return
    if all(versions[name].startswith(f"{tested}.") for name, tested in TESTED.items()):
        sys.meta_path.insert(0, _Finder())
        metadata.version = _version
        gc.disable()  # all that is imported stays: to look through it again and again takes time


_whole_version = metadata.version


def _version(distribution_name: str) -> str:
    """The version of a distribution, by the line that has it: `metadata.version` parses the whole
    description of each of the forty that the libraries ask for."""
    text = metadata.distribution(distribution_name).read_text("METADATA") or ""
    found = re.search(r"^Version: *(\S+)\s*$", text.partition("\n\n")[0], re.MULTILINE)
    return found[1] if found else _whole_version(distribution_name)


class _Deferred(ModuleType):
    """A package whose `__init__` is executed when it is needed."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self._begun, self._executing = False, threading.RLock()

    def __getattr__(self, name: str) -> object:
        package = self.__name__
        if not self._begun:
            if name == "__version__":
                return metadata.version(package)
            known = DEFERRED[package]
            if given := known.get(name):
                return getattr(import_module(given), name) if isinstance(given, str) else given
            if name in known or (name.startswith("__") and name != "__all__"):
                raise AttributeError(f"module {package!r} has no attribute {name!r}")
            if importlib.util.find_spec(f"{package}.{name}"):
                return import_module(f"{package}.{name}")
        whole = self._execute()
        if whole is self and name not in self.__dict__:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        return getattr(whole, name)

    def __dir__(self) -> list[str]:
        return [*(dir(whole) if (whole := self._execute()) is not self else self.__dict__)]

    def _execute(self) -> ModuleType:
        """The package after its own `__init__`, which may put another object in its place."""
        with self._executing:
            if not self._begun:
                self._begun = True
                spec = self.__spec__
                assert spec is not None
                assert isinstance(spec.loader, _Deferring)
                spec.loader = self.__loader__ = spec.loader.usual
                spec.loader.exec_module(self)
        return sys.modules[self.__name__]


class _Deferring(Loader):
    """Imports a package without its `__init__`."""

    def __init__(self, usual: Loader) -> None:
        self.usual = usual

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        return _Deferred(spec.name)

    def exec_module(self, module: ModuleType) -> None:
        pass


class _Imported(Loader):
    """Gives a module that the `__init__` of its package has imported."""

    def __init__(self, module: ModuleType) -> None:
        self.module, self.spec = module, module.__spec__

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        return self.module

    def exec_module(self, module: ModuleType) -> None:
        module.__spec__ = self.spec


class _Executing(Loader):
    """Imports a module by a function of this module."""

    def __init__(self, usual: Loader) -> None:
        self.usual = usual

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self.usual.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        assert module.__spec__ is not None
        module.__spec__.loader = module.__loader__ = self.usual
        _EXECUTE[module.__name__](module, self.usual)


class _Finder(MetaPathFinder):
    """Finds the modules that are imported in another way here."""

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if name.startswith(_TOGETHER) and name != _ALONE:
            package = sys.modules[_TOGETHER[:-1]]
            if isinstance(package, _Deferred):
                package._execute()
            found = sys.modules.get(name)
            return ModuleSpec(name, _Imported(found)) if found else None
        if name not in DEFERRED and name not in _EXECUTE:
            return None
        spec = PathFinder.find_spec(name, path)
        if spec is None or spec.loader is None:
            return None
        kind = _Deferring if name in DEFERRED else _Executing
        spec.loader = kind(spec.loader)
        return spec


@contextmanager
def _missing(*names: str) -> Iterator[None]:
    """Inside, these libraries seem not to be installed, as Python has it for None in their place;
    those that are imported already stay."""
    hidden = [name for name in names if name not in sys.modules]
    sys.modules.update(dict.fromkeys(hidden))  # type: ignore[arg-type]
    try:
        yield
    finally:
        for name in hidden:
            del sys.modules[name]


@contextmanager
def _not_distributed() -> Iterator[None]:
    """Inside, torch seems to be built for one process."""
    import torch.distributed

    available = torch.distributed.is_available
    torch.distributed.is_available = lambda: False
    try:
        yield
    finally:
        torch.distributed.is_available = available


def _context_parallel(module: ModuleType, usual: Loader) -> None:
    """diffusers imports torch's collective operations for pictures that several GPUs share."""
    with _not_distributed():
        usual.exec_module(module)


def _diffusers_looks(module: ModuleType, usual: Loader) -> None:
    """diffusers looks for optional libraries as this module is executed, and reads the files of
    everything that is installed for the names of three of them, which are not used."""
    distributions = metadata.packages_distributions
    metadata.packages_distributions = dict
    try:
        with _missing("peft", "scipy"):
            usual.exec_module(module)
    finally:
        metadata.packages_distributions = distributions


def _transformers_looks(module: ModuleType, usual: Loader) -> None:
    """transformers remembers what it found: ask before it does."""
    usual.exec_module(module)
    with _missing("peft", "scipy", "jinja2"), _not_distributed():
        module.is_peft_available()
        module.is_scipy_available()
        module.is_jinja_available()
        module.is_torch_distributed_available()
    # executes the package's own __init__ once more
    vars(module)["direct_transformers_import"] = lambda *_, **__: sys.modules["transformers"]


def _accelerate_looks(module: ModuleType, usual: Loader) -> None:
    """accelerate asks a user for Amazon's services in this module, which is imported with all."""
    with _missing("boto3"):
        usual.exec_module(module)


def _docstrings(module: ModuleType, usual: Loader) -> None:
    """transformers writes the docstrings of its classes when it is imported."""
    usual.exec_module(module)
    vars(module)["auto_docstring"] = _unchanged


def _all_imported(module: ModuleType, usual: Loader) -> None:
    usual.exec_module(module)
    gc.freeze()
    gc.enable()


_EXECUTE: Mapping[str, Callable[[ModuleType, Loader], None]] = {
    "accelerate.commands.config.sagemaker": _accelerate_looks,
    "diffusers.hooks.context_parallel": _context_parallel,
    "diffusers.utils.import_utils": _diffusers_looks,
    "transformers.utils.auto_docstring": _docstrings,
    "transformers.utils.import_utils": _transformers_looks,
    "std_cli.diffusion.video_pipeline": _all_imported,
}
