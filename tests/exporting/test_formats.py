"""What every export keeps: outputs, the given model, random states; and what it refuses."""

import copy
import io
import random

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

import dynamo_probe as dp
from dynamo_probe.exporting import Export, ExportReport, export
from tests.models import ConvNet, mlp, plant_dead

FORMATS = ("dense", "csr", "2:4", "compact")


def sparse_mlp(*widths: int, density: float = 0.2) -> nn.Sequential:
    torch.manual_seed(0)
    net = mlp(*widths)
    with torch.no_grad():
        for parameter in net.parameters():
            if parameter.dim() == 2:
                parameter.mul_(torch.rand_like(parameter) < density)
    return net


def test_a_dense_export_has_the_same_keys_zeros_and_outputs_in_storage_of_its_own() -> None:
    net, x = sparse_mlp(6, 9, 3), torch.randn(5, 6)
    exported = export(net, "dense", inputs=x, measure=False)
    assert isinstance(exported, Export) and isinstance(exported.report, ExportReport)
    assert type(exported.model) is nn.Sequential
    for (name, a), (other, b) in zip(
        net.state_dict().items(), exported.model.state_dict().items(), strict=True
    ):
        assert name == other and torch.equal(a, b) and a.data_ptr() != b.data_ptr()
    assert torch.equal(exported.model(x), net(x))
    assert exported.report.difference == 0.0
    assert not exported.report.smaller and exported.report.faster is None


@pytest.mark.parametrize("format", FORMATS)
def test_the_given_model_its_modes_and_all_random_states_stay_as_they_are(format: str) -> None:
    torch.manual_seed(0)
    net, x = ConvNet(), torch.randn(4, 2, 10, 10)
    plant_dead(net.conv2, 1)
    plant_dead(net.fc, 0, 3)
    net.conv1.bias.requires_grad_(False)
    net.norm.eval()
    modes = {name: module.training for name, module in net.named_modules()}
    before, inputs = copy.deepcopy(net.state_dict()), x.clone()
    parameters = dict(net.named_parameters())
    states = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()
    made = export(net, format, inputs=x, rounds=10).model
    assert torch.equal(torch.get_rng_state(), states[0])
    assert (np.random.get_state()[1] == states[1]).all() and random.getstate() == states[2]
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert {name: module.training for name, module in net.named_modules()} == modes
    assert {name: module.training for name, module in made.named_modules()} == modes
    assert all(parameters[name] is p and p.grad is None for name, p in net.named_parameters())
    assert torch.equal(x, inputs)
    assert not made.conv1.bias.requires_grad and made.conv1.weight.requires_grad


@pytest.mark.parametrize("format", FORMATS)
def test_a_model_with_dropout_and_batchnorm_gives_the_same_in_evaluation_mode(format: str) -> None:
    torch.manual_seed(1)
    net = ConvNet().double()
    plant_dead(net.conv2, 1)
    with torch.no_grad():
        net.fc.weight.mul_(torch.rand_like(net.fc.weight) < 0.1)
    net(torch.randn(8, 2, 10, 10).double())  # running statistics
    made = export(net, format, inputs=torch.randn(8, 2, 10, 10).double(), measure=False).model
    others = torch.randn(16, 2, 10, 10).double()
    assert torch.allclose(made.eval()(others), net.eval()(others), rtol=0, atol=1e-10)


@pytest.mark.parametrize("format", ("dense", "csr", "2:4"))
def test_without_inputs_there_is_no_figure_that_would_need_them(format: str) -> None:
    report = export(sparse_mlp(8, 8, 2), format).report
    assert report.timing is None and report.difference is None and report.faster is None
    assert report.work_before is None and report.work_after is None
    assert "not timed: no inputs were given" in str(report)


def test_the_report_names_every_layer_with_what_was_done_and_the_machine() -> None:
    net = ConvNet()
    report = export(net, "csr", inputs=torch.randn(2, 2, 10, 10), rounds=10).report
    assert [layer.layer for layer in report.layers] == [
        "conv1",
        "conv2",
        "fc",
        "value",
        "advantage",
    ]
    assert report.torch_version == torch.__version__ and report.device == "cpu"
    assert report.threads == torch.get_num_threads()
    text = str(report)
    assert all(layer.what in text for layer in report.layers)
    assert "convolutions" in report.layers[0].what
    assert report.timing is not None and report.timing.verdict in text
    assert report.timing.rounds == 10 and f"torch {torch.__version__}" in text


def test_parallel_and_compiled_wrappers_are_looked_through() -> None:
    net, x = sparse_mlp(4, 5, 2), torch.randn(3, 4)
    for wrapped in (nn.DataParallel(net), torch.compile(net, backend="eager")):
        made = export(wrapped, "dense", inputs=x, measure=False).model
        assert type(made) is nn.Sequential and list(made.state_dict()) == list(net.state_dict())


def test_a_dict_and_a_tuple_of_inputs_are_arguments() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(3, 6), nn.Linear(6, 2)

        def forward(self, x: Tensor, *, scale: Tensor) -> dict[str, Tensor]:
            return {"y": self.b(F.relu(self.a(x))) * scale}

    net, x, scale = Two(), torch.randn(4, 3), torch.randn(4, 1)
    plant_dead(net.a, 2)
    made = export(net, "compact", inputs={"x": x, "scale": scale}, measure=False).model
    assert made.a.out_features == 5
    assert torch.allclose(made(x, scale=scale)["y"], net(x, scale=scale)["y"], atol=1e-6)
    assert export(mlp(3, 2), inputs=(x,), measure=False).report.difference == 0.0


