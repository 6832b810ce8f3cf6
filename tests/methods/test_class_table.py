"""A DiT's table of class embeddings: new ones for a task's own classes, trained and carried."""

from __future__ import annotations

import copy
import json

import pytest
import tiny
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from fitspace import bases, methods
from fitspace.core.errors import UserError

TABLE = "transformer_blocks.0.norm1.emb.class_embedder.embedding_table.weight"
CLASSES, OWN = 3, 5  # the base's, and a task's own


@pytest.fixture(scope="module")
def base():
    return tiny.tiny_dit(classes=CLASSES)


@pytest.fixture
def model(base):
    return copy.deepcopy(base)


def run(model, label):
    generator = torch.Generator().manual_seed(1)
    latents = torch.randn(1, 4, 8, 8, generator=generator)
    with torch.no_grad():
        return model(latents, torch.tensor([3]), torch.tensor([label])).sample


def train(attachment):
    """Two AdamW steps that see every class and none."""
    optimizer = torch.optim.AdamW(attachment.trainable.values(), lr=0.02)
    labels = torch.arange(len(bases.class_table(attachment.model)[1]))
    latents = torch.randn(len(labels), 4, 8, 8, generator=torch.Generator().manual_seed(2))
    for _ in range(2):
        optimizer.zero_grad()
        output = attachment.model(latents, torch.full_like(labels, 3), labels).sample
        output.square().mean().backward()
        optimizer.step()


def assert_is_the_base(model, base):
    state = model.state_dict()
    assert state.keys() == base.state_dict().keys()
    assert all(torch.equal(state[n], v) for n, v in base.state_dict().items())
    assert bases.own_classes(model) is None
    embedder = model.transformer_blocks[0].norm1.emb.class_embedder
    assert embedder.num_classes == CLASSES
    assert torch.equal(run(model, CLASSES), run(base, CLASSES))


def test_new_table_has_a_row_for_no_class(model):
    bases.new_classes(model, OWN, seed=0)
    name, table = bases.class_table(model)
    assert name == TABLE
    assert table.shape == (OWN + 1, 8)
    assert bases.own_classes(model) == OWN
    assert len({block.norm1.emb.class_embedder for block in model.transformer_blocks}) == 1
    assert not table.requires_grad
    assert len({run(model, label).sum().item() for label in range(OWN + 1)}) == OWN + 1


def test_rows_are_drawn_by_the_seed_as_dits_authors_do(model):
    torch_state = torch.get_rng_state()
    tables = []
    for seed in (0, 0, 1):
        bases.new_classes(model, 1000, seed)
        tables.append(bases.class_table(model)[1])
    assert torch.equal(torch.get_rng_state(), torch_state)
    assert torch.equal(tables[0], tables[1])
    assert not torch.equal(tables[0], tables[2])
    assert tables[0].std().item() == pytest.approx(0.02, rel=0.05)


def test_undo_gives_the_base_back(model, base):
    undo = bases.new_classes(model, OWN, seed=0)
    undo()
    assert_is_the_base(model, base)


def test_undone_in_turn(model, base):
    first = bases.new_classes(model, OWN, seed=0)
    bases.new_classes(model, 2, seed=0)()
    assert bases.own_classes(model) == OWN
    assert len(bases.class_table(model)[1]) == OWN + 1
    first()
    assert_is_the_base(model, base)


def test_new_table_without_weights():
    model = bases.from_config("dit-xl")
    bases.new_classes(model, 200, seed=0)
    table = bases.class_table(model)[1]
    assert table.is_meta
    assert table.shape == (201, 1152)


@pytest.mark.parametrize("method", ["bitfit", "difffit", "full"])
@pytest.mark.parametrize("classes", [None, OWN, CLASSES], ids=["base's", "own", "as many"])
def test_file_carries_the_classes(base, method, classes, tmp_path):
    trained = copy.deepcopy(base)
    if classes:
        bases.new_classes(trained, classes, seed=7)
    attachment = methods.attach(trained, method, {}, seed=7)
    untrained = bases.class_table(trained)[1].detach().clone()
    train(attachment)
    learnt = bases.class_table(trained)[1]
    assert (learnt != untrained).any(dim=1).all()
    path = tmp_path / "adapter.safetensors"
    methods.save(attachment, path, {})
    assert torch.equal(load_file(path)[TABLE], learnt)

    fresh = copy.deepcopy(base)
    loaded = methods.load(fresh, path)
    assert bases.own_classes(fresh) == classes
    for label in range(len(learnt)):
        assert torch.equal(run(fresh, label), run(trained, label))
    loaded.remove()
    assert_is_the_base(fresh, base)


def test_merge_keeps_the_classes(model, tmp_path):
    bases.new_classes(model, OWN, seed=0)
    attachment = methods.attach(model, "difffit", {}, seed=0)
    train(attachment)
    learnt = [run(model, label) for label in range(OWN + 1)]
    attachment.merge()
    for label, before in enumerate(learnt):
        torch.testing.assert_close(run(model, label), before, rtol=0, atol=1e-5)
    assert not bases.class_table(model)[1].requires_grad


