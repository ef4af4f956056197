"""Chance and measurements: seeded, within bounds, and as faulty as the profile says."""

import random
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from skerry.api.errors import InvalidError
from skerry.core import card as cards
from skerry.core.messages import ShadowDesired
from skerry.sim import draws, measurements, profiles, sample
from skerry.sim.profiles import PROFILES, Span

NAMES = st.text("abcdefghijklmnopqrstuvwxyz0123456789-", min_size=1, max_size=20)
SEEDS = st.integers(0, 2**63)
ALL = st.sampled_from(list(PROFILES.values()))


@pytest.fixture(scope="module")
def card(tmp_path_factory: pytest.TempPathFactory) -> cards.EvaluationCard:
    return sample.write(tmp_path_factory.mktemp("sample") / "v1", "v1")


@given(profile=ALL, seed=SEEDS, name=NAMES)
def test_a_device_is_what_its_seed_and_name_say(profile, seed, name):
    assert draws.traits(profile, seed, name) == draws.traits(profile, seed, name)


def test_lasting_faults_come_as_often_as_the_profile_says():
    profile = replace(profiles.find("crash-loops"), crash_looping=0.25, inaccurate=0.5, slow=0.0)
    fleet = [draws.traits(profile, 7, f"sim-{number}") for number in range(4000)]
    assert 900 < sum(one.crash_looping for one in fleet) < 1100
    assert 1850 < sum(one.inaccurate for one in fleet) < 2150
    assert not any(one.slow for one in fleet)
    assert {one.machine.name for one in fleet} == {machine.name for machine in profiles.MACHINES}


@given(seed=SEEDS, name=NAMES, samples=st.integers(1, 5000), profile=ALL)
def test_measurements_are_what_a_device_may_report(card, seed, name, samples, profile):
    known = draws.traits(profile, seed, name)
    for packaged in card.variants:
        found = measurements.measurement(packaged.variant, samples, known, seed, name)
        assert found == measurements.measurement(packaged.variant, samples, known, seed, name)
        assert found.samples == min(samples, measurements.MAX_SAMPLES)
        assert found.accuracy is not None
        assert 0 <= found.accuracy <= 1
        assert 0 <= found.agreement <= 1
        assert 0 < found.latency_p50_ms <= found.latency_p95_ms
        assert found.peak_memory_bytes > 0


@given(seed=SEEDS, name=NAMES)
def test_a_spoiled_version_fails_what_a_sound_one_passes(card, seed, name):
    known = draws.traits(profiles.find("mixed"), seed, name)
    for packaged in card.variants:
        sound = measurements.measurement(packaged.variant, 256, known, seed, name)
        spoiled = measurements.measurement(packaged.variant, 256, draws.spoiled(known), seed, name)
        assert (sound.accuracy or 0) > 0.9 > (spoiled.accuracy or 1)
        compared = measurements.comparison(spoiled, sound, "v1")
        assert (compared.agreement or 1) < 0.9
        assert (measurements.comparison(sound, sound, "v1").agreement or 0) > 0.99


@given(seed=SEEDS, name=NAMES, share=st.floats(0.01, 1), seconds=st.floats(0, 1e4), least=st.integers(0, 1000))
def test_shadow_mode_counts_what_was_asked_for(seed, name, share, seconds, least):
    known = draws.traits(profiles.find("ideal"), seed, name)
    asked = ShadowDesired(share=share, seconds=seconds, min_requests=least)
    sound = measurements.shadow(asked, "v1", known, seed, name)
    spoiled = measurements.shadow(asked, "v1", draws.spoiled(known), seed, name)
    assert sound.requests >= least
    assert sound.agreed == sound.answered == sound.requests
    assert spoiled.agreed <= 0.6 * spoiled.answered


@given(seed=SEEDS, loss=st.floats(0, 1))
def test_a_message_is_late_by_its_lost_packets_or_the_connection_ends(seed, loss):
    profile = replace(profiles.find("ideal"), latency=Span(0.1, 0.2), loss=loss)
    seconds = draws.delay(random.Random(seed), profile)
    lost = 0
    chance = random.Random(seed)
    chance.uniform(0, 1)
    while lost < 7 and chance.random() < loss:
        lost += 1
    if lost == 7:
        assert seconds is None
    else:
        expected = 0.2 * (2**lost - 1)
        assert seconds is not None
        assert expected + 0.1 - 1e-9 <= seconds <= expected + 0.2 + 1e-9


def test_what_never_happens_has_no_time():
    assert draws.wait_for(random.Random(1), 0.0) is None
    assert (draws.wait_for(random.Random(1), 60.0) or 0) > 0


def test_a_wrong_profile_is_answered_with_all_there_are():
    with pytest.raises(InvalidError) as caught:
        profiles.find("perfect")
    assert all(name in caught.value.sentence for name in PROFILES)


def test_the_sample_package_is_what_its_card_says(card, tmp_path: Path):
    again = sample.write(tmp_path / "again", "v1")
    other = sample.write(tmp_path / "other", "v2")
    assert again == card
    assert cards.decode((tmp_path / "again" / cards.CARD_FILE).read_bytes()) == card
    digests = {packaged.variant.blob.digest for packaged in (*card.variants, *other.variants)}
    assert len(digests) == 2 * len(card.variants)
