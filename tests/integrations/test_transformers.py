"""The Hugging Face callback in the real Trainer: token counts, MLP units, resume, no trace."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import dynamo_probe as dp
from dynamo_probe.functional import normalised_scores
from tests.integrations.first import First
from tests.training import everything, identical

pytest.importorskip("transformers")
pytest.importorskip("accelerate")

import transformers  # noqa: E402

from dynamo_probe.integrations.transformers import DynamoProbeCallback  # noqa: E402

BATCH, LENGTH, WORDS = 3, 9, 31
PROBE = {"input_ids": torch.arange(5 * LENGTH).view(5, LENGTH) % WORDS}


class Tokens(torch.utils.data.Dataset):
    def __len__(self) -> int:
        return 36

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        tokens = torch.randint(WORDS, (LENGTH,), generator=torch.Generator().manual_seed(index))
        return {"input_ids": tokens, "labels": tokens}


def gpt2() -> nn.Module:
    torch.manual_seed(0)
    return transformers.GPT2LMHeadModel(
        transformers.GPT2Config(
            vocab_size=WORDS,
            n_positions=16,
            n_embd=16,
            n_layer=2,
            n_head=2,
            bos_token_id=0,
            eos_token_id=0,
            loss_type="ForCausalLMLoss",
        )
    )


def llama() -> nn.Module:
    torch.manual_seed(0)
    return transformers.LlamaForCausalLM(
        transformers.LlamaConfig(
            vocab_size=WORDS,
            hidden_size=16,
            intermediate_size=24,
            num_hidden_layers=2,
            num_attention_heads=2,
            num_key_value_heads=1,
            max_position_embeddings=16,
        )
    )


def trainer(
    model: nn.Module, directory: Path, callbacks: list[DynamoProbeCallback], **more: Any
) -> transformers.Trainer:
    settings: dict[str, Any] = {
        "disable_tqdm": True,
        "gradient_accumulation_steps": 2,
        "learning_rate": 1e-2,
        "max_steps": 6,
        "per_device_train_batch_size": BATCH,
        "report_to": "none",
        "save_strategy": "no",
        "use_cpu": True,
    }
    return transformers.Trainer(
        model=model,
        args=transformers.TrainingArguments(str(directory), **(settings | more)),
        train_dataset=Tokens(),
        eval_dataset=Tokens(),
        callbacks=list(callbacks),
    )


def seen(callback: DynamoProbeCallback) -> dp.Watch:
    assert callback.watch is not None
    return callback.watch


GPT2_LAYERS = {f"transformer.h.{i}.mlp.c_fc": f"transformer.h.{i}.mlp.act" for i in range(2)}
LLAMA_LAYERS = {
    f"model.layers.{i}.mlp.gate_proj": f"model.layers.{i}.mlp.down_proj" for i in range(2)
}


@pytest.mark.parametrize(("make", "layers"), [(gpt2, GPT2_LAYERS), (llama, LLAMA_LAYERS)])
def test_units_of_the_mlps_are_scored_over_all_tokens_of_an_update(
    make: Any, layers: dict[str, str], tmp_path: Path
) -> None:
    model = make()
    for module in model.modules():  # the reference below runs without dropout
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    initial, inputs = copy.deepcopy(model).double(), []
    model.register_forward_pre_hook(
        lambda module, args, kwargs: inputs.append(kwargs["input_ids"].clone()), with_kwargs=True
    )
    first = First()
    callback = DynamoProbeCallback(dp.Dormancy(every=1), sinks=[first], on_error="raise")
    run = trainer(
        model, tmp_path, [callback], eval_strategy="steps", eval_steps=2, eval_on_start=True
    )
    run.train()
    history = seen(callback).history
    steps, samples = history.series("dormancy/samples")
    assert seen(callback).step == run.state.global_step == 6
    assert steps.tolist() == [1, 2, 3, 4, 5, 6]
    assert (samples == 2 * BATCH * LENGTH).all()
    measured = [tag for tag in history.tags() if tag.startswith("dormancy/scores/")]
    assert measured == [f"dormancy/scores/{name}" for name in layers]

    read: dict[str, Tensor] = {}
    for name, where in layers.items():
        if make is gpt2:  # what the activation function gives
            initial.get_submodule(where).register_forward_hook(
                lambda m, args, output, name=name: read.update({name: output})
            )
        else:  # what the last projection is given: silu(gate) * up
            initial.get_submodule(where).register_forward_pre_hook(
                lambda m, args, name=name: read.update({name: args[0]})
            )
    training = [tokens for tokens in inputs if len(tokens) == BATCH]
    initial(input_ids=torch.cat(training[:2]))
    for name, units in read.items():
        expected = normalised_scores(units.detach().abs().mean((0, 1)))
        assert torch.allclose(first.scores(name), expected, rtol=1e-4)


@pytest.mark.parametrize("make", [gpt2, llama])
def test_heads_are_scored_and_the_tokens_of_every_micro_batch_are_seen(
    make: Any, tmp_path: Path
) -> None:
    probes = [dp.Induction(every=2, period=4), dp.Repetition(every=1, ngram=8)]
    callback = DynamoProbeCallback(probes, on_error="raise")
    run = trainer(make(), tmp_path, [callback], eval_strategy="steps", eval_steps=2)
    run.train()
    history = seen(callback).history
    for tag in ("top", "copy_gap", "ablation/induction"):
        assert history.series(f"induction/{tag}")[0].tolist() == [1, 2, 4, 6]
    assert (history.series("repetition/tokens")[1] == 2 * BATCH * LENGTH).all()
    # 36 samples are an epoch of 6 updates: none comes twice.
    assert history.series("repetition/fraction")[1].tolist() == [0.0] * 6
    assert len(history.series("repetition/loss/fresh")[0]) == 6


@pytest.mark.parametrize("make", [gpt2, llama])
def test_training_with_probes_is_bit_identical_to_training_without(
    make: Any, tmp_path: Path
) -> None:
    runs = []
    language = [dp.Induction(every=2, period=4), dp.Repetition(every=1, ngram=8)]
    for probes in ([], [dp.Dormancy(every=1), dp.Rank(every=2), *language]):
        model = make()
        callbacks = [DynamoProbeCallback(probes, on_error="raise")] if probes else []
        run = trainer(model, tmp_path, callbacks)
        run.train()
        optimizer = run.optimizer.optimizer
        assert not optimizer._optimizer_step_post_hooks
        assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
        runs.append(everything([model], [optimizer]))
    assert identical(*runs)


def instruments() -> list[dp.Instrument]:
    return [dp.Dormancy(every=1, tau=0.6), dp.ReDo(every=2, tau=0.6), dp.Rank(every=3)]


def test_a_run_resumed_from_a_checkpoint_is_the_uninterrupted_one(tmp_path: Path) -> None:
    whole = DynamoProbeCallback(instruments(), probe_batch=PROBE, on_error="raise")
    model = llama()
    trainer(model, tmp_path / "a", [whole]).train()
    assert {event.kind for event in seen(whole).events} >= {"recycled"}

    saving = {"save_strategy": "steps", "save_steps": 3}
    first = DynamoProbeCallback(instruments(), probe_batch=PROBE, on_error="raise")
    trainer(llama(), tmp_path / "b", [first], **saving).train()
    again, callback = (
        llama(),
        DynamoProbeCallback(instruments(), probe_batch=PROBE, on_error="raise"),
    )
    run = trainer(again, tmp_path / "b", [callback], **saving)
    run.train(resume_from_checkpoint=str(tmp_path / "b" / "checkpoint-3"))

    for one, other in zip(model.parameters(), again.parameters(), strict=True):
        assert torch.equal(one, other)
    assert seen(callback).history.tags() == seen(whole).history.tags()
    for tag in seen(whole).history.tags():
        steps, values = seen(whole).history.series(tag)
        later, figures = seen(callback).history.series(tag)
        assert steps.tolist() == later.tolist()
        assert all((a == b).all() for a, b in zip(values, figures, strict=True))
    assert list(map(str, seen(callback).events)) == list(map(str, seen(whole).events))


def test_a_checkpoint_that_was_moved_is_found_and_one_without_a_state_is_told_of(
    tmp_path: Path,
) -> None:
    saving = {"save_strategy": "steps", "save_steps": 3}
    first = DynamoProbeCallback(dp.Dormancy(every=1), on_error="raise")
    trainer(gpt2(), tmp_path / "a", [first], **saving).train()
    moved = tmp_path / "moved"
    (tmp_path / "a" / "checkpoint-3").rename(moved)

    found = DynamoProbeCallback(dp.Dormancy(every=1), resume_from=moved, on_error="raise")
    trainer(gpt2(), tmp_path / "b", [found]).train(resume_from_checkpoint=str(moved))
    assert seen(found).history.series("dormancy/samples")[0].tolist() == [1, 2, 3, 4, 5, 6]

    lost = DynamoProbeCallback(dp.Dormancy(every=5), on_error="raise")
    run = trainer(gpt2(), tmp_path / "c", [lost])
    with pytest.warns(dp.DynamoProbeWarning, match="resume_from="):
        run.train(resume_from_checkpoint=str(moved))
    assert seen(lost).history.series("dormancy/samples")[0].tolist() == [5]


def test_the_log_is_written_by_the_main_process_alone(tmp_path: Path) -> None:
    callback = DynamoProbeCallback(dp.Dormancy(every=1), log_dir=tmp_path / "log")
    run = trainer(gpt2(), tmp_path, [callback])
    run.train()
    assert list((tmp_path / "log").glob("events*"))
    state = copy.copy(run.state)
    state.is_world_process_zero = False
    other = DynamoProbeCallback(dp.Dormancy(every=1), log_dir=tmp_path / "other")
    other.on_train_begin(run.args, state, None, model=run.model, optimizer=run.optimizer)
    other.close()
    assert not (tmp_path / "other").exists()
