"""Callbacks for other people's training frameworks.

`dynamo_probe.watch` attaches to any loop that steps a torch optimizer. A callback adds what only
the framework knows: when training begins and ends, where its log and its checkpoints are, and which
update a resumed run goes on from. Each lives in a module of its own and needs its framework:

- `dynamo_probe.integrations.lightning.DynamoProbe`;
- `dynamo_probe.integrations.transformers.DynamoProbeCallback`;
- `dynamo_probe.integrations.stable_baselines3.DynamoProbeCallback`.

Hugging Face Accelerate needs no callback. Watch after `prepare`, which may move or rebuild the
model, and give the torch optimizer that is inside Accelerate's own. Micro-batches under
`accelerator.accumulate` make one update, as they should, and `register_for_checkpointing` puts the
watch's state into `accelerator.save_state`:

```python
import torch
from accelerate import Accelerator

import dynamo_probe as dp


def train(model, loader, loss_of, *, log_dir=None, resume_from=None, save_to=None):
    accelerator = Accelerator(gradient_accumulation_steps=2)
    optimizer = torch.optim.AdamW(model.parameters())
    model, optimizer, loader = accelerator.prepare(model, optimizer, loader)
    with dp.watch(
        model,
        optimizer.optimizer,
        [dp.Dormancy(every=100)],
        log_dir=log_dir if accelerator.is_main_process else None,
    ) as watch:
        accelerator.register_for_checkpointing(watch)
        if resume_from is not None:
            accelerator.load_state(resume_from)
        for inputs, targets in loader:
            with accelerator.accumulate(model):
                accelerator.backward(loss_of(model(inputs), targets))
                optimizer.step()
                optimizer.zero_grad()
        if save_to is not None:
            accelerator.save_state(save_to)
    return watch
```
"""
