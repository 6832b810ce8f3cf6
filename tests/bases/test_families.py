"""Every family's tiny pipeline: found, told, sampled as its own pipeline does; positions, costs."""

from __future__ import annotations

import copy
import inspect
import json
import shutil
from types import SimpleNamespace

import numpy as np
import pipelines
import pytest
import torch

import fitspace
from fitspace import bases, methods
from fitspace.bases.process import FlowMatching
from fitspace.core import rng
from fitspace.core.errors import UserError
from fitspace.core.imports import import_peft, import_torchvision
from fitspace.data import encoding
from fitspace.methods.export import export
from fitspace.plan import cost, counting, footprint
from fitspace.stages import prepare
from fitspace.training import sampling

import_torchvision()
import diffusers  # noqa: E402

# Two always: they have all that others have.
ALWAYS = ("sd3", "flux")
FAMILIES = [n if n in ALWAYS else pytest.param(n, marks=pytest.mark.slow) for n in pipelines.BUILT]
# PixArt's pipeline by itself cleans captions of HTML and resizes to one of its trained sizes, as
# Sana's does.
CALLED = {
    "PixArtSigmaPipeline": {"clean_caption": False, "use_resolution_binning": False},
    "SanaPipeline": {"use_resolution_binning": False},
}
CAPTIONS, STEPS, GUIDANCE = ["red apple", "a green tree"], 3, 3.0


@pytest.fixture(scope="module", params=FAMILIES)
def family(request, tmp_path_factory):
    """A family's name and its pipeline's folder."""
    return request.param, pipelines.BUILT[request.param](
        tmp_path_factory.mktemp("families") / request.param
    )


@pytest.fixture(scope="module")
def pipeline(family):
    found = diffusers.DiffusionPipeline.from_pretrained(family[1], local_files_only=True)
    found.set_progress_bar_config(disable=True)
    return found


def noise(folder):
    return rng.initial_noise(0, len(CAPTIONS), bases.latent_shape(folder))


def asked(pipeline, folder):
    """How a pipeline is asked for what we draw."""
    found, given = {"guidance_scale": GUIDANCE}, noise(folder)
    if isinstance(pipeline, diffusers.FluxPipeline):
        if not pipeline.transformer.config.guidance_embeds:
            found = {"true_cfg_scale": GUIDANCE, "negative_prompt": len(CAPTIONS) * [""]}
        given = pipeline._pack_latents(given, *given.shape)
    if isinstance(pipeline, diffusers.QwenImagePipeline):
        found = {"true_cfg_scale": GUIDANCE, "negative_prompt": len(CAPTIONS) * [""]}
        given = pipeline._pack_latents(given, *given.shape)
    if isinstance(pipeline, diffusers.ZImagePipeline):
        found = {"guidance_scale": GUIDANCE - 1}
    return found | {"latents": given} | CALLED.get(type(pipeline).__name__, {})


def drawn_by(pipeline, folder):
    """What the family's own pipeline draws from the same noise; its solver is the process's."""
    side = bases.image_size(folder)
    process = bases.load_process(folder)
    solver = type(process.solver(STEPS, "cpu")).from_config(pipeline.scheduler.config)
    theirs = type(pipeline)(**pipeline.components | {"scheduler": solver})
    theirs.set_progress_bar_config(disable=True)
    images = theirs(
        prompt=[*CAPTIONS], num_inference_steps=STEPS, height=side, width=side, output_type="np",
        **asked(pipeline, folder),
    ).images  # fmt: skip
    return (images * 255).round().astype(np.uint8)


def drawn_by_us(model, folder):
    told = bases.load_teller(folder)(["", *CAPTIONS])
    vae, process = bases.load_vae(folder), bases.load_process(folder)
    with_text, without = bases.picked(told, slice(1, None)), bases.picked(told, slice(1))
    given = (model, vae, process, with_text, without, noise(folder), STEPS, GUIDANCE)
    return sampling.generate(*given)


def test_it_is_found_and_sound(family, tmp_path, monkeypatch):
    name, folder = family
    monkeypatch.chdir(tmp_path)
    assert bases.resolve(folder) == folder
    assert bases.family(folder).name == name
    assert bases.problems(folder, STEPS) == []
    denoiser = bases.load_denoiser(folder)
    assert bases.family_of(denoiser).name == name and bases.scale(denoiser) == 1
    side = (
        None
        if name in ("sd3", "sdxl", "pixart", "sana", "lumina2")
        else bases.latent_shape(folder)[-1]
    )
    assert footprint.latent_side(str(folder)) == side


def test_conditions_are_the_pipelines_own(family, pipeline):
    _, folder = family
    told = bases.load_teller(folder)(["", *CAPTIONS])
    assert told.keys() == bases.family(folder).told.keys()
    if family[0] == "pixart":
        own = pipeline.encode_prompt(CAPTIONS)
        wanted = {"embeddings": (own[2][:1], own[0]), "mask": (own[3][:1], own[1])}
    elif family[0] == "sana":
        asked = inspect.signature(pipeline.__call__).parameters["complex_human_instruction"].default
        own = pipeline.encode_prompt(CAPTIONS, complex_human_instruction=asked)
        wanted = {"embeddings": (own[2][:1], own[0]), "mask": (own[3][:1], own[1])}
        plain = pipeline.encode_prompt(CAPTIONS)
        assert len(asked) > 5 and not torch.allclose(plain[0], own[0], atol=1e-2)
    elif family[0] == "lumina2":
        own = pipeline.encode_prompt(CAPTIONS)
        wanted = {"embeddings": (own[2][:1], own[0]), "mask": (own[3][:1], own[1])}
    elif family[0] == "zimage":
        own, empty = pipeline.encode_prompt([*CAPTIONS])  # it writes into the list
        assert len({len(text) for text in own}) == 2
        for row, mask, text in zip(*told.values(), [empty[0], *own], strict=True):
            assert mask.tolist() == [1] * len(text) + [0] * (512 - len(text))
            torch.testing.assert_close(row[: len(text)], text, rtol=0, atol=1e-4)
            assert not row[len(text) :].any()
        wanted = {}
    elif family[0] == "qwenimage":
        own, empty = pipeline.encode_prompt(CAPTIONS), pipeline.encode_prompt("")
        assert own[1].sum(1).unique().numel() == 2 and empty[1] is None  # one is padded
        assert (told["mask"].sum(1) == torch.tensor([len(empty[0][0]), *own[1].sum(1)])).all()
        for row, text in zip(told["embeddings"], [empty[0][0], *own[0]], strict=True):
            torch.testing.assert_close(row[: len(text)], text, rtol=0, atol=1e-4)
            assert not row[len(text) :].any()
        wanted = {}
    elif family[0] == "flux2":
        own, empty = pipeline.encode_prompt(CAPTIONS), pipeline.encode_prompt("")
        wanted = {"embeddings": (empty[0], own[0])}
    elif family[0] == "flux":
        own, empty = pipeline.encode_prompt(CAPTIONS, None), pipeline.encode_prompt("", None)
        wanted = {"embeddings": (empty[0], own[0]), "pooled": (empty[1], own[1])}
    else:
        third = (None, None) if family[0] == "sd3" else ()
        own = pipeline.encode_prompt(CAPTIONS, *third)
        wanted = {"embeddings": (own[1][:1], own[0]), "pooled": (own[3][:1], own[2])}
    for key, (empty, captions) in wanted.items():
        torch.testing.assert_close(told[key], torch.cat([empty, captions]), rtol=0, atol=1e-4)
    assert len(told["embeddings"][0]) == bases.text_tokens(folder)


