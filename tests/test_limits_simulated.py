"""Against servers as strict as real ones: nearly all that they allow, and hardly a refusal.

Everything runs in virtual time with the real gate and the real policy of retries, and with several
seeds: what holds for one only was luck.
"""

from __future__ import annotations

import random
from typing import Any

import pytest

from corpusgen.teachers.interface import Endpoint
from tests.loopback_limits import Limits
from tests.simulated_servers import (
    Client,
    RateServer,
    Server,
    SlotServer,
    naive_client,
    simulate,
)
from tests.virtual_time import run_virtually

seeds = pytest.mark.parametrize("seed", [1, 2, 3])


def alone(server: Server, endpoint: Endpoint, seed: int, seconds: float) -> Client:
    """Run a client over one endpoint."""
    return simulate([endpoint], {endpoint.name: server}, random.Random(seed), seconds)


# Limits that are configured


@seeds
@pytest.mark.parametrize("headers", [False, True], ids=["silent", "headers"])
@pytest.mark.parametrize(
    ("allowed", "configured"),
    [
        ({"rpm": 600}, {"rpm": 600}),
        ({"tpm": 60_000}, {"tpm": 60_000}),
    ],
    ids=["rpm", "tpm"],
)
def test_a_configured_limit_is_used_and_not_overstepped(
    allowed: dict[str, Any], configured: dict[str, Any], headers: bool, seed: int
) -> None:
    server = RateServer(Limits(**allowed), random.Random(seed), headers=headers)
    client = alone(server, Endpoint("a", 64, **configured), seed, 180)
    used = len(server.answers) if "rpm" in allowed else server.tokens
    assert used >= 0.95 * 3 * (allowed.get("rpm") or allowed["tpm"])
    assert server.rejected_share < 0.01
    assert client.failed == 0


@seeds
def test_a_server_that_reserves_max_tokens_is_kept_to(seed: int) -> None:
    server = RateServer(Limits(tpm=60_000, tpm_rule="max_tokens"), random.Random(seed))
    alone(server, Endpoint("a", 64, tpm=60_000, tpm_counts="max_tokens"), seed, 180)
    assert server.charged >= 0.95 * 180_000
    assert server.rejected_share < 0.01


@seeds
def test_a_limit_that_nobody_configured_is_learned(seed: int) -> None:
    server = RateServer(Limits(rpm=600), random.Random(seed))
    alone(server, Endpoint("a", 64), seed, 180)
    naive = RateServer(Limits(rpm=600), random.Random(seed))
    run_virtually(naive_client(naive, 64, random.Random(seed), 180))
    assert len(server.answers) >= 0.7 * 1800
    assert server.rejected_share < 0.5 * naive.rejected_share


# Concurrency that nobody configured


@seeds
@pytest.mark.parametrize("slots", [4, 32, 200])
def test_the_best_of_a_server_that_queues_is_found(slots: int, seed: int) -> None:
    server = SlotServer(slots)
    client = alone(server, Endpoint("a"), seed, 120)
    assert server.tokens_a_second(60, 120) >= 0.9 * best_of(slots)
    assert client.gate.concurrency <= 2 * slots + 1, "more would only wait in line there"


@seeds
def test_a_server_that_collapses_is_left_room(seed: int) -> None:
    server = SlotServer(1000, collapse_above=64)
    alone(server, Endpoint("a"), seed, 210)
    assert server.tokens_a_second(120, 210) >= 0.85 * best_of(64)


def best_of(slots: int) -> float:
    """Return the tokens a second of so many slots that are always taken; 1.8% is overhead."""
    return slots * 100 * 0.982


# Refusals


@seeds
def test_too_high_a_limit_is_lowered_by_refusals(seed: int) -> None:
    server = SlotServer(1000, capacity=64)
    client = alone(server, Endpoint("a", 200), seed, 120)
    assert server.tokens_a_second(0, 120) >= 0.65 * best_of(64)
    assert len(server.rejected) < len(server.answers)
    assert client.failed == 0


@seeds
def test_refusals_at_any_load_lower_nothing(seed: int) -> None:
    server = SlotServer(1000, refused_share=0.1, chance=random.Random(seed))
    alone(server, Endpoint("a", 100), seed, 120)
    assert server.tokens_a_second(60, 120) >= 0.9 * best_of(100) * 0.97


@seeds
def test_refusals_now_and_then_do_not_keep_it_low(seed: int) -> None:
    server = SlotServer(100, refused_share=0.02, chance=random.Random(seed))
    alone(server, Endpoint("a"), seed, 150)
    assert server.tokens_a_second(60, 150) >= 0.4 * best_of(100)


# Failover


@seeds
def test_an_endpoint_that_turns_sick_costs_its_own_throughput_and_nothing_else(seed: int) -> None:
    healthy, sick = SlotServer(64), SlotServer(64)
    sick.sick = (60, 120)
    endpoints = [Endpoint("a", 64), Endpoint("b", 64)]
    client = simulate(endpoints, {"a": healthy, "b": sick}, random.Random(seed), 180)
    assert healthy.tokens_a_second(60, 120) >= 0.9 * best_of(64)
    both = healthy.tokens_a_second(150, 180) + sick.tokens_a_second(150, 180)
    assert both >= 0.95 * best_of(128)
    assert client.failed == 0
    assert client.news == [
        "endpoint b is left alone for a while: no",
        "endpoint b answers again",
    ]