def test_forward_hooks_are_left_out_and_named_and_those_of_a_watch_are_not() -> None:
    net, seen = sparse_mlp(4, 5, 2), []
    net[0].register_forward_hook(lambda module, args, output: seen.append(1))
    net[2].register_forward_pre_hook(lambda module, args: None)
    exported = export(net, "dense", inputs=torch.randn(3, 4), measure=False)
    exported.model(torch.randn(3, 4))
    assert not seen and not exported.model[0]._forward_hooks
    assert any("on 0, 2" in note for note in exported.report.notes)
    torch.save(exported.model, io.BytesIO())  # a lambda could not be pickled
    watched = mlp(4, 5, 2)
    optimizer = torch.optim.SGD(watched.parameters(), lr=0.1)
    with dp.watch(watched, optimizer, [dp.Dormancy(every=1)]):
        watched(torch.randn(3, 4)).sum().backward()
        optimizer.step()
        assert not any("hooks" in note for note in export(watched).report.notes)


def test_spectral_norm_keeps_computing_its_weight_and_stays_dense_as_csr() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.utils.spectral_norm(nn.Linear(8, 8)), nn.ReLU(), nn.Linear(8, 2))
    x = torch.randn(3, 8)
    net(x)
    exported = export(net.eval(), "csr", inputs=x, max_density=1.0, measure=False)
    assert [layer.changed for layer in exported.report.layers] == [False, True]
    assert "computes its weight" in exported.report.layers[0].what
    assert torch.allclose(exported.model(x), net(x), atol=1e-6)


def test_shared_modules_and_tied_weights_stay_shared() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed, self.head = nn.Embedding(40, 8), nn.Linear(8, 40, bias=False)
            self.head.weight = self.embed.weight
            self.a = nn.Linear(8, 8)
            self.b = self.a

        def forward(self, tokens: Tensor) -> Tensor:
            return self.head(self.b(F.relu(self.a(self.embed(tokens)))))

    net, tokens = Tied(), torch.randint(40, (2, 3))
    made = export(net, "dense", inputs=tokens, measure=False).model
    assert made.head.weight is made.embed.weight and made.a is made.b
    exported = export(net, "csr", inputs=tokens, max_density=1.0, measure=False)
    what = {layer.layer: layer.what for layer in exported.report.layers}
    assert "also `head.weight`" in what["embed"] or "not a linear layer" in what["embed"]
    assert "also `embed.weight`" in what["head"]
    assert exported.model.a is exported.model.b and what["a"].startswith("stored as CSR")


def test_a_model_that_does_not_give_the_same_twice_is_not_exported() -> None:
    class Counting(nn.Module):
        calls = 0

        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(2, 2)

        def forward(self, x: Tensor) -> Tensor:
            Counting.calls += 1
            return self.fc(x) * Counting.calls

    with pytest.raises(RuntimeError, match="may not give the same twice"):
        export(Counting(), "dense", inputs=torch.randn(2, 2))


def test_a_model_that_draws_numbers_gives_the_same_from_the_same_state() -> None:
    class Noisy(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(3, 6), nn.Linear(6, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.b(F.relu(self.a(x))) + torch.randn(2)

    net = Noisy()
    plant_dead(net.a, 0, 1)
    report = export(net, "compact", inputs=torch.randn(4, 3), measure=False).report
    assert report.layers[0].what.startswith("2 of 6 units taken out")


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"format": "sparse"}, ValueError, "give one of dense, csr, 2:4, compact"),
        ({"format": "compact"}, ValueError, "needs inputs="),
        ({"max_density": 0.5}, ValueError, "belongs to format='csr'"),
        ({"format": "csr", "max_density": 0.0}, ValueError, r"share of the weights in \(0, 1\]"),
        ({"pack": True}, ValueError, "belongs to format='2:4'"),
        ({"rounds": 3}, ValueError, "give 10 or more"),
        ({"inputs": 3}, TypeError, "give a tensor, a tuple"),
        ({"inputs": lambda: None}, TypeError, "give a tensor, a tuple"),
        ({"model": 3}, TypeError, "give a torch.nn.Module"),
        ({"model": nn.LazyLinear(3)}, ValueError, "run the model once"),
        ({"model": nn.Linear(2, 2, device="meta")}, ValueError, "load its values"),
    ],
)
def test_a_wrong_call_says_the_fix(change: dict, error: type[Exception], message: str) -> None:
    call = {"model": nn.Linear(2, 2), "format": "dense"} | change
    with pytest.raises(error, match=message):
        export(**call)


def test_a_sharded_model_is_refused_with_the_way_to_gather_it(tmp_path) -> None:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import Replicate, distribute_tensor

    dist.init_process_group(
        "gloo", store=dist.FileStore(str(tmp_path / "store"), 1), rank=0, world_size=1
    )
    try:
        net = nn.Linear(4, 4)
        mesh = init_device_mesh("cpu", (1,))
        net.weight = nn.Parameter(distribute_tensor(net.weight.detach(), mesh, [Replicate()]))
        with pytest.raises(ValueError, match="full_state_dict=True"):
            export(net)
    finally:
        dist.destroy_process_group()