def test_samples_are_the_pipelines_own_to_one_grey_level(family, pipeline):
    _, folder = family
    ours = drawn_by_us(bases.load_denoiser(folder), folder)
    apart = np.abs(ours.astype(int) - drawn_by(pipeline, folder))
    assert ours.shape == apart.shape and ours.std() > 1
    assert apart.max() <= 1


def test_an_adapter_works_in_the_plain_pipeline(family, pipeline, tmp_path):
    _, folder = family
    model = bases.load_denoiser(folder)
    attached = methods.attach(model, "adapter", {"input": "SA_in", "output": "FFN_in"}, 0)
    with torch.no_grad():
        for i, parameter in enumerate(attached.trainable.values()):
            parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(i)))
    methods.save(attached, tmp_path / "adapter.safetensors", {})
    before = drawn_by(pipeline, folder)
    theirs = fitspace.load_adapter(pipeline, tmp_path / "adapter.safetensors")
    found = drawn_by(pipeline, folder)
    apart = np.abs(drawn_by_us(model, folder).astype(int) - found)
    assert apart.max() <= 1 and (found != before).any()
    theirs.remove()
    assert np.array_equal(drawn_by(pipeline, folder), before)


def test_exported_lora_is_read_by_diffusers_and_peft(family, pipeline, tmp_path):
    name, folder = family
    ours = methods.attach(bases.load_denoiser(folder), "lora", {"rank": 2}, 0)
    with torch.no_grad():
        for parameter in ours.trainable.values():
            parameter.add_(0.5)
    methods.save(ours, tmp_path / "lora" / "adapter.safetensors", {})
    written = export(tmp_path / "lora", tmp_path / "out")
    wanted = drawn_by_us(ours.model, folder)
    by_peft = bases.load_denoiser(folder)
    import_peft().PeftModel.from_pretrained(by_peft, tmp_path / "out")  # in place
    assert np.abs(drawn_by_us(by_peft, folder).astype(int) - wanted).max() <= 1
    before = drawn_by(pipeline, folder)
    assert (wanted != before).any()
    if name == "pixart":  # diffusers has no loader for it, and there is no file for one
        assert len(written) == 2 and not hasattr(pipeline, "load_lora_weights")
        return
    pipeline.load_lora_weights(tmp_path / "out")
    found = drawn_by(pipeline, folder)
    pipeline.unload_lora_weights()
    assert np.abs(found.astype(int) - wanted).max() <= 1


def test_flux_without_a_guidance_to_be_told_is_guided_away_from_the_empty_caption(tmp_path):
    """As FLUX.1-schnell, whose pipeline calls this `true_cfg_scale`."""
    folder = pipelines.flux(tmp_path / "own", guidance_embeds=False)
    pipeline = diffusers.DiffusionPipeline.from_pretrained(folder, local_files_only=True)
    ours = drawn_by_us(bases.load_denoiser(folder), folder)
    assert np.abs(ours.astype(int) - drawn_by(pipeline, folder)).max() <= 1


def edited(folder, out, file, **changes):
    shutil.copytree(folder, out)
    path = out / file
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    return out


SD3_EDITS = {
    "diffusion": (
        "scheduler/scheduler_config.json", {"_class_name": "DDPMScheduler"},
        "DDPMScheduler; allowed: FlowMatchEulerDiscreteScheduler",
    ),
    "random solver": (
        "scheduler/scheduler_config.json", {"stochastic_sampling": True},
        "stochastic_sampling: true; allowed: false",
    ),
    "no shift": ("vae/config.json", {"shift_factor": None}, "shift_factor: None; allowed: a num"),
    "no text encoder": ("model_index.json", {"text_encoder_2": [None, None]}, "no text_encoder_2"),
    "a stranger": (
        "model_index.json", {"text_encoder_4": ["transformers", "T5EncoderModel"]},
        "text_encoder_4: T5EncoderModel; allowed: a pipeline without it",
    ),
    "no limit": (
        "tokenizer/tokenizer_config.json", {"model_max_length": None},
        "model_max_length: None; allowed: a number of tokens",
    ),
}  # fmt: skip


# Of the other families: file, change, problem.
EDITS = {
    "flux": [
        ("vae/config.json", {"sample_size": 15}, "sample_size: 15; allowed: .* a multiple of 4"),
        ("vae/config.json", {"latent_channels": 8}, "in_channels: 16; allowed: 32, .* of 2x2 lat"),
        ("transformer/config.json", {"patch_size": 2}, "patch_size: 2; allowed: 1"),
        (
            "scheduler/scheduler_config.json", {"_class_name": "DPMSolverMultistepScheduler"},
            "DPMSolverMultistepScheduler; allowed: FlowMatchEulerDiscreteScheduler$",
        ),
    ],
    "sana": [
        ("transformer/config.json", {"guidance_embeds": True}, "allowed: false, no Sana-Sprint"),
        ("transformer/config.json", {"timestep_scale": 0.001}, "timestep_scale: 0.001; allowed: 1"),
        (
            "scheduler/scheduler_config.json", {"use_flow_sigmas": False},
            "use_flow_sigmas: False; allowed: True",
        ),
        (
            "scheduler/scheduler_config.json", {"algorithm_type": "sde-dpmsolver++"},
            "algorithm_type: 'sde-dpmsolver[+]+'; allowed: 'dpmsolver[+]+'",
        ),
        (
            "model_index.json", {"vae": ["diffusers", "AutoencoderKL"]},
            "_class_name: AutoencoderKL; allowed: AutoencoderDC",
        ),
    ],
    "flux2": [
        ("transformer/config.json", {"guidance_embeds": True}, "allowed: false, FLUX.2-klein"),
        ("vae/config.json", {"sample_size": 18}, "sample_size: 18; allowed: .* a multiple of 4"),
    ],
    "zimage": [
        ("transformer/config.json", {"siglip_feat_dim": 8}, "allowed: null, no form that edits"),
        ("transformer/config.json", {"all_patch_size": [2, 4]}, "all_patch_size: .*allowed: .2."),
        ("vae/config.json", {"sample_size": 18}, "sample_size: 18; allowed: .* a multiple of 4"),
    ],
    "qwenimage": [
        ("transformer/config.json", {"zero_cond_t": True}, "allowed: false, not a form that edits"),
        ("transformer/config.json", {"out_channels": 3}, "out_channels: 3; allowed: 4, or 8"),
        ("transformer/config.json", {"patch_size": 1}, "patch_size: 1; allowed: 2, as latents"),
        ("vae/config.json", {"latents_std": [1.0]}, "latents_std: .1.0.; allowed: a list, a"),
        ("vae/config.json", {"latents_mean": None}, "latents_mean: None; allowed: a list"),
        ("vae/config.json", {"sample_size": 18}, "sample_size: 18; allowed: .* a multiple of 4"),
    ],
    "lumina2": [
        ("vae/config.json", {"shift_factor": None}, "shift_factor: None; allowed: a number"),
        ("transformer/config.json", {"cap_feat_dim": None}, "cap_feat_dim: None; allowed: a whole"),
    ],
}  # fmt: skip


