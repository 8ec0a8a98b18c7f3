"""What a Stage-2 step costs: Meta-LoRA against the frozen model without adapters and against PEFT's LoRA.

A FLUX transformer of width 1024 with random weights takes training steps on the CPU in float32, batch 1, 512 tokens.

    python -m experiments.speed.stage2_step [repeats=21] [threads=2]
"""

from collections.abc import Callable

import torch
from diffusers import FluxPipeline, FluxTransformer2DModel
from peft import LoraConfig
from torch import Tensor, nn

from experiments.speed.measuring import alternate, command, settings_of, summary, write
from metalora.adapters.bank import AdapterBank
from metalora.adapters.inject import inject, layer_shapes
from metalora.adapters.optimizer import BankAdamW, clip_rows_
from metalora.backbones.flux import block_linears, pack

LATENTS_HW = (32, 48)
TEXT_TOKENS = 128
RATE = 4e-4
META_RANK = 128
DEFAULTS = {"repeats": 21, "threads": 2}


def make_transformer() -> FluxTransformer2DModel:
    """FLUX.1-dev's layers at width 1024: 8 heads of 128, 2 double and 4 single blocks, frozen."""
    torch.manual_seed(0)
    transformer = FluxTransformer2DModel(
        in_channels=64,
        num_layers=2,
        num_single_layers=4,
        attention_head_dim=128,
        num_attention_heads=8,
        joint_attention_dim=512,
        pooled_projection_dim=256,
        guidance_embeds=True,
    )
    return transformer.requires_grad_(False).eval()


def make_inputs() -> dict[str, Tensor]:
    """One image of 384 tokens with 128 text tokens."""
    generator = torch.Generator().manual_seed(1)
    height, width = LATENTS_HW
    cpu = torch.device("cpu")
    return {
        "hidden_states": pack(torch.randn(1, 16, height, width, generator=generator)),
        "encoder_hidden_states": torch.randn(1, TEXT_TOKENS, 512, generator=generator),
        "pooled_projections": torch.randn(1, 256, generator=generator),
        "timestep": torch.tensor([0.5]),
        "guidance": torch.tensor([1.0]),
        "img_ids": FluxPipeline._prepare_latent_image_ids(1, height // 2, width // 2, cpu, torch.float32),
        "txt_ids": torch.zeros(TEXT_TOKENS, 3),
    }


def frozen_step() -> Callable[[], None]:
    """Forward, loss and backward to the inputs of the frozen model: no adapter, no optimizer."""
    transformer, inputs = make_transformer(), make_inputs()
    target = torch.zeros_like(inputs["hidden_states"])
    leaves = [inputs["hidden_states"].requires_grad_(), inputs["encoder_hidden_states"].requires_grad_()]

    def step() -> None:
        loss = (transformer(**inputs, return_dict=False)[0] - target).square().mean()
        loss.backward()
        for leaf in leaves:
            leaf.grad = None

    return step


def peft_step() -> Callable[[], None]:
    """PEFT's LoRA of rank 1 on the same layers, with torch's clipping and AdamW."""
    transformer, inputs = make_transformer(), make_inputs()
    transformer.add_adapter(LoraConfig(r=1, lora_alpha=1, target_modules=list(block_linears(transformer))))
    trained = [parameter for parameter in transformer.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=RATE, eps=1e-6)
    target = torch.zeros_like(inputs["hidden_states"])

    def step() -> None:
        loss = (transformer(**inputs, return_dict=False)[0] - target).square().mean()
        loss.backward()
        nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad()

    return step


def bank_step(*, meta_rank: int | None) -> Callable[[], None]:
    """The project's own step of rank 1: routing, forward, loss, backward, clipping and AdamW."""
    transformer, inputs = make_transformer(), make_inputs()
    layers = layer_shapes(block_linears(transformer))
    bank = AdapterBank(layers, identities=["person"], rank=1, meta_rank=meta_rank, seed=0)
    bank.train_meta_down = False
    inject(transformer, bank)
    optimizer = BankAdamW(bank, lr=RATE)
    target = torch.zeros_like(inputs["hidden_states"])
    rows_B = torch.tensor([0])

    def step() -> None:
        bank.set_route(rows_B)
        loss = (transformer(**inputs, return_dict=False)[0] - target).square().mean()
        loss.backward()
        clip_rows_(bank, max_norm=1.0)
        optimizer.step()
        optimizer.zero_grad()

    return step


def main(arguments: list[str]) -> None:
    """Measure and write results/stage2_step-DATE.json."""
    settings = settings_of(arguments, DEFAULTS)
    torch.set_num_threads(settings["threads"])
    steps = {
        "frozen_model": frozen_step(),
        "meta_lora_rank_1": bank_step(meta_rank=META_RANK),
        "lora_rank_1": bank_step(meta_rank=None),
        "peft_lora_rank_1": peft_step(),
    }
    seconds = alternate(steps, repeats=settings["repeats"])
    write("stage2_step", {"repeats": settings["repeats"], "steps": summary(seconds, against="frozen_model")})


if __name__ == "__main__":
    command("stage2_step", main)
