"""Three policies in one model: the old one stays, the reference is the base bit for bit, and only the policy learns."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from diffusers import FluxTransformer2DModel
from rationalrewards.components.generation.policies import (
    OLD,
    POLICY,
    adapter_state,
    add_policies,
    load_adapter_state,
    parameters_of,
    sync_old,
    use,
)
from torch import Tensor

TARGETS = ("to_q", "to_k", "to_v", "to_out.0", "add_q_proj", "add_k_proj", "add_v_proj", "to_add_out")


@pytest.fixture
def bare(build: Callable[[str], Any]) -> FluxTransformer2DModel:
    return build("flux").transformer


@pytest.fixture
def inputs() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {
        "hidden_states": torch.randn(2, 16, 16, generator=generator),
        "encoder_hidden_states": torch.randn(2, 5, 32, generator=generator),
        "pooled_projections": torch.randn(2, 16, generator=generator),
        "timestep": torch.tensor([0.3, 0.8]),
        "guidance": torch.ones(2),
        "img_ids": torch.zeros(16, 3),
        "txt_ids": torch.zeros(5, 3),
    }


@pytest.fixture
def denoiser(bare: FluxTransformer2DModel) -> FluxTransformer2DModel:
    add_policies(bare, rank=3, alpha=6, targets=TARGETS, seed=1)
    return bare


def _run(denoiser: FluxTransformer2DModel, inputs: dict[str, Tensor]) -> Tensor:
    return denoiser(**inputs).sample


def _disturb(denoiser: FluxTransformer2DModel, adapter: str, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in parameters_of(denoiser, adapter).values():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.2)


def _trained(denoiser: FluxTransformer2DModel) -> set[str]:
    return {name for name, parameter in denoiser.named_parameters() if parameter.requires_grad}


def test_all_three_start_as_the_base(
    build: Callable[[str], Any], denoiser: FluxTransformer2DModel, inputs: dict[str, Tensor]
) -> None:
    base = _run(build("flux").transformer, inputs)
    for adapter in (POLICY, OLD, None):
        with use(denoiser, adapter):
            assert torch.equal(_run(denoiser, inputs), base)
    # and yet the policy's gradient is not stuck at zero (one of the two matrices must not be)
    assert all(bool(value.any()) == ("lora_A" in name) for name, value in parameters_of(denoiser, POLICY).items())


def test_the_reference_is_the_base_bit_for_bit_whatever_the_adapters_say(
    build: Callable[[str], Any], denoiser: FluxTransformer2DModel, inputs: dict[str, Tensor]
) -> None:
    base = _run(build("flux").transformer, inputs)
    _disturb(denoiser, POLICY, 2)
    _disturb(denoiser, OLD, 3)
    outputs = {}
    for adapter in (POLICY, OLD, None):
        with use(denoiser, adapter):
            outputs[adapter] = _run(denoiser, inputs)
    assert torch.equal(outputs[None], base)
    # neither adapter is a no-op, and they differ
    assert (outputs[POLICY] - base).abs().max() > 1e-3 < (outputs[OLD] - base).abs().max()
    assert (outputs[POLICY] - outputs[OLD]).abs().max() > 1e-3
    assert torch.equal(_run(denoiser, inputs), outputs[POLICY])  # outside of any block the policy acts


def test_the_update_is_scaled_by_alpha_over_rank(denoiser: FluxTransformer2DModel) -> None:
    _disturb(denoiser, POLICY, 2)
    layer = denoiser.transformer_blocks[0].attn.to_q
    x = torch.randn(4, 32)
    down, up = layer.lora_A[POLICY].weight, layer.lora_B[POLICY].weight
    assert down.shape == (3, 32)
    expected = layer.base_layer(x) + 6 / 3 * x @ down.T @ up.T
    assert torch.allclose(layer(x), expected, atol=1e-5)  # float32, another order of operations


def test_only_the_policy_may_learn_after_every_switch(denoiser: FluxTransformer2DModel) -> None:
    policy = set(parameters_of(denoiser, POLICY))
    old = set(parameters_of(denoiser, OLD))
    assert len(policy) == len(old) > 0 and not policy & old
    assert _trained(denoiser) == policy
    for adapter in (OLD, None, POLICY, None, OLD):
        with use(denoiser, adapter):
            assert _trained(denoiser) == policy
            with use(denoiser, None):
                assert _trained(denoiser) == policy
        assert _trained(denoiser) == policy
    with pytest.raises(RuntimeError, match="stop"), use(denoiser, OLD):
        raise RuntimeError("stop")
    assert _trained(denoiser) == policy


def test_switches_nest_and_survive_an_error(denoiser: FluxTransformer2DModel, inputs: dict[str, Tensor]) -> None:
    _disturb(denoiser, POLICY, 2)
    _disturb(denoiser, OLD, 3)
    outputs = {}
    for adapter in (POLICY, OLD, None):
        with use(denoiser, adapter):
            outputs[adapter] = _run(denoiser, inputs)
    with use(denoiser, OLD):
        with use(denoiser, None):
            with pytest.raises(RuntimeError), use(denoiser, POLICY):
                assert torch.equal(_run(denoiser, inputs), outputs[POLICY])
                raise RuntimeError
            assert torch.equal(_run(denoiser, inputs), outputs[None])
        assert torch.equal(_run(denoiser, inputs), outputs[OLD])
    assert torch.equal(_run(denoiser, inputs), outputs[POLICY])


def test_training_moves_the_policy_and_nothing_else(denoiser: FluxTransformer2DModel, inputs: dict[str, Tensor]) -> None:
    _disturb(denoiser, OLD, 3)
    before = {name: parameter.detach().clone() for name, parameter in denoiser.named_parameters()}
    optimizer = torch.optim.AdamW(parameters_of(denoiser, POLICY).values(), lr=1e-2)
    target = torch.randn(2, 16, 16)
    losses = []
    for _ in range(4):
        optimizer.zero_grad()
        with use(denoiser, OLD):
            anchor = _run(denoiser, inputs)
        with use(denoiser, None), torch.no_grad():
            reference = _run(denoiser, inputs)
        loss = ((_run(denoiser, inputs) - target) ** 2).mean() + 0 * (anchor.mean() + reference.mean())
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    changed = {name for name, parameter in denoiser.named_parameters() if not torch.equal(parameter, before[name])}
    # every matrix of the policy has moved
    assert changed == set(parameters_of(denoiser, POLICY))
    assert {name for name, parameter in denoiser.named_parameters() if parameter.grad is not None} == changed


@pytest.mark.parametrize("decay", [0.0, 0.001, 0.3, 0.5, 1.0])
def test_sync_is_the_weighted_mean(denoiser: FluxTransformer2DModel, decay: float) -> None:
    _disturb(denoiser, POLICY, 2)
    _disturb(denoiser, OLD, 3)
    policy, old = adapter_state(denoiser, POLICY), adapter_state(denoiser, OLD)
    places = {name: parameter.data_ptr() for name, parameter in parameters_of(denoiser, OLD).items()}
    sync_old(denoiser, decay)
    for name, synced in parameters_of(denoiser, OLD).items():
        source = policy[name.replace(f".{OLD}.", f".{POLICY}.")]
        expected = decay * old[name].double() + (1 - decay) * source.double()
        assert torch.allclose(synced.double(), expected, atol=1e-7)  # float32 rounding of numbers below 1
        if decay in (0.0, 1.0):
            assert torch.equal(synced, source if decay == 0.0 else old[name])
        assert synced.data_ptr() == places[name]  # in place: optimizers and hooks hold the tensors
    assert all(torch.equal(value, policy[name]) for name, value in parameters_of(denoiser, POLICY).items())


def test_state_comes_back(build: Callable[[str], Any], denoiser: FluxTransformer2DModel, inputs: dict[str, Tensor]) -> None:
    _disturb(denoiser, POLICY, 2)
    _disturb(denoiser, OLD, 3)
    states = {adapter: adapter_state(denoiser, adapter) for adapter in (POLICY, OLD)}
    expected = {}
    for adapter in (POLICY, OLD):
        with use(denoiser, adapter):
            expected[adapter] = _run(denoiser, inputs)
    fresh = build("flux").transformer
    add_policies(fresh, rank=3, alpha=6, targets=TARGETS, seed=99)
    for adapter in (POLICY, OLD):
        load_adapter_state(fresh, adapter, states[adapter])
        with use(fresh, adapter):
            assert torch.equal(_run(fresh, inputs), expected[adapter])
    # a state is a copy, also on the CPU: training on does not change what was saved
    _disturb(denoiser, POLICY, 7)
    assert all(torch.equal(states[POLICY][name], value) for name, value in parameters_of(fresh, POLICY).items())


@pytest.mark.parametrize(
    "change",
    [
        lambda state: {name: value for name, value in list(state.items())[1:]},
        lambda state: {**state, "extra.lora_A.default.weight": torch.zeros(1)},
        lambda state: {name.replace("to_q", "to_z"): value for name, value in state.items()},
        lambda state: {},
    ],
    ids=["one missing", "one extra", "other targets", "empty"],
)
def test_a_state_of_other_layers_is_refused(denoiser: FluxTransformer2DModel, change: Callable[[Any], Any]) -> None:
    before = adapter_state(denoiser, POLICY)
    with pytest.raises(ValueError, match="'default' adapter does not fit.*other LoRA targets or another base"):
        load_adapter_state(denoiser, POLICY, change(adapter_state(denoiser, POLICY)))
    assert all(torch.equal(before[name], value) for name, value in parameters_of(denoiser, POLICY).items())


@pytest.mark.parametrize("rank", [1, 2, 5])
def test_a_state_of_another_rank_is_refused(build: Callable[[str], Any], denoiser: FluxTransformer2DModel, rank: int) -> None:
    """Rank 1 in particular: its matrices would broadcast into those of any rank."""
    other = build("flux").transformer
    add_policies(other, rank=rank, alpha=6, targets=TARGETS, seed=1)
    before = adapter_state(denoiser, POLICY)
    with pytest.raises(ValueError, match="'default' adapter does not fit"):
        load_adapter_state(denoiser, POLICY, adapter_state(other, POLICY))
    assert all(torch.equal(before[name], value) for name, value in parameters_of(denoiser, POLICY).items())


def test_weights_are_a_function_of_the_seed_and_leave_the_global_state_alone(build: Callable[[str], Any]) -> None:
    states = []
    for seed in (1, 1, 2):
        denoiser = build("flux").transformer
        torch.manual_seed(5)
        add_policies(denoiser, rank=3, alpha=6, targets=TARGETS, seed=seed)
        assert torch.equal(torch.rand(2), torch.rand(2, generator=torch.Generator().manual_seed(5)))
        states.append(torch.cat([value.flatten() for value in adapter_state(denoiser, POLICY).values()]))
    assert torch.equal(states[0], states[1]) and not torch.equal(states[0], states[2])


def test_unknown_targets_are_refused(bare: FluxTransformer2DModel) -> None:
    with pytest.raises(ValueError, match="FluxTransformer2DModel has no linear layer named qkv, qk; give other `targets`"):
        add_policies(bare, rank=3, alpha=6, targets=("qkv", "qk"), seed=0)


def test_targets_name_layers_and_not_parts_of_names(bare: FluxTransformer2DModel) -> None:
    add_policies(bare, rank=3, alpha=6, targets=("to_out.0",), seed=0)
    adapted = {name.split(".lora_")[0] for name in parameters_of(bare, POLICY)}
    assert adapted == {"transformer_blocks.0.attn.to_out.0"}  # not to_add_out, and single blocks have no to_out