def test_what_a_family_cannot_be_is_refused_by_its_key(family, tmp_path):
    for number, (file, changes, problem) in enumerate(EDITS.get(family[0], [])):
        folder = edited(family[1], tmp_path / str(number), file, **changes)
        with pytest.raises(UserError, match=problem):
            bases.resolve(folder)


@pytest.fixture(scope="module")
def sd3(tmp_path_factory):
    return pipelines.sd3(tmp_path_factory.mktemp("families") / "own")


@pytest.mark.parametrize("file, changes, problem", SD3_EDITS.values(), ids=SD3_EDITS)
def test_what_a_pipeline_cannot_be_is_refused_by_its_key(sd3, tmp_path, file, changes, problem):
    folder = edited(sd3, tmp_path / "base", file, **changes)
    with pytest.raises(UserError, match=problem):
        bases.resolve(folder)


def test_sd3_without_t5_is_told_zeros_in_its_place(sd3, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    none = {name: [None, None] for name in ("text_encoder_3", "tokenizer_3")}
    folder = edited(sd3, tmp_path / "base", "model_index.json", **none)
    for name in none:
        shutil.rmtree(folder / name)
    assert bases.problems(bases.resolve(folder), STEPS) == []
    told = bases.load_teller(folder)(["red apple"])["embeddings"]
    assert (told[:, pipelines.TOKENS :] == 0).all() and told[:, : pipelines.TOKENS].any()


def test_captions_that_a_text_encoder_cuts_are_noted(sd3):
    first, second = bases.cut_captions(sd3, ["red apple house tree"])
    assert "cut to the 6 tokens that the text encoder reads" in first
    assert "the text encoder 2 reads" in second


# --- positions ----------------------------------------------------------------------------


def joint_forward(block, at, h, c, temb):
    """A block of two streams from its paper (2403.03206, figure 2), position by position."""
    import torch.nn.functional as F

    def norm(x):
        return F.layer_norm(x, x.shape[-1:], eps=1e-6)

    dim, emb = h.shape[-1], F.silu(temb)
    own = block.norm1.linear(emb)[:, None].split(dim, -1)
    shift_1, scale_1, gate_1, shift_2, scale_2, gate_2 = own[:6]
    h, c = at("SA_in", h), at("CA_c", c)
    text = block.norm1_context.linear(emb)[:, None].split(dim, -1)
    shift, scale = text[:2] if block.ff_context is not None else (text[1], text[0])
    attended, of_text = block.attn(
        norm(h) * (1 + scale_1) + shift_1, encoder_hidden_states=norm(c) * (1 + scale) + shift
    )
    after = h + at("SA_out", gate_1 * attended)
    if block.attn2 is not None:
        after = after + own[8] * block.attn2(norm(h) * (1 + own[7]) + own[6])
    h = at("FFN_in", after)
    fed = block.ff(norm(h) * (1 + scale_2) + shift_2)
    h = at("Trans_out", h + at("FFN_out", gate_2 * fed))
    if block.ff_context is None:
        return None, h
    c = c + text[2] * of_text
    return c + text[5] * block.ff_context(norm(c) * (1 + text[4]) + text[3]), h


class Positions:
    """Visits the positions in order; adds at ``target`` what ``delta`` makes of ``source``."""

    def __init__(self, delta, source, target):
        self.delta, self.source, self.target, self.seen = delta, source, target, {}

    def __call__(self, name, tensor):
        self.seen[name] = tensor
        return tensor + self.delta(self.seen[self.source]) if name == self.target else tensor


JOINT_CELLS = methods.get("adapter").legal_cells("sd3")


def sd3_inputs(batch=2):
    g = torch.Generator().manual_seed(1)
    return {
        "hidden_states": torch.randn(batch, 4, 8, 8, generator=g),
        "timestep": torch.tensor([3.0, 700.0])[:batch],
        "encoder_hidden_states": torch.randn(batch, 5, 28, generator=g),
        "pooled_projections": torch.randn(batch, 24, generator=g),
    }


def test_joint_blocks_have_the_positions_of_the_image_and_of_the_text():
    positions = ["SA_in", "SA_out", "FFN_in", "FFN_out", "Trans_out"]
    outputs = ["SA_in", "FFN_in", "Trans_out"]
    cells = [(i, o) for i in positions for o in outputs if positions.index(o) >= positions.index(i)]
    assert sorted(JOINT_CELLS) == sorted([*cells, ("CA_c", "CA_c")])
    with pytest.raises(UserError, match="a Stable Diffusion 3 has no cross-attention"):
        methods.attach(
            pipelines.sd3_denoiser(), "adapter", {"input": "CA_in", "output": "FFN_in"}, 0
        )


@pytest.mark.parametrize("cell", JOINT_CELLS, ids="-".join)
def test_adapters_reach_the_positions_of_joint_blocks(cell):
    base = pipelines.sd3_denoiser()
    with torch.no_grad():
        for p in base.parameters():  # gates far from zero and one
            p.add_(0.2 * torch.randn(p.shape, generator=torch.Generator().manual_seed(p.numel())))
    ours = copy.deepcopy(base)
    own = {"input": cell[0], "output": cell[1], "width": 3, "init": "default"}
    methods.attach(ours, "adapter", own, seed=0)
    for path, block in base.named_modules():
        if type(block).__name__ != "JointTransformerBlock":
            continue

        def forward(hidden_states, encoder_hidden_states, temb, _block=block, _path=path, **_):
            delta = ours.get_submodule(f"{_path}.adapter")
            at = Positions(delta, *cell)
            return joint_forward(_block, at, hidden_states, encoder_hidden_states, temb)

        block.forward = forward
    with torch.no_grad():
        found, wanted = ours(**sd3_inputs()).sample, base(**sd3_inputs()).sample
        plain = pipelines.sd3_denoiser()(**sd3_inputs()).sample
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)
    assert (found - plain).abs().max() > 1e-2


