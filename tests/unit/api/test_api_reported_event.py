"""The two forms of an event say the same."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from hypothesis import given
from hypothesis import strategies as st

from skerry.api.kinds import event, reported_event
from skerry.api.kinds.references import ObjectReference
from skerry.api.meta import ObjectMeta

NOW = datetime(2026, 1, 31, tzinfo=UTC)
words = st.text(max_size=5)
times = st.none() | st.timedeltas(timedelta(0), timedelta(1)).map(NOW.__add__)
references = st.builds(ObjectReference, kind=words, name=words, namespace=words)

kept = st.builds(
    event.Event,
    metadata=st.just(ObjectMeta(name="a")),
    involved_object=references,
    reason=words,
    message=words,
    source=st.builds(event.EventSource, component=words, host=words),
    first_timestamp=times,
    last_timestamp=times,
    count=st.integers(0, 9),
    type=words,
    event_time=times,
    series=st.none() | st.builds(event.EventSeries, count=st.integers(0, 9), last_observed_time=times),
    action=words,
    related=st.none() | references,
    reporting_component=words,
    reporting_instance=words,
    api_version=st.just("v1"),
    kind=st.just("Event"),
)


@given(kept)
def test_nothing_is_lost_on_the_way(item: event.Event) -> None:
    assert reported_event.to_core(reported_event.of_core(item)) == item


def test_every_field_has_its_own_place() -> None:
    assert len(reported_event.Event.__struct_fields__) == len(event.Event.__struct_fields__)
