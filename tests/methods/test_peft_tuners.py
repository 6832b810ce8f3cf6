"""The method `peft`: every tuner of the installed peft, with peft's own settings."""

from __future__ import annotations

import copy
import dataclasses
import subprocess
import sys
import typing

import pytest
import tiny
import torch
from peft_cases import CASES

from fitspace import methods, training
from fitspace.core.errors import UserError
from fitspace.core.imports import import_peft
from fitspace.methods import tuners
from fitspace.methods.export import export
from fitspace.plan.points import legal_cells
from fitspace.study import Arm

peft = import_peft()
CONFIGURATIONS = {t.name: kind for t, kind in peft.mapping.PEFT_TYPE_TO_CONFIG_MAPPING.items()}
every_case = pytest.mark.parametrize("case", CASES, ids=lambda case: case.peft_type)
# Tuners that share layers, replace weights, start elsewhere than at nothing, are not linear, cannot
# be merged. The others' tests are slow, but that each starts, trains and leaves.
QUICK = ("VERA", "SHIRA", "FOURIERFT", "HRA", "BEFT")


def quick_first(cases):
    return pytest.mark.parametrize(
        "case",
        [
            pytest.param(c, id=c.peft_type, marks=[] if c.peft_type in QUICK else pytest.mark.slow)
            for c in cases
        ],
    )


INPUTS = (
    torch.randn(2, 4, 4, 4, generator=torch.Generator().manual_seed(1)),
    torch.tensor([3, 700]),
    torch.randn(2, 5, 12, generator=torch.Generator().manual_seed(2)),
)


@pytest.fixture(scope="module")
def base():
    return tiny.unet()


def attached(case, base, seed=0, **more):
    own = {"peft_type": case.peft_type, **case.settings, **more}
    return methods.attach(copy.deepcopy(base), "peft", own, seed)


@torch.no_grad()
def answer(model):
    return model(*INPUTS).sample


def step(attachment, steps=2):
    """Train a little; the loss of each step."""
    optimizer = torch.optim.AdamW(attachment.trainable.values(), lr=0.02)
    losses = []
    for _ in range(steps):
        optimizer.zero_grad()
        loss = attachment.model(*INPUTS).sample.square().mean()
        loss.backward()
        losses.append(loss.item())
        optimizer.step()
    return losses


def test_every_tuner_of_the_installed_peft_is_offered_or_refused_with_a_reason():
    assert {case.peft_type for case in CASES} == set(tuners.TUNERS)
    assert tuners.TUNERS.keys() | tuners.REFUSED.keys() == CONFIGURATIONS.keys()
    assert not tuners.TUNERS.keys() & tuners.REFUSED.keys()


@pytest.mark.parametrize("name", tuners.TUNERS)
def test_fields_are_those_of_pefts_dataclass(name):
    kind = CONFIGURATIONS[name]
    theirs = {field.name: field for field in dataclasses.fields(kind)}
    hints = typing.get_type_hints(kind)
    for field, own in tuners.fields(name).items():
        assert theirs[field].default == own.default
        said = str(hints[field])
        assert all(t.__name__ in said for t in own.types)
        assert all(repr(choice) in said for choice in own.choices)
    inherited = {field.name for field in dataclasses.fields(peft.PeftConfig)}
    for field in theirs.keys() - tuners.fields(name).keys() - tuners.OURS.keys() - inherited:
        assert not isinstance(theirs[field].default, bool | int | float | str), field
    assert set(tuners.seeds(name)) <= theirs.keys()


@every_case
def test_start_training_and_removal(case, base, tmp_path):
    before = answer(base)
    attachment = attached(case, base)
    assert attachment.identity_at_start == case.identity
    change = (answer(attachment.model) - before).abs().max()
    assert change < 1e-5 if case.identity else change > 1e-5
    frozen = {n: t for n, t in attachment.model.state_dict(keep_vars=True).items()
              if not t.requires_grad}  # fmt: skip
    held = {n: t.clone() for n, t in frozen.items()}
    losses = step(attachment)
    assert losses[1] < losses[0]
    assert all(torch.equal(held[n], t) for n, t in frozen.items())
    after = answer(attachment.model)
    assert (after - before).abs().max() > 1e-4
    path = tmp_path / "adapter.safetensors"
    methods.save(attachment, path, {})
    attachment.remove()
    assert torch.equal(answer(attachment.model), before)
    assert list(attachment.model.state_dict()) == list(base.state_dict())

    merged = methods.load(attachment.model, path)
    if case.merges:
        merged.merge()
        assert list(merged.model.state_dict()) == list(base.state_dict())
        torch.testing.assert_close(answer(merged.model), after, rtol=0, atol=2e-4)
    else:
        with pytest.raises(UserError, match="cannot be merged"):
            merged.merge()