def flux_forward(block, at, h, c, temb, rope):
    """FLUX.1's blocks, position by position; Stable Diffusion 3's, and then both streams as one."""
    import torch.nn.functional as F

    def norm(x):
        return F.layer_norm(x, x.shape[-1:], eps=1e-6)

    dim, emb = h.shape[-1], F.silu(temb)
    h, c = at("SA_in", h), at("CA_c", c)
    if type(block).__name__ == "FluxSingleTransformerBlock":
        both = torch.cat([c, at("FFN_in", h)], 1)
        shift, scale, gate = block.norm.linear(emb)[:, None].split(dim, -1)
        normed = norm(both) * (1 + scale) + shift
        fed = F.gelu(block.proj_mlp(normed), approximate="tanh")
        attended = block.attn(normed, image_rotary_emb=rope)
        weights = block.proj_out.weight.split([dim, fed.shape[-1]], 1)
        out = attended @ weights[0].T + fed @ weights[1].T + block.proj_out.bias
        out = both + gate * out
        return out[:, : c.shape[1]], at("Trans_out", out[:, c.shape[1] :])
    shift_1, scale_1, gate_1, shift_2, scale_2, gate_2 = (
        block.norm1.linear(emb)[:, None].split(dim, -1)
    )  # fmt: skip
    text = block.norm1_context.linear(emb)[:, None].split(dim, -1)
    attended, of_text = block.attn(
        norm(h) * (1 + scale_1) + shift_1,
        encoder_hidden_states=norm(c) * (1 + text[1]) + text[0],
        image_rotary_emb=rope,
    )
    h = at("FFN_in", h + at("SA_out", gate_1 * attended))
    fed = block.ff(norm(h) * (1 + scale_2) + shift_2)
    h = at("Trans_out", h + at("FFN_out", gate_2 * fed))
    c = c + text[2] * of_text
    return c + text[5] * block.ff_context(norm(c) * (1 + text[4]) + text[3]), h


def flux2_forward(block, at, h, c, modulation, of_text, rope):
    """FLUX.2's blocks: FLUX.1's, modulated from outside; its single blocks get all tokens as one,
    and one layer makes queries, keys, values and the feed-forward's units of them."""
    import torch.nn.functional as F

    def norm(x):
        return F.layer_norm(x, x.shape[-1:], eps=1e-6)

    def swiglu(x):
        gate, units = x.chunk(2, -1)
        return F.silu(gate) * units

    dim = h.shape[-1]
    h = at("SA_in", h)
    if type(block).__name__ == "Flux2SingleTransformerBlock":
        h = at("FFN_in", h)
        shift, scale, gate = modulation[:, None].split(dim, -1)
        return at("Trans_out", h + gate * block.attn(norm(h) * (1 + scale) + shift,
                                                     image_rotary_emb=rope))  # fmt: skip
    c = at("CA_c", c)
    shift_1, scale_1, gate_1, shift_2, scale_2, gate_2 = modulation[:, None].split(dim, -1)
    text = of_text[:, None].split(dim, -1)
    attended, by_text = block.attn(
        norm(h) * (1 + scale_1) + shift_1,
        encoder_hidden_states=norm(c) * (1 + text[1]) + text[0],
        image_rotary_emb=rope,
    )
    h = at("FFN_in", h + at("SA_out", gate_1 * attended))
    units = swiglu(block.ff.linear_in(norm(h) * (1 + scale_2) + shift_2))
    h = at("Trans_out", h + at("FFN_out", gate_2 * block.ff.linear_out(units)))
    c = c + text[2] * by_text
    return c + text[5] * block.ff_context(norm(c) * (1 + text[4]) + text[3]), h


def qwenimage_forward(block, at, h, c, mask, temb, rope):
    """A block of Qwen-Image (2508.02324, figure 6), position by position."""
    import torch.nn.functional as F

    def norm(x):
        return F.layer_norm(x, x.shape[-1:], eps=1e-6)

    def rows(mod):
        return mod[1](F.silu(temb))[:, None].chunk(6, -1)

    shift_1, scale_1, gate_1, shift_2, scale_2, gate_2 = rows(block.img_mod)
    text = rows(block.txt_mod)
    h, c = at("SA_in", h), at("CA_c", c)
    attended, by_text = block.attn(
        norm(h) * (1 + scale_1) + shift_1,
        encoder_hidden_states=norm(c) * (1 + text[1]) + text[0],
        encoder_hidden_states_mask=mask,
        image_rotary_emb=rope,
    )
    h = at("FFN_in", h + at("SA_out", gate_1 * attended))
    fed = block.img_mlp(norm(h) * (1 + scale_2) + shift_2)
    h = at("Trans_out", h + at("FFN_out", gate_2 * fed))
    c = c + text[2] * by_text
    return c + text[5] * block.txt_mlp(norm(c) * (1 + text[4]) + text[3]), h


def qwenimage_called(block, at, told):
    keys = ("encoder_hidden_states_mask", "temb", "image_rotary_emb")
    given = told["hidden_states"], told["encoder_hidden_states"]
    return qwenimage_forward(block, at, *given, *(told[key] for key in keys))


def flux_called(block, at, told):
    keys = ("hidden_states", "encoder_hidden_states", "temb", "image_rotary_emb")
    return flux_forward(block, at, *(told[key] for key in keys))


def flux2_called(block, at, told):
    own = told["temb_mod"] if "temb_mod" in told else told["temb_mod_img"]
    given = told["hidden_states"], told["encoder_hidden_states"], own, told.get("temb_mod_txt")
    return flux2_forward(block, at, *given, told["image_rotary_emb"])


DOUBLE = {"flux": flux_called, "flux2": flux2_called, "qwenimage": qwenimage_called}
# Of single blocks, which have no stream between their branches.
IN_SINGLE = [("SA_in", "SA_in"), ("SA_in", "Trans_out"), ("FFN_in", "Trans_out"),
             ("Trans_out", "Trans_out")]  # fmt: skip


@pytest.mark.parametrize("cell", methods.get("adapter").legal_cells("flux"), ids="-".join)
@pytest.mark.parametrize("name", DOUBLE)
def test_adapters_reach_the_positions_of_both_kinds_of_blocks_of_flux(name, cell):
    family, inputs = bases.FAMILIES[name], flux_inputs()
    if name != "flux":
        inputs = flux2_inputs() if name == "flux2" else qwenimage_inputs()
    assert cell in methods.get("adapter").legal_cells(name)
    base = getattr(pipelines, f"{name}_denoiser")()
    with torch.no_grad():
        for p in base.parameters():
            p.add_(0.2 * torch.randn(p.shape, generator=torch.Generator().manual_seed(p.numel())))
    ours, plain = copy.deepcopy(base), copy.deepcopy(base)
    own = {"input": cell[0], "output": cell[1], "width": 3, "init": "default"}
    methods.attach(ours, "adapter", own, seed=0)
    blocks = {n: m for n, m in base.named_modules() if family.block_of(m)}
    in_single = [*IN_SINGLE, *([("CA_c", "CA_c")] if name == "flux" else [])]
    wanted = {n for n in blocks if not n.startswith("single") or cell in in_single}
    assert {n for n in blocks if hasattr(ours.get_submodule(n), "adapter")} == wanted
    for path, block in blocks.items():

        def forward(_b=block, _n=path, **told):
            delta = ours.get_submodule(f"{_n}.adapter") if _n in wanted else None
            return DOUBLE[name](_b, Positions(delta, *(cell if delta else (None, None))), told)

        block.forward = forward
    with torch.no_grad():
        found, want, before = (family.predict(m, *inputs) for m in (ours, base, plain))
    torch.testing.assert_close(found, want, rtol=1e-4, atol=1e-5)
    assert (found - before).abs().max() > 1e-2


