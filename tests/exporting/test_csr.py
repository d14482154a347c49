"""Linear layers in compressed sparse rows compute what dense ones compute."""

import copy
import io
import pickle
import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dynamo_probe.exporting import export
from dynamo_probe.exporting.csr import CSRLinear


def weight(units: int, inputs: int, density: float, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(units, inputs, generator=generator)
    return values * (torch.rand(units, inputs, generator=generator) < density)


@pytest.mark.parametrize("density", [0.0, 0.01, 0.1, 0.5, 1.0])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(7,), (1, 7), (5, 7), (2, 3, 7), (0, 7)])
def test_it_equals_the_dense_product(density: float, bias: bool, shape: tuple[int, ...]) -> None:
    dense = weight(4, 7, density).double()
    shift = nn.Parameter(torch.randn(4).double()) if bias else None
    layer, x = CSRLinear.from_dense(dense, shift), torch.randn(shape).double()
    found, wanted = layer(x), F.linear(x, dense, shift)
    assert found.shape == wanted.shape and found.is_contiguous()
    assert torch.allclose(found, wanted, rtol=0, atol=1e-12)
    assert layer.nonzeros == int((dense != 0).sum()) == len(layer.values)
    assert torch.equal(layer.matrix().to_dense(), dense)


def test_the_three_tensors_are_those_of_a_loop_over_rows() -> None:
    dense = weight(6, 9, 0.3)
    layer = CSRLinear.from_dense(dense)
    crow, col, values = [0], [], []
    for row in dense.tolist():
        there = [(place, value) for place, value in enumerate(row) if value != 0]
        col += [place for place, _ in there]
        values += [value for _, value in there]
        crow.append(len(col))
    assert layer.crow_indices.tolist() == crow and layer.col_indices.tolist() == col
    assert layer.values.tolist() == values and layer.crow_indices.dtype == torch.int32


def exported_layer() -> CSRLinear:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(20, 10))
    with torch.no_grad():
        net[0].weight.copy_(weight(10, 20, 0.1))
    made = export(net, "csr").model[0]
    assert isinstance(made, CSRLinear)
    return made


def test_copies_pickles_files_and_state_dicts_come_back_the_same() -> None:
    layer, x = exported_layer(), torch.randn(3, 20)
    wanted = layer(x)
    file = io.BytesIO()
    torch.save(layer, file)
    file.seek(0)
    loaded = torch.load(file, weights_only=False)
    for other in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer)), loaded):
        assert torch.equal(other(x), wanted)
        assert other.values.data_ptr() != layer.values.data_ptr()
    assert list(layer.state_dict()) == ["bias", "crow_indices", "col_indices", "values"]
    other = copy.deepcopy(layer)
    with torch.no_grad():
        other.values.zero_()
    file = io.BytesIO()
    torch.save(layer.state_dict(), file)
    file.seek(0)
    other.load_state_dict(torch.load(file, weights_only=True))
    assert torch.equal(other(x), wanted)


def test_another_dtype_keeps_the_indices_whole_numbers() -> None:
    layer, x = exported_layer(), torch.randn(3, 20)
    wanted = layer(x).double()
    layer = layer.double()
    assert layer.values.dtype == torch.float64 and layer.col_indices.dtype == torch.int32
    assert torch.allclose(layer(x.double()), wanted, atol=1e-5)


def test_under_autocast_it_multiplies_in_its_own_precision() -> None:
    layer, x = exported_layer(), torch.randn(3, 20)
    wanted = layer(x)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(layer(x), wanted)
        assert layer(x.bfloat16()).dtype == torch.float32


def test_only_layers_that_take_fewer_bytes_are_converted_unless_a_density_is_given() -> None:
    net = nn.Sequential(*(nn.Linear(100, 100, bias=False) for _ in range(3)))
    with torch.no_grad():
        for layer, density in zip(net, (0.1, 0.45, 0.55), strict=True):
            layer.weight.copy_(weight(100, 100, density))
    report = export(net, "csr").report
    assert [layer.changed for layer in report.layers] == [True, True, False]
    assert "CSR would take" in report.layers[2].what
    report = export(net, "csr", max_density=0.2).report
    assert [layer.changed for layer in report.layers] == [True, False, False]
    assert "max_density=0.2" in report.layers[1].what
    assert report.smaller