def test_remove_gives_the_new_table_its_first_values_back(model):
    bases.new_classes(model, OWN, seed=0)
    before = bases.class_table(model)[1].clone()
    attachment = methods.attach(model, "bitfit", {}, seed=0)
    train(attachment)
    assert not torch.equal(bases.class_table(model)[1], before)
    attachment.remove()
    assert torch.equal(bases.class_table(model)[1], before)


@pytest.mark.parametrize("trained", [True, False], ids=["trained", "frozen"])
def test_class_embedding_says_whether_the_table_is_trained(model, base, trained):
    attachment = methods.attach(model, "bitfit", {"class_embedding": trained}, seed=0)
    assert (TABLE in attachment.trainable) == trained
    train(attachment)
    table = bases.class_table(model)[1]
    assert torch.equal(table, bases.class_table(base)[1]) == (not trained)
    assert (table.grad is not None) == trained


def test_new_table_has_to_be_trained(model):
    bases.new_classes(model, OWN, seed=0)
    with pytest.raises(UserError, match=r"class_embedding: False.*allowed: True"):
        methods.attach(model, "bitfit", {"class_embedding": False}, seed=0)
    methods.attach(model, "bitfit", {}, seed=0)


def test_untied_embedders_are_tied_before_the_table_is_trained(model, base):
    for block in model.transformer_blocks:
        block.norm1.emb = copy.deepcopy(block.norm1.emb)
    methods.attach(model, "bitfit", {}, seed=0)
    assert len({id(block.norm1.emb) for block in model.transformer_blocks}) == 1
    assert [n for n, _ in model.named_parameters()] == [n for n, _ in base.named_parameters()]


def test_embedders_that_differ_are_refused(model):
    last = model.transformer_blocks[1].norm1
    last.emb = copy.deepcopy(last.emb)
    with torch.no_grad():
        last.emb.class_embedder.embedding_table.weight[0, 0] += 1
    with pytest.raises(
        UserError, match=r"transformer_blocks\.1\.norm1\.emb\.class_embedder.*differs"
    ):
        methods.attach(model, "bitfit", {}, seed=0)


@pytest.mark.parametrize("method", [m for m in methods.METHODS if m not in ("full", "none")])
def test_a_unet_has_no_class_table(method):
    required = {
        "adapter": {"input": "CA_out", "output": "FFN_in"}, "peft": {"peft_type": "LORA"},
    }.get(method, {})  # fmt: skip
    settings = methods.validated(method, {**required, "class_embedding": True})
    assert any(
        "class_embedding: has no meaning on a base of the family 'unet'" in problem
        for problem in methods.problems(method, settings, "unet")
    )


def test_new_classes_need_a_dit():
    with pytest.raises(UserError, match="UNet2DConditionModel has no classes"):
        bases.new_classes(tiny.unet(), OWN, seed=0)


# --- files that do not fit ---------------------------------------------------------------


@pytest.fixture
def path(base, tmp_path):
    trained = copy.deepcopy(base)
    bases.new_classes(trained, OWN, seed=0)
    path = tmp_path / "adapter.safetensors"
    methods.save(methods.attach(trained, "bitfit", {}, seed=0), path, {})
    return path


def rewrite(path, **changes):
    """Write other facts into the file's metadata; None leaves one out."""
    with safe_open(path, "pt") as file:
        facts = json.loads(file.metadata()["fitspace"]) | changes
    facts = {key: value for key, value in facts.items() if value is not None}
    save_file(load_file(path), path, metadata={"fitspace": json.dumps(facts)})


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"classes": OWN + 1}, r"shape \(6, 8\); the model needs \(7, 8\)"),
        ({"classes": None}, r"shape \(6, 8\); the model needs \(4, 8\)"),
        ({"classes": 0}, "classes: 0"),
        ({"classes": "5"}, "classes: '5'"),
        ({"classes": True}, "classes: True"),
        ({"settings": {"class_embedding": False}}, "class_embedding: False"),
        ({"method": "lorra"}, "lorra"),
    ],
    ids=str,
)
def test_refused_files_leave_the_base(model, base, path, changes, problem):
    rewrite(path, **changes)
    with pytest.raises(UserError, match=problem):
        methods.load(model, path)
    assert_is_the_base(model, base)


def test_a_dits_file_is_refused_on_a_unet(path):
    unet = tiny.unet()
    with pytest.raises(UserError, match="UNet2DConditionModel has no classes"):
        methods.load(unet, path)
    methods.attach(unet, "none", {}, seed=0)


def test_files_of_other_classes_take_each_others_place(model, base, tmp_path):
    outputs, counts = {}, {"a": OWN, "b": OWN, "c": 2, "d": None}
    for name, count in counts.items():
        own = copy.deepcopy(base)
        if count:
            bases.new_classes(own, count, seed=0)
        attachment = methods.attach(own, "bitfit", {}, seed=0)
        with torch.no_grad():
            for parameter in attachment.trainable.values():
                parameter += 0.1 * (ord(name) - 90)
        methods.save(attachment, tmp_path / name, {})
        outputs[name] = run(own, 1)
    attached = methods.load(model, tmp_path / "a")
    for before, name in zip("abcdcb", "bcdcba", strict=True):
        loaded = methods.load(model, tmp_path / name, instead_of=attached)
        assert torch.equal(run(model, 1), outputs[name])
        assert (loaded is attached) == (counts[name] == counts[before])
        attached = loaded
    attached.remove()
    assert_is_the_base(model, base)