def test_where_no_block_has_both_positions_an_adapter_is_refused():
    own = {"input": "SA_out", "output": "FFN_in", "blocks": "single_transformer_blocks"}
    with pytest.raises(UserError, match="no block with SA_out and FFN_in is there"):
        methods.attach(pipelines.flux_denoiser(), "adapter", own, seed=0)
    with pytest.raises(UserError, match=r"a FLUX.1 has no cross-attention; allowed: SA_in, SA_out"):
        methods.attach(
            pipelines.flux_denoiser(), "adapter", {"input": "CA_in", "output": "FFN_in"}, seed=0
        )


def flux_inputs():
    g = torch.Generator().manual_seed(1)
    told = {
        "embeddings": torch.randn(2, 5, 28, generator=g),
        "pooled": torch.randn(2, 12, generator=g),
    }
    return torch.randn(2, 4, 8, 8, generator=g), torch.tensor([3.0, 700.0]), told


def flux2_inputs():
    g = torch.Generator().manual_seed(1)
    told = {"embeddings": torch.randn(2, 5, 12, generator=g)}
    return torch.randn(2, 16, 4, 4, generator=g), torch.tensor([3.0, 700.0]), told


def qwenimage_inputs():
    g = torch.Generator().manual_seed(1)
    told = {"embeddings": torch.randn(2, 5, 12, generator=g)}
    told["mask"] = torch.tensor([[1] * 5, [1, 1, 0, 0, 0]])
    return torch.randn(2, 4, 8, 8, generator=g), torch.tensor([3.0, 700.0]), told


def test_qwenimage_is_asked_in_training_as_by_the_script():
    """train_dreambooth_lora_qwen_image.py: packed latents, their shape in tokens, time from 0 to 1,
    the text and its mask."""
    model, pipeline = pipelines.qwenimage_denoiser(), diffusers.QwenImagePipeline
    noisy, t, told = qwenimage_inputs()
    with torch.no_grad():
        predicted = model(
            hidden_states=pipeline._pack_latents(noisy, *noisy.shape),
            encoder_hidden_states=told["embeddings"],
            encoder_hidden_states_mask=told["mask"],
            timestep=t / 1000,
            img_shapes=[(1, 4, 4)] * 2,
            return_dict=False,
        )[0]
        wanted = pipeline._unpack_latents(predicted, 8 * 8, 8 * 8, vae_scale_factor=8)[:, :, 0]
        found = bases.FAMILIES["qwenimage"].predict(model, noisy, t, told)
        longer = {"embeddings": torch.nn.functional.pad(told["embeddings"], (0, 0, 0, 3), value=9)}
        longer["mask"] = torch.nn.functional.pad(told["mask"], (0, 3))
        same = bases.FAMILIES["qwenimage"].predict(model, noisy, t, longer)
    torch.testing.assert_close(found, wanted, rtol=0, atol=0)
    torch.testing.assert_close(same, found, rtol=1e-5, atol=1e-6)  # padding counts for nothing


@pytest.mark.slow
def test_qwenimages_latents_are_the_scripts_of_one_frame_and_normalised(tmp_path):
    """Its script draws from the latents' distribution, then ``(latents - mean) / std``."""
    folder = pipelines.qwenimage(tmp_path / "own")
    vae = bases.load_vae(folder)
    images = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1
    with torch.no_grad():
        latents = vae.encode(images[:, :, None]).latent_dist
        mean, std = bases.encoded(vae, images)
        back = bases.decoded(vae, mean)
        plain = vae.decode(latents.mean).sample[:, :, 0]
    own = [torch.tensor(vae.config[k]).view(1, 4, 1, 1, 1) for k in ("latents_mean", "latents_std")]
    drawn = latents.mean + 0.3 * latents.std
    wanted = (drawn - own[0]) * (1.0 / own[1])
    for scaling, shift in (bases.load_scaling(folder), bases.scaling_of(vae)):
        found = ((mean + 0.3 * std) - shift) * scaling
        torch.testing.assert_close(found, wanted[:, :, 0], rtol=1e-5, atol=1e-6)
    assert std.min() > 0
    torch.testing.assert_close(back, plain, rtol=0, atol=0)


@pytest.mark.slow
def test_qwenimage_has_a_size_of_its_own_unless_its_autoencoder_says_one(tmp_path):
    folder = pipelines.qwenimage(tmp_path / "own")
    path = folder / "vae/config.json"
    settings = json.loads(path.read_text())
    assert bases.image_size(folder) == settings.pop("sample_size") == 16
    path.write_text(json.dumps(settings))
    assert bases.latent_shape(bases.resolve(folder)) == (4, 128, 128)


def test_flux2_is_asked_in_training_as_by_the_script():
    """train_dreambooth_lora_flux2_klein.py: the mode of the latents in squares, normalised by batch
    statistics, packed; ids of four numbers; time from 0 to 1, no guidance."""
    model, pipeline = pipelines.flux2_denoiser(), diffusers.Flux2KleinPipeline
    noisy, t, told = flux2_inputs()
    ids = pipeline._prepare_latent_ids(noisy)
    with torch.no_grad():
        predicted = model(
            hidden_states=pipeline._pack_latents(noisy),
            timestep=t / 1000,
            guidance=None,
            encoder_hidden_states=told["embeddings"],
            txt_ids=pipeline._prepare_text_ids(told["embeddings"]),
            img_ids=ids,
            return_dict=False,
        )[0]
        found = bases.FAMILIES["flux2"].predict(model, noisy, t, told)
    wanted = pipeline._unpack_latents_with_ids(predicted, ids)
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-6)