@quick_first(CASES)
def test_a_file_has_all_that_another_seed_would_draw_otherwise(case, base, tmp_path):
    attachment = attached(case, base, seed=3)
    step(attachment)
    path = tmp_path / "adapter.safetensors"
    methods.save(attachment, path, {})
    fresh = copy.deepcopy(base)
    loaded = methods.load(fresh, path)  # attaches with seed 0
    assert torch.equal(answer(fresh), answer(attachment.model))
    assert loaded.settings.own == case.settings
    loaded.remove()
    if not case.strength:
        with pytest.raises(UserError, match="not linear"):
            methods.load(fresh, path, 0.5)
        return
    methods.load(fresh, path, 0.0)
    assert torch.allclose(answer(fresh), answer(base), atol=1e-5)


@quick_first(CASES)
def test_another_files_values_are_all_that_differs(case, base, tmp_path):
    paths, model = {}, copy.deepcopy(base)
    for seed in (3, 4):
        attachment = attached(case, base, seed)
        step(attachment)
        path = tmp_path / f"{seed}.safetensors"
        methods.save(attachment, path, {})
        paths[path] = answer(attachment.model)
    loaded = methods.load(model, next(iter(paths)))
    for path in (*reversed(paths), *paths):
        assert methods.load(model, path, instead_of=loaded) is loaded
        assert torch.equal(answer(model), paths[path])
    loaded.remove()
    assert torch.equal(answer(model), answer(base))


# Tuners whose strength turns an angle or a generator, or whose change no weight can hold.
TURNED = ("BEFT", "BOFT", "OFT", "PEANUT", "ROAD")


@quick_first([case for case in CASES if case.strength and case.peft_type not in TURNED])
def test_weights_change_in_proportion_to_the_strength(case, base, tmp_path):
    attachment, path, found = attached(case, base, seed=3), tmp_path / "a.safetensors", {}
    step(attachment)
    methods.save(attachment, path, {})
    for share in (0.3, 1.0):
        merged = copy.deepcopy(base)
        methods.load(merged, path, share).merge()
        found[share] = dict(merged.named_parameters())
    for name, before in base.named_parameters():
        expected = before + 0.3 * (found[1.0][name] - before)
        assert torch.allclose(found[0.3][name], expected, atol=1e-5), name


@quick_first(CASES)
def test_start_follows_from_the_seed_alone(case, base):
    before = torch.get_rng_state()
    one, same, other = (attached(case, base, seed) for seed in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), before)
    held = [{**a.trainable, **a.frozen} for a in (one, same, other)]
    assert all(torch.equal(value, held[1][name]) for name, value in held[0].items())
    drawn = [name for name, value in held[0].items() if not torch.equal(value, held[2][name])]
    constant = ("BEFT", "BOFT", "IA3", "LN_TUNING", "MISS", "OFT", "OSF",
                "PSOFT", "ROAD", "SUPERTUNING")  # fmt: skip
    assert bool(drawn) == (case.peft_type not in constant)


@quick_first(CASES)
def test_parameters_are_counted_without_weights(case, base):
    with torch.device("meta"):
        empty = type(base).from_config(base.config)
    own = {"peft_type": case.peft_type, **case.settings}
    found = methods.attach(empty, "peft", own, seed=0).trainable
    real = attached(case, base).trainable
    assert {n: p.shape for n, p in found.items()} == {n: p.shape for n, p in real.items()}
    assert all(p.is_meta for p in found.values())