def test_outputs_of_a_network_are_equal_up_to_rounding_on_other_inputs() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(50, 80), nn.Tanh(), nn.Linear(80, 30, bias=False), nn.ReLU())
    with torch.no_grad():
        net[0].weight.copy_(weight(80, 50, 0.1))
        net[2].weight.copy_(weight(30, 80, 0.05))
    exported = export(net, "csr", inputs=torch.randn(4, 50), measure=False)
    assert all(layer.changed for layer in exported.report.layers)
    x = torch.randn(2, 6, 50)
    assert torch.allclose(exported.model(x), net(x), atol=1e-5)


def test_a_weight_that_is_read_past_the_layers_forward_stays_dense() -> None:
    torch.manual_seed(0)
    net = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True).eval()
    with torch.no_grad():
        for parameter in net.parameters():
            if parameter.dim() == 2:
                parameter.mul_(torch.rand_like(parameter) < 0.1)
    exported = export(net, "csr", inputs=torch.randn(2, 5, 16), measure=False)
    assert not any(layer.changed for layer in exported.report.layers)
    what = {layer.layer: layer.what for layer in exported.report.layers}
    assert "MultiheadAttention `self_attn`" in what["self_attn.out_proj"]
    assert "TransformerEncoderLayer" in what["linear1"]
    x = torch.randn(3, 4, 16)
    assert torch.equal(exported.model(x), net(x))


def test_a_dtype_without_csr_product_stays_dense_with_the_reason() -> None:
    net = nn.Sequential(nn.Linear(32, 32)).half()
    with torch.no_grad():
        net[0].weight.copy_(weight(32, 32, 0.05))
    exported = export(net, "csr", inputs=torch.randn(2, 32).half(), measure=False)
    (layer,) = exported.report.layers
    if not layer.changed:  # as on a CPU
        assert "torch multiplies no CSR matrix of torch.float16 on cpu" in layer.what


def test_the_transposed_linear_layer_of_gpt2_is_converted() -> None:
    pytorch_utils = pytest.importorskip("transformers.pytorch_utils")
    torch.manual_seed(0)
    net = nn.Sequential(pytorch_utils.Conv1D(24, 8), nn.GELU(), pytorch_utils.Conv1D(8, 24))
    with torch.no_grad():
        net[0].weight.copy_(weight(8, 24, 0.1))
    x = torch.randn(2, 3, 8)
    exported = export(net, "csr", inputs=x, measure=False)
    assert [layer.changed for layer in exported.report.layers] == [True, False]
    assert (exported.model[0].in_features, exported.model[0].out_features) == (8, 24)
    assert torch.allclose(exported.model(x), net(x), atol=1e-6)


def test_a_single_linear_layer_gives_a_single_layer_back() -> None:
    net = nn.Linear(30, 20)
    with torch.no_grad():
        net.weight.copy_(weight(20, 30, 0.1))
    exported = export(net, "csr", inputs=torch.randn(4, 30), measure=False)
    assert isinstance(exported.model, CSRLinear) and "(the model)" in str(exported.report)


def test_a_pickle_runs_in_another_process_without_a_warning(tmp_path) -> None:
    torch.save(exported_layer(), tmp_path / "layer.pt")
    code = (
        "import sys, warnings, torch, dynamo_probe.exporting.csr; warnings.simplefilter('error');"
        "layer = torch.load(sys.argv[1], weights_only=False);"
        "print(tuple(layer(torch.zeros(2, 20)).shape))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "layer.pt")], capture_output=True, text=True
    )
    assert done.stdout.strip() == "(2, 10)" and not done.stderr
