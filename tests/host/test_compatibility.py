"""Hosts that are not as the pack knows them: importing asks little of them, and adapters that do not fit step aside."""

import subprocess
import sys

import pytest
import torch
from pack import ROOT
from priorcache.cache_core.adapters import adapter_for, misfit, sites_of
from priorcache.cache_core.policies import FORA
from priorcache.cache_core.trace import Trace
from subjects import flux

WITHOUT_ARCHITECTURES = """
import asyncio, sys
sys.path.insert(0, sys.argv[1])
from pack import load_host, load_pack
load_host()
import comfy, comfy_api.latest, comfy_execution.utils, folder_paths
import comfy.sample, comfy.samplers, comfy.sd, comfy.supported_models, comfy.utils
for name in [n for n in sys.modules if n.startswith("comfy.ldm")]:
    del sys.modules[name]
del comfy.ldm

class Gone:
    def find_spec(self, name, path=None, target=None):
        if name.startswith("comfy.ldm"):
            raise ModuleNotFoundError(f"{name} was asked for")

sys.meta_path.insert(0, Gone())

async def main():
    extension = await load_pack().comfy_entrypoint()
    await extension.on_load()
    for node in await extension.get_node_list():
        print(node.GET_SCHEMA().node_id)

asyncio.run(main())
print("left alone", not hasattr(comfy, "ldm"))
"""


def test_importing_the_pack_touches_no_architecture_of_the_host():
    """With `comfy.ldm` taken away after the host has loaded, every node is still there."""
    command = [sys.executable, "-c", WITHOUT_ARCHITECTURES, str(ROOT / "tools")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr[-2000:]
    *found, last = done.stdout.split("\n")[:-1]
    assert last == "left alone True"
    assert set(found) == {page.stem for page in (ROOT / "web" / "docs").glob("*.md")}


@pytest.fixture
def changed(host, tmp_path):
    """A Flux of a later host, which calls the MLP of the picture by another name."""
    subject = flux(tmp_path)
    for block in subject.model.model.diffusion_model.double_blocks:
        known = type(block)

        def forward(self, *args, known=known, **kwargs):
            self.img_mlp = self.img_ffn
            try:
                return known.forward(self, *args, **kwargs)
            finally:
                del self.img_mlp

        block.img_ffn = block.img_mlp
        del block.img_mlp
        block.__class__ = type(known.__name__, (known,), {"forward": forward})
    return subject


def test_an_adapter_that_does_not_fit_computes_and_says_what_still_works(host, changed, caplog):
    from comfyui_version import __version__

    network = changed.model.model.diffusion_model
    assert adapter_for(network) is None
    assert sites_of(network) == ()
    trace = Trace()
    found = changed.sample(host.attach(changed.model, FORA(2), trace))
    assert torch.equal(found, changed.sample())
    (note,) = trace.runs[0].notes
    assert f"the flux block of ComfyUI {__version__} is not the one known here" in note
    assert "img_mlp" in note
    assert "scope 'whole network'" in note
    assert note in caplog.text


def test_what_it_says_still_works_does(host, changed):
    trace = Trace()
    found = changed.sample(host.attach(changed.model, FORA(2, "aligned", level="model"), trace))
    assert trace.runs[0].computed_fraction == 0.5
    assert trace.runs[0].notes == []
    assert not torch.equal(found, changed.sample())


def test_the_memory_output_says_it_beforehand(host, changed):
    from priorcache.nodes.memory import memory

    assert "keeps nothing: the flux block of ComfyUI" in memory(changed.model, FORA(2), "errors", "device")


def test_a_network_that_fits_has_no_such_reason(host, tmp_path):
    assert misfit(flux(tmp_path).model.model.diffusion_model) is None
    assert misfit(torch.nn.Linear(2, 2)) is None