@pytest.mark.slow
def test_flux2s_latents_are_the_scripts_in_squares_and_normalised(tmp_path):
    folder, pipeline = pipelines.flux2(tmp_path / "own"), diffusers.Flux2KleinPipeline
    vae = bases.load_vae(folder)
    images = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1
    with torch.no_grad():
        mode = pipeline._patchify_latents(vae.encode(images).latent_dist.mode())
        mean, _ = bases.encoded(vae, images)
        back = bases.decoded(vae, mean)
        plain = vae.decode(vae.encode(images).latent_dist.mode()).sample
    variance = vae.bn.running_var.view(1, -1, 1, 1) + vae.config.batch_norm_eps
    wanted = (mode - vae.bn.running_mean.view(1, -1, 1, 1)) / variance.sqrt()
    scaling, shift = bases.load_scaling(folder)
    assert (scaling - 1).abs().max() > 0.2 and shift.abs().max() > 0.2
    torch.testing.assert_close((mean - shift) * scaling, wanted, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(back, plain, rtol=0, atol=0)


def test_conditions_that_half_precision_does_not_hold_are_refused():
    with pytest.raises(UserError, match="gives pooled that half precision does not hold; allowed"):
        prepare.halved({"embeddings": torch.ones(2), "pooled": torch.tensor([1.0, 7e4])})


@pytest.mark.parametrize("guidance_embeds", [True, False])
def test_flux_is_asked_in_training_as_by_the_script(guidance_embeds):
    """train_dreambooth_lora_flux.py: packed latents, ids of squares, time from 0 to 1, and where
    the model is told it guidance 1."""
    model = pipelines.flux_denoiser(guidance_embeds=guidance_embeds)
    noisy, t, told = flux_inputs()
    pipeline = diffusers.FluxPipeline
    with torch.no_grad():
        predicted = model(
            hidden_states=pipeline._pack_latents(noisy, *noisy.shape),
            timestep=t / 1000,
            guidance=torch.tensor([1.0]).expand(2) if guidance_embeds else None,
            pooled_projections=told["pooled"],
            encoder_hidden_states=told["embeddings"],
            txt_ids=torch.zeros(5, 3),
            img_ids=pipeline._prepare_latent_image_ids(2, 4, 4, "cpu", torch.float32),
            return_dict=False,
        )[0]
        wanted = pipeline._unpack_latents(predicted, 8 * 8, 8 * 8, vae_scale_factor=8)
        found = bases.FAMILIES["flux"].predict(model, noisy, t, told)
        torch.testing.assert_close(found, wanted, rtol=0, atol=0)
        if guidance_embeds:
            guided = told | {"guidance": torch.tensor([3.5, 3.5])}
            other = bases.FAMILIES["flux"].predict(model, noisy, t, guided)
            assert (other - found).abs().max() > 1e-4


def pixart_forward(block, at, h, c, mask, timestep):
    """A block from PixArt's paper (2310.00426, figure 4), position by position."""
    import torch.nn.functional as F

    def norm(x):
        return F.layer_norm(x, x.shape[-1:], eps=1e-6)

    rows = block.scale_shift_table[None] + timestep.reshape(len(timestep), 6, -1)
    shift_1, scale_1, gate_1, shift_2, scale_2, gate_2 = rows.chunk(6, dim=1)
    h = at("SA_in", h)
    h = at("CA_in", h + at("SA_out", gate_1 * block.attn1(norm(h) * (1 + scale_1) + shift_1)))
    c = at("CA_c", c)
    given = {"encoder_hidden_states": c, "attention_mask": mask}
    h = at("FFN_in", h + at("CA_out", block.attn2(h, **given)))
    fed = block.ff(norm(h) * (1 + scale_2) + shift_2)
    return at("Trans_out", h + at("FFN_out", gate_2 * fed))


def sana_forward(block, at, h, c, mask, timestep, height, width):
    """A block from Sana's paper (2410.10629, figure 5): PixArt's, with another feed-forward."""
    import torch.nn.functional as F

    def norm(x):
        return F.layer_norm(x, x.shape[-1:], eps=1e-6)

    rows = block.scale_shift_table[None] + timestep.reshape(len(timestep), 6, -1)
    shift_1, scale_1, gate_1, shift_2, scale_2, gate_2 = rows.chunk(6, dim=1)
    h = at("SA_in", h)
    h = at("CA_in", h + at("SA_out", gate_1 * block.attn1(norm(h) * (1 + scale_1) + shift_1)))
    c = at("CA_c", c)
    given = {"encoder_hidden_states": c, "attention_mask": mask}
    h = at("FFN_in", h + at("CA_out", block.attn2(h, **given)))
    image = (norm(h) * (1 + scale_2) + shift_2).reshape(len(h), height, width, -1)
    fed = block.ff(image.movedim(-1, 1)).movedim(1, -1).reshape(h.shape)
    return at("Trans_out", h + at("FFN_out", gate_2 * fed))


SINGLE = {
    "pixart": lambda block, at, h, told: pixart_forward(
        block, at, h, told["encoder_hidden_states"], told["encoder_attention_mask"],
        told["timestep"],
    ),
    "sana": lambda block, at, h, told: sana_forward(block, at, h, *told["others"][1:]),
}  # fmt: skip


@pytest.mark.parametrize("cell", methods.get("adapter").legal_cells("pixart"), ids="-".join)
@pytest.mark.parametrize("name", SINGLE)
def test_adapters_reach_the_positions_of_blocks_with_one_modulation(name, cell):
    assert cell in methods.get("adapter").legal_cells(name)
    base = getattr(pipelines, f"{name}_denoiser")()
    with torch.no_grad():
        for p in base.parameters():
            p.add_(0.2 * torch.randn(p.shape, generator=torch.Generator().manual_seed(p.numel())))
    ours, plain = copy.deepcopy(base), copy.deepcopy(base)
    own = {"input": cell[0], "output": cell[1], "width": 3, "init": "default"}
    methods.attach(ours, "adapter", own, seed=0)
    for path, block in base.transformer_blocks.named_children():

        def forward(h, *others, _b=block, _n=path, **told):
            at = Positions(ours.transformer_blocks.get_submodule(f"{_n}.adapter"), *cell)
            return SINGLE[name](_b, at, h, told | {"others": others})

        block.forward = forward
    g = torch.Generator().manual_seed(1)
    told = {"embeddings": torch.randn(2, 5, 12, generator=g)}
    told["mask"] = torch.tensor([[1] * 5, [1, 1, 0, 0, 0]])
    inputs = torch.randn(2, 4, 8, 8, generator=g), torch.tensor([3, 700]), told
    predict = bases.FAMILIES[name].predict
    with torch.no_grad():
        found, wanted, before = (predict(model, *inputs) for model in (ours, base, plain))
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)
    assert (found - before).abs().max() > 1e-2


def lumina2_forward(block, at, h, mask, rope, temb=None):
    """A block of Lumina-Image 2.0 (2503.21758, figure 3), position by position."""
    import torch.nn.functional as F

    def normed(norm, x):
        return F.rms_norm(x, x.shape[-1:], norm.weight, norm.eps)

    def attended(x):
        given = {"attention_mask": mask, "image_rotary_emb": rope}
        return block.attn(hidden_states=x, encoder_hidden_states=x, **given)

    scale_1, gate_1, scale_2, gate_2 = block.norm1.linear(F.silu(temb))[:, None].chunk(4, -1)
    h = at("SA_in", h)
    found = attended(normed(block.norm1.norm, h) * (1 + scale_1))
    h = at("FFN_in", h + at("SA_out", gate_1.tanh() * normed(block.norm2, found)))
    x = normed(block.ffn_norm1, h) * (1 + scale_2)
    ff = block.feed_forward
    fed = ff.linear_2(F.silu(ff.linear_1(x)) * ff.linear_3(x))
    return at("Trans_out", h + at("FFN_out", gate_2.tanh() * normed(block.ffn_norm2, fed)))


def lumina2_inputs():
    g = torch.Generator().manual_seed(1)
    told = {"embeddings": torch.randn(2, 5, 12, generator=g)}
    told["mask"] = torch.tensor([[1] * 5, [1, 1, 0, 0, 0]])
    return torch.randn(2, 4, 8, 8, generator=g), torch.tensor([3.0, 700.0]), told