REFUSED = {
    "a tuner of tokens": ({"peft_type": "PROMPT_TUNING"}, "unet", "tokens of a language model"),
    "no tuner": ({"peft_type": "VERRA"}, "unet", "'VERRA'; allowed: BEFT"),
    "another tuner's field": ({"peft_type": "VERA", "n_frequency": 3}, "unet", "has no such field"),
    "a type": ({"peft_type": "VERA", "r": 1.5}, "unet", "r: 1.5; allowed: int"),
    "a truth as a number": ({"peft_type": "VERA", "r": True}, "unet", "r: True; allowed: int"),
    "a choice": ({"peft_type": "LORA", "init_lora_weights": "eva"}, "unet", "allowed: bool, gauss"),
    "peft's own rule": ({"peft_type": "VERA", "r": 0}, "unet", "peft refuses|peft cannot"),
    "a block that does not divide": ({"peft_type": "C3A", "block_size": 5}, "unet", "C3A: peft"),
    "norms of a DiT": ({"peft_type": "LN_TUNING"}, "dit", "no parameters"),
    "convolutions": ({"peft_type": "VERA", "target": "resnets"}, "unet", "only with peft_type"),
    "convolutions of a DiT": ({"peft_type": "LORA", "target": "resnets"}, "dit", "no ResNet"),
    "nothing": (
        {"peft_type": "GLORA", "config_A_B": "none", "config_C": "none", "config_D_E": "none"},
        "unet", "nothing to train",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("own", "family", "said"), REFUSED.values(), ids=REFUSED)
def test_what_cannot_be_built_says_why_and_leaves_the_model(own, family, said):
    model = tiny.unet() if family == "unet" else tiny.tiny_dit()
    names = list(model.state_dict())
    with pytest.raises(UserError, match=said):
        methods.attach(model, "peft", own, seed=0)
    assert list(model.state_dict()) == names
    methods.attach(model, "none", {}, seed=0)


@quick_first([case for case in CASES if tuners.TUNERS[case.peft_type].convolutions])
def test_convolutions(case, base):
    attachment = attached(case, base, target="resnets")
    changed = {name.rpartition(".conv")[0] for name in attachment.trainable}
    assert len(changed) == sum(
        "resnets" in n and n.endswith("conv1") for n, _ in base.named_modules()
    )
    torch.testing.assert_close(answer(attachment.model), answer(base), rtol=0, atol=1e-5)
    losses = step(attachment)
    assert losses[1] < losses[0]
    after = answer(attachment.model)
    attachment.merge()
    torch.testing.assert_close(answer(attachment.model), after, rtol=0, atol=1e-5)


@quick_first(CASES)
def test_peft_alone_reads_what_is_exported(case, base, tmp_path):
    attachment, path = attached(case, base, seed=3), tmp_path / "a.safetensors"
    step(attachment)
    methods.save(attachment, path, {})
    if not tuners.TUNERS[case.peft_type].exports:
        with pytest.raises(UserError, match="do not hold what"):
            export(path, tmp_path / "out")
        return
    export(path, tmp_path / "out")
    model = peft.PeftModel.from_pretrained(copy.deepcopy(base), tmp_path / "out")
    torch.testing.assert_close(answer(model), answer(attachment.model), rtol=0, atol=1e-6)


# A short form and what it stands for.
SHORT = {
    "lora": ({"rank": 2, "alpha": 3}, {"peft_type": "LORA", "r": 2, "lora_alpha": 3}),
    "loha": ({"rank": 2, "alpha": 3}, {"peft_type": "LOHA", "r": 2, "alpha": 3}),
    "lokr": ({"rank": 1, "factor": 2}, {"peft_type": "LOKR", "r": 1, "decompose_factor": 2}),
    "oft": (
        {"block_size": 4}, {"peft_type": "OFT", "oft_block_size": 4, "use_cayley_neumann": False}
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", SHORT)
def test_short_forms_are_the_same_method(name, base):
    short, long = SHORT[name]
    one = methods.attach(copy.deepcopy(base), name, short, seed=4)
    other = methods.attach(copy.deepcopy(base), "peft", long, seed=4)
    assert one.trainable.keys() == other.trainable.keys()
    assert all(torch.equal(p, other.trainable[n]) for n, p in one.trainable.items())
    assert step(one) == step(other)


@pytest.mark.parametrize(
    "own",
    [
        pytest.param({"peft_type": "PVERA", "r": 4}, id="draws-in-training"),
        pytest.param({"peft_type": "VERA", "r": 4, "vera_dropout": 0.5}, id="dropout"),
        pytest.param({"peft_type": "FOURIERFT", "n_frequency": 20}, id="places-drawn"),
    ],
)
def test_resume_is_exact(own, tmp_path):
    class Stop(Exception):
        pass

    def interrupt(number):
        if number == 4:
            raise Stop

    def fit(checkpoint, **options):
        found = methods.attach(tiny.unet(), "peft", own, seed=0)
        return training.fit(
            found.model, found.trainable, tiny.task(), tiny.process(), 0.5, tiny.SETTINGS, 0,
            checkpoint, dropouts=found.dropouts, **options,
        )  # fmt: skip

    whole = fit(tmp_path / "whole.safetensors")
    path = tmp_path / "cut.safetensors"
    with pytest.raises(Stop):
        fit(path, on_step=interrupt, checkpoint_seconds=0.0)
    resumed = fit(path)
    assert resumed.losses == whole.losses
    assert all(torch.equal(v, resumed.parameters[n]) for n, v in whole.parameters.items())


def test_a_studys_cells_are_checked_by_the_tuners_own_fields():
    arm = Arm(
        method="peft",
        settings={"peft_type": "VERA"},
        factors={"r": [2, 4], "d_initial": [0.1, "much"]},
    )
    legal, others = legal_cells(arm, "unet")
    assert legal == [{"r": 2, "d_initial": 0.1}, {"r": 4, "d_initial": 0.1}]
    assert {why for _, found in others for why in found} == {"d_initial: 'much'; allowed: float"}


def test_a_file_that_asks_for_much_memory_is_refused(tmp_path):
    attachment = methods.attach(tiny.unet(), "peft", {"peft_type": "VERA", "r": 4}, seed=0)
    attachment.settings = attachment.settings.model_copy(update={"r": 10**12})
    methods.save(attachment, tmp_path / "a.safetensors", {})
    with pytest.raises(UserError, match="r is 1000000000000; no tensor is near that size"):
        methods.load(tiny.unet(), tmp_path / "a.safetensors")


def test_checking_reads_peft_without_importing_it():
    code = (
        "import sys; from fitspace import methods;"
        "s = methods.validated('peft', {'peft_type': 'VERA', 'r': 'x'});"
        "assert methods.problems('peft', s, 'unet') == [\"r: 'x'; allowed: int\"];"
        "print(sorted({'torch', 'peft', 'diffusers'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