def zimage_forward(block, at, h, mask, rope, temb=None, *_):
    """A block of Z-Image (2511.22699), position by position: Lumina's, modulated once more."""
    import torch.nn.functional as F

    def normed(norm, x):
        return F.rms_norm(x, x.shape[-1:], norm.weight, norm.eps)

    scale_1, gate_1, scale_2, gate_2 = block.adaLN_modulation(temb)[:, None].chunk(4, -1)
    h = at("SA_in", h)
    x = normed(block.attention_norm1, h) * (1 + scale_1)
    found = block.attention(x, attention_mask=mask, freqs_cis=rope)
    h = at("FFN_in", h + at("SA_out", gate_1.tanh() * normed(block.attention_norm2, found)))
    x = normed(block.ffn_norm1, h) * (1 + scale_2)
    ff = block.feed_forward
    fed = ff.w2(F.silu(ff.w1(x)) * ff.w3(x))
    return at("Trans_out", h + at("FFN_out", gate_2.tanh() * normed(block.ffn_norm2, fed)))


# Of families whose streams have text and image as one: a block written out, and the inputs.
ONE_STREAM = {
    "lumina2": (lumina2_forward, lumina2_inputs),
    "zimage": (zimage_forward, lumina2_inputs),
}


def far_from_the_start(base):
    """The model with gates far from zero and one."""
    with torch.no_grad():
        for p in base.parameters():
            p.add_(0.2 * torch.randn(p.shape, generator=torch.Generator().manual_seed(p.numel())))
    return base


@pytest.mark.parametrize("cell", methods.get("adapter").legal_cells("lumina2"), ids="-".join)
@pytest.mark.parametrize("name", ONE_STREAM)
def test_adapters_reach_the_positions_of_blocks_of_one_stream(name, cell):
    family, (forward, inputs) = bases.FAMILIES[name], ONE_STREAM[name]
    assert cell in methods.get("adapter").legal_cells(name)
    base = far_from_the_start(getattr(pipelines, f"{name}_denoiser")())
    ours, plain = copy.deepcopy(base), copy.deepcopy(base)
    own = {"input": cell[0], "output": cell[1], "width": 3, "init": "default"}
    methods.attach(ours, "adapter", own, seed=0)
    blocks = {n: m for n, m in base.named_modules() if family.block_of(m)}
    assert {n.partition(".")[0] for n in blocks} == {"noise_refiner", "layers"}
    for path, block in blocks.items():

        def written(*given, _b=block, _n=path):
            return forward(_b, Positions(ours.get_submodule(f"{_n}.adapter"), *cell), *given)

        block.forward = written
    with torch.no_grad():
        found, want, before = (family.predict(m, *inputs()) for m in (ours, base, plain))
    torch.testing.assert_close(found, want, rtol=1e-4, atol=1e-5)
    assert (found - before).abs().max() > 1e-2


def test_lumina2_is_asked_in_training_as_by_the_script():
    """train_dreambooth_lora_lumina2.py: ``sigma·image + (1 - sigma)·noise``, told sigma, learns
    ``image - noise``. Sigma is the image's share there, the noise's here."""
    model, family = pipelines.lumina2_denoiser(), bases.FAMILIES["lumina2"]
    clean, _, told = lumina2_inputs()
    noise, t = torch.randn(clean.shape, generator=torch.Generator().manual_seed(2)), [300.0, 900.0]
    sigmas = (1 - torch.tensor(t) / 1000).reshape(-1, 1, 1, 1)
    with torch.no_grad():
        predicted = model(
            hidden_states=(1.0 - sigmas) * noise + sigmas * clean,
            encoder_hidden_states=told["embeddings"],
            encoder_attention_mask=told["mask"],
            timestep=sigmas.flatten(),
            return_dict=False,
        )[0]
        process, t = FlowMatching({"shift": 6.0}), torch.tensor(t)
        noisy = process.mix(clean, noise, t)
        found = family.predict(model, noisy, t, told)
        losses = process.losses(found, clean, noise, noisy, t, process.weights(t, None))
    wanted = (predicted - (clean - noise)).square().mean((1, 2, 3))
    torch.testing.assert_close(losses, wanted, rtol=1e-5, atol=1e-6)


def test_zimage_is_asked_in_training_as_by_the_script():
    """train_dreambooth_lora_z_image.py: lists of images of one frame and of texts without padding,
    ``(1000 - t) / 1000``, the prediction negated; learns ``noise - image``."""
    model, (clean, _, told) = pipelines.zimage_denoiser(), lumina2_inputs()
    noise = torch.randn(clean.shape, generator=torch.Generator().manual_seed(2))
    t = torch.tensor([300.0, 900.0])
    sigmas = (t / 1000).reshape(-1, 1, 1, 1)
    noisy = (1.0 - sigmas) * clean + sigmas * noise
    with torch.no_grad():
        predicted = model(
            list(noisy.unsqueeze(2).unbind(dim=0)),
            (1000 - t) / 1000,
            [told["embeddings"][0], told["embeddings"][1, :2]],
            return_dict=False,
        )[0]
        predicted = -torch.stack(predicted, dim=0).squeeze(2)
        process = FlowMatching({"shift": 3.0})
        found = bases.FAMILIES["zimage"].predict(model, process.mix(clean, noise, t), t, told)
        losses = process.losses(found, clean, noise, noisy, t, process.weights(t, None))
    wanted = (predicted - (noise - clean)).square().mean((1, 2, 3))
    torch.testing.assert_close(losses, wanted, rtol=1e-5, atol=1e-6)


MEANS = {"flux2", "zimage"}  # whose scripts take the mode of the latents' distribution


def test_the_mean_of_latents_alone_is_learnt_where_the_script_takes_it(family):
    name, folder = family
    images = np.random.default_rng(0).integers(0, 256, (2, 16, 16, 3), dtype=np.uint8)
    mean, std = encoding.encode_images(folder, images)
    with torch.no_grad():
        wanted, _ = bases.encoded(bases.load_vae(folder), bases.to_model(images))
    torch.testing.assert_close(mean, wanted, rtol=1e-5, atol=1e-6)
    assert std.any() != (name in MEANS or name == "sana")  # whose latents have no distribution


@pytest.mark.parametrize("name, text", [("lumina2", 5), ("zimage", 5)])
def test_of_a_stream_with_text_the_image_is_looked_at(name, text):
    """As the model itself cuts it out at its end: the ratio of its blocks is of the image alone."""
    family, model = bases.FAMILIES[name], getattr(pipelines, f"{name}_denoiser")()
    noisy, t, told = ONE_STREAM[name][1]()
    tokens, seen = family.image_tokens(model.config, 8), {}
    for path, block in model.named_modules():
        if form := family.block_of(block):

            def keep(_, args, output, _n=path, _f=form):
                seen[_n] = args[0], family.of_image(_f, args[0], told, tokens)

            block.register_forward_hook(keep)
    with torch.no_grad():
        family.predict(model, noisy, t, told)
        told = told | {"embeddings": told["embeddings"] + 1}
        before = dict(seen)
        family.predict(model, noisy, t, told)
    assert before.keys() == seen.keys()
    # Before the first block that both enter, text has changed nothing of the image.
    for path in ("noise_refiner.0", "layers.0"):
        whole, image = zip(before[path], seen[path], strict=True)
        assert image[0].shape[1] == tokens and torch.equal(*image)
    assert not torch.equal(*whole) and whole[0].shape[1] >= tokens + text


CHECKPOINTED = [
    ("sd3", "CA_c", "CA_c"), ("sd3", "SA_in", "FFN_in"), ("pixart", "SA_out", "CA_in"),
    ("flux", "CA_c", "CA_c"), ("flux", "SA_in", "Trans_out"), ("sana", "FFN_out", "Trans_out"),
    ("flux2", "FFN_in", "FFN_in"), ("flux2", "SA_out", "Trans_out"),
    ("qwenimage", "CA_c", "CA_c"), ("qwenimage", "SA_out", "FFN_in"),
    ("lumina2", "SA_out", "FFN_in"), ("lumina2", "FFN_in", "FFN_in"),
    ("zimage", "SA_in", "SA_in"), ("zimage", "FFN_out", "Trans_out"),
]  # fmt: skip


@pytest.mark.parametrize("case", CHECKPOINTED, ids="-".join)
def test_adapters_learn_the_same_where_blocks_are_computed_again(case):
    """Gradient checkpointing hands blocks their inputs by position, and calls them twice."""
    name, source, target = case
    model = getattr(pipelines, f"{name}_denoiser")().requires_grad_(False)
    own = {"input": source, "output": target, "width": 3, "init": "default"}
    trained = list(methods.attach(model, "adapter", own, seed=0).trainable.values())
    inputs = sd3_inputs()
    noisy, t, text = (inputs[k] for k in ("hidden_states", "timestep", "encoder_hidden_states"))
    told = {"embeddings": text, "pooled": inputs["pooled_projections"]}
    if name in ("pixart", "sana"):
        told = {"embeddings": text[..., :12], "mask": torch.ones(2, 5, dtype=torch.long)}
    if name.startswith("flux"):
        noisy, t, told = flux_inputs() if name == "flux" else flux2_inputs()
    if name == "qwenimage":
        noisy, t, told = qwenimage_inputs()
    if name in ONE_STREAM:
        noisy, t, told = ONE_STREAM[name][1]()

    def gradients():
        loss = bases.FAMILIES[name].predict(model, noisy, t, told).square().mean()
        return torch.autograd.grad(loss, trained)

    plain = gradients()
    model.enable_gradient_checkpointing()
    for found, wanted in zip(gradients(), plain, strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-8)
    assert all(gradient.any() for gradient in plain)


# --- counted and costed at full size ------------------------------------------------------

# Of the published models, from their cards and files.
PARAMETERS = {
    "sdxl": 2_567_463_684,
    "pixart-sigma": 0.61e9,
    "sd3-medium": 2.03e9,
    "sd35-medium": 2.24e9,
    "sd35-large": 8.06e9,
    "flux-dev": 11.9e9,
    "sana-1.6b": 1.6e9,
    "flux2-klein-4b": 3.88e9,
    "lumina-image-2": 2.61e9,
    "qwen-image": 20_430_401_088,
    "z-image": 6.15e9,
}


KNOWN = {
    "stabilityai/stable-diffusion-xl-base-1.0": "sdxl",
    "PixArt-alpha/PixArt-Sigma-XL-2-1024-MS": "pixart",
    "stabilityai/stable-diffusion-3.5-medium": "sd3",
    "black-forest-labs/FLUX.1-schnell": "flux",
    "Efficient-Large-Model/Sana_1600M_512px_diffusers": "sana",
    "black-forest-labs/FLUX.2-klein-base-4B": "flux2",
    "Alpha-VLLM/Lumina-Image-2.0": "lumina2",
    "Qwen/Qwen-Image": "qwenimage",
    "Tongyi-MAI/Z-Image-Turbo": "zimage",
}


@pytest.mark.parametrize("base, name", KNOWN.items())
def test_well_known_bases_are_known_without_a_copy(base, name):
    family = bases.family(base)
    assert family.name == name and footprint.text_tokens(base) == family.tokens


@pytest.mark.parametrize("name, billions", PARAMETERS.items())
def test_full_size_is_counted_without_weights(name, billions, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    found = counting.count(name, "lora", {"rank": 8})
    assert found["total"] == pytest.approx(billions, rel=0.03)
    if name == "flux-dev":  # both streams' q, k and v in 19 blocks, those of one in 38
        assert found["trainable"] == (19 * 6 + 38 * 3) * 8 * 2 * 3072
    if name == "flux2-klein-4b":  # in 20 blocks one layer of 3 * 3072 and twice 3 * 3072 outputs
        assert found["trainable"] == 5 * 6 * 8 * 2 * 3072 + 20 * 8 * 10 * 3072
    if name == "qwen-image":  # the last text query leads nowhere
        assert found["trainable"] == (60 * 6 - 1) * 8 * 2 * 3072
    if name == "z-image":  # 30 blocks and 2 + 2 before
        assert found["trainable"] == 34 * 3 * 8 * 2 * 3840
    if name == "lumina-image-2":  # 8 of 24 heads for keys and values; 26 blocks and 2 + 2 before
        assert found["trainable"] == 30 * 8 * (2 * 2304 + 2 * (2304 + 768))
    if not name.startswith("sd3"):
        return
    config = bases.named_config(name)
    dim, blocks = config["caption_projection_dim"], config["num_layers"]
    # q, k and v of both streams, and of second attentions; the last text query leads nowhere.
    layers = 6 * blocks - 1 + 3 * len(config["dual_attention_layers"])
    assert found["trainable"] == layers * 8 * 2 * dim


@pytest.mark.parametrize("name, times", [("dev", 1), ("schnell", 2)])
def test_a_model_that_is_told_the_guidance_is_asked_once_for_each_step(name, times):
    study = SimpleNamespace(base=f"black-forest-labs/FLUX.1-{name}")
    point = SimpleNamespace(sample={"steps": 10, "guidance": 3.5}, control=None)
    assert cost.passes(point, cost.distilled(study)) == times * 10


# Of transformers of which each token passes weights of one size: their width, the weights of a
# block in squares of it, and how many blocks see how many tokens: an image of 1024 px, and text.
WRITTEN_OUT = {
    "sd3-medium": (1536, 12, [(24, 64**2 + 333)]),
    "sd35-large": (2432, 12, [(38, 64**2 + 333)]),
    "flux-dev": (3072, 12, [(19 + 38, 64**2 + 512)]),
    "flux2-klein-4b": (3072, 13, [(5 + 20, 64**2 + 512)]),
    "lumina-image-2": (2304, 2 + 2 / 3 + 12, [(26, 64**2 + 256), (2, 64**2), (2, 256)]),
    "qwen-image": (3072, 12, [(60, 64**2 + 512)]),
    "z-image": (3840, 12, [(30, 64**2 + 512), (2, 64**2), (2, 512)]),
}


@pytest.mark.parametrize("name", WRITTEN_OUT)
def test_full_size_is_costed_without_weights(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    found = footprint.measure(name, "lora", {"rank": 8}, batch=1, precision="bf16")
    width, weights, seen = WRITTEN_OUT[name]
    # A multiply-add of each weight and token is two FLOPs; attention has two of tokens by tokens.
    wanted = sum(n * (2 * k * weights * width**2 + 4 * k**2 * width) for n, k in seen)
    assert found.forward == pytest.approx(wanted, rel=0.01)
    assert 1.5 * found.forward < found.step < 3.5 * found.forward
    assert found.activations > 0
